"""The plan: which items stand in it, what is there already, what is missing, and what its questions can show."""

from collections.abc import Iterable, Mapping
from itertools import chain, groupby, product

from bitladder.checkpoint.manifest import read_manifest, suspect_files, verify_files
from bitladder.records import (
    AccuracyTask,
    Divergence,
    Item,
    Rescoring,
    RungRecord,
    Status,
    StudyRecord,
    TaskSources,
    measurement_id,
)
from bitladder.results import place_key, place_of, same_contents
from bitladder.results.stages import measured_items, staged_tasks
from bitladder.results.store import Store
from bitladder.stats.aggregate import equivalent_documents
from bitladder.stats.power import Resolution, resolutions
from bitladder.summary.metrics import study_margin_points
from bitladder.units import counted, format_count, points_text, two_digits


def bind_baseline(study: StudyRecord, content_hash: str | None) -> StudyRecord:
    """The plan with the baseline's content in those items that hold a rung against it; None where it isn't known."""
    return study.model_copy(
        update={
            "items": tuple(
                item.model_copy(update={"baseline_hash": content_hash}) if isinstance(item, Divergence) else item
                for item in study.items
            )
        }
    )


def phase_items(study: StudyRecord) -> tuple[tuple[Item, ...], ...]:
    """Items by worker: all that asks questions shares one process, each scenario has its own, for clean memory figures.

    Divergence has its own too, so that all rungs have it before any is asked a question. Tasks that are asked in stages
    are left out: whom a stage asks is known only once the one before is done.
    """
    whole = (item for item in study.items if measured_items(item) == (item,))
    workers = groupby(whole, lambda item: None if isinstance(item, AccuracyTask | Rescoring) else item)
    return tuple(tuple(items) for _, items in workers)


def task_documents(study: StudyRecord, sources: TaskSources) -> list[int]:
    """Documents of each row that the aggregate may rest on; those of parts that ask the same count once."""
    from bitladder.tasks.library import task_library

    items = {item.task: item for item in study.items if isinstance(item, AccuracyTask)}
    groups = [group for group in study.groups if group.in_aggregate and items.keys() >= set(group.tasks)]
    if not groups:
        return []
    library = task_library(sources)
    counts = {name: library.count(name, item.limit) for name, item in items.items()}
    return [(sum if group.pooling == "documents" else min)(counts[task] for task in group.tasks) for group in groups]


def plan_resolutions(study: StudyRecord, sources: TaskSources, unmeasured: int = 0) -> tuple[Resolution, ...]:
    """None where accuracy is not planned, or nothing is held against the baseline. ``unmeasured``: rungs that are known
    to have another's content, and are not judged."""
    documents, rungs = task_documents(study, sources), len(study.rungs) - unmeasured - 1
    if not documents or rungs < 1:
        return ()
    return resolutions(documents, rungs, study_margin_points(study) / 100)


def too_few_questions(study: StudyRecord, sources: TaskSources) -> str | None:
    """What a plan can't settle, even of rungs that change the fewest answers: its study would end without an answer."""
    found = plan_resolutions(study, sources)
    margin_points = study_margin_points(study)
    if not found or 100 * found[0].resolvable_margin <= margin_points:
        return None
    documents = task_documents(study, sources)
    most = found[-1]
    tasks = f" of {counted(len(documents), 'task')}" if len(documents) > 1 else ""
    uneven = sum(documents) / equivalent_documents(documents)
    enough = [format_count(two_digits(round(uneven * one.documents))) for one in (found[0], most)]
    return (
        f"{counted(sum(documents), 'question')}{tasks} cannot settle a drop of {points_text(margin_points)}, even of "
        f"rungs that change {found[0].changed_share:.0%} of the answers: that takes about {enough[0]}, and {enough[1]} "
        f"where they change {most.changed_share:.0%}; without them the answer is to stay with {study.baseline}. Take a "
        "larger --limit, more --tasks, or a larger --max-drop"
    )


RETRIED: tuple[Status, ...] = ("failed", "timeout", "does_not_fit")
"""Outcomes that a second run tries again: their cause may have gone."""


class Kept:
    """What counts of a folder's records for the plan ``study``."""

    def __init__(self, store: Store, study: StudyRecord) -> None:
        self._store = store
        self._study = study
        self._finished: set[str] = set()
        self.place = place_key(study.calibration.machine, study.calibration.device)
        """where this run measures"""

    def rung(self, name: str) -> RungRecord | None:
        """The stored record, if it is of the present recipe and needs no second try."""
        from bitladder.quantization import expected_recipe_hash

        record = self._store.read_rung(name)
        if name in self._study.added:  # an audit costs little, and what it refused may be put right by another library
            same = record is not None and record.source == self._study.added[name]
            return record if record is not None and same and record.status == "ok" else None
        if record is None or record.status in RETRIED or record.manifest is None:
            return None
        recipe = expected_recipe_hash(self._study.source, name)
        return record if record.manifest.recipe_hash == recipe else None

    def has_weights(self, record: RungRecord) -> bool:
        """Whether the checkpoint is there, and still what was audited."""
        directory = self._store.checkpoint_directory(record.rung)
        found = read_manifest(directory)
        return found is not None and found.content_hash == record.content_hash and not verify_files(directory, found)

    def damages(self, record: RungRecord) -> list[str]:
        """In what a checkpoint that nothing needs any more is not what was audited. One that was removed is not there
        to be deployed; of one that is, only what seems to have changed is read."""
        directory = self._store.checkpoint_directory(record.rung)
        if record.manifest is None or record.rung in self._study.added or not directory.is_dir():
            return []
        suspects = suspect_files(directory, record.manifest, self._store.rung_written_ns(record.rung))
        differences = verify_files(directory, record.manifest, suspects)
        if suspects and not differences:
            self._store.write_rung(record)  # later than what was written, so that it is not read again
        return differences

    def missing(
        self, record: RungRecord | None, items: tuple[Item, ...], rungs: Mapping[str, RungRecord | None]
    ) -> tuple[Item, ...]:
        """Items without a record that counts; ``rungs``: all of the study, as far as they are known."""
        if record is None or record.content_hash is None:
            return items
        return tuple(
            item
            for item in items
            if self._is_missing(measurement_id(record.content_hash, item)) or self._lacks_reference(record, item, rungs)
        )

    def _lacks_reference(self, record: RungRecord, item: Item, rungs: Mapping[str, RungRecord | None]) -> bool:
        """Whether this is the baseline, and what a divergence is from has to be made again for another rung."""
        if not isinstance(item, Divergence) or record.rung != self._study.baseline:
            return False
        if self._store.reference_file(item).is_file():
            return False
        others = [one for name, one in rungs.items() if name != record.rung]
        return any(
            one is None or one.content_hash is None or self._is_missing(measurement_id(one.content_hash, item))
            for one in others
        )

    def remove_unbound(self, rungs: Iterable[RungRecord | None]) -> None:
        """Remove what was recorded of a divergence while there was no baseline: nothing asks for its name again."""
        contents = {one.content_hash for one in rungs if one is not None and one.content_hash is not None}
        divergences = (item for item in self._study.items if isinstance(item, Divergence))
        for item, content_hash in product(divergences, contents):
            unbound = item.model_copy(update={"baseline_hash": None})
            self._store.remove_measurement(measurement_id(content_hash, unbound))

    def _is_missing(self, identity: str) -> bool:
        if identity not in self._finished:
            record = self._store.read_measurement(identity)
            if record is None or record.status in RETRIED:
                return True
            chunk = isinstance(record.item, AccuracyTask) and record.item.order is not None
            if chunk and place_of(record) != self.place:
                return True  # the stages of a rung are of one machine
            self._finished.add(identity)
        return False


class Missing:
    """A plan against what its folder has; ``study`` and ``rungs`` change as checkpoints become known."""

    def __init__(self, study: StudyRecord, kept: Kept) -> None:
        self.study = study
        self.rungs: dict[str, RungRecord | None] = {name: kept.rung(name) for name in study.rungs}
        """None: its checkpoint has to be made, or audited"""
        self._kept = kept

    @property
    def whole_items(self) -> tuple[Item, ...]:
        """What every rung gets."""
        return tuple(item for item in self.study.items if measured_items(item) == (item,))

    @property
    def staged_items(self) -> tuple[Item, ...]:
        """What a rung gets whom its stage asks."""
        return tuple(chain.from_iterable(map(measured_items, staged_tasks(self.study))))

    @property
    def all_items(self) -> tuple[Item, ...]:
        return self.whole_items + self.staged_items

    def of(self, record: RungRecord | None, items: tuple[Item, ...]) -> tuple[Item, ...]:
        """Those of ``items`` that the rung lacks: all where its checkpoint isn't there."""
        return self._kept.missing(record, items, self.rungs)

    @property
    def recorded(self) -> int:
        """How many measurements need not be made again."""
        return sum(len(self.all_items) - len(self.of(record, self.all_items)) for record in self.measured)

    @property
    def by_rung(self) -> dict[str, tuple[Item, ...]]:
        return {name: self.of(record, self.all_items) for name, record in self.rungs.items()}

    def bind_baseline(self) -> str | None:
        """Put the baseline's content into the plan, and return it; None before it is made."""
        baseline = self.rungs.get(self.study.baseline)
        known = baseline.content_hash if baseline is not None and baseline.status == "ok" else None
        self.study = bind_baseline(self.study, known)
        return known

    @property
    def same(self) -> dict[str, str]:
        """Of each rung that is not measured, as far as the checkpoints are known, the one with its content."""
        return same_contents(self.study, self.rungs)

    @property
    def measured(self) -> list[RungRecord | None]:
        """Each content once."""
        same = self.same
        return [record for name, record in self.rungs.items() if name not in same]

    @property
    def baseline_first(self) -> list[RungRecord]:
        """Checkpoints that can be measured, each content once. The baseline leaves what the others are held against."""
        made = [record for record in self.measured if record is not None and record.status == "ok"]
        return sorted(made, key=lambda one: one.rung != self.study.baseline)

    @property
    def tasks(self) -> tuple[AccuracyTask, ...]:
        """Those of the plan that some rung has yet to answer."""
        names = {
            item.task if isinstance(item, AccuracyTask) else item.task.task
            for item in chain.from_iterable(self.by_rung.values())
            if isinstance(item, AccuracyTask | Rescoring)
        }
        return tuple(item for item in self.study.items if isinstance(item, AccuracyTask) and item.task in names)

    @property
    def identities(self) -> set[str] | None:
        """Of every measurement that is missing; None while some checkpoint could not be made."""
        found: set[str] = set()
        for record in self.rungs.values():
            if record is None or record.content_hash is None:
                return None
            found.update(measurement_id(record.content_hash, item) for item in self.of(record, self.all_items))
        return found
