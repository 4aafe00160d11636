"""What one study left, or several joined by the content of their rungs; and how each measurement ended."""

from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bitladder.errors import UserError
from bitladder.machine.cards import cards_of, count_names
from bitladder.records import (
    AccuracyOutcome,
    AccuracyTask,
    Calibration,
    Item,
    Machine,
    MeasurementRecord,
    Outcome,
    Rescoring,
    RungRecord,
    Scenario,
    Source,
    StudyRecord,
    TaskGroup,
)
from bitladder.records.base import Unknown, UnknownKind
from bitladder.results.stages import read_as_one

DIVERGENCE = "divergence"
_MAY_DIFFER = {"device", "batch_size", "token_budget"}
"""Settings of a task that belong to the machine: they change no prompt and no way of scoring."""


@dataclass(frozen=True)
class Results:
    """What a study has, in the order of its plan: records that exist for the rungs' present content."""

    directory: Path
    study: StudyRecord
    rungs: dict[str, RungRecord]
    records: tuple[MeasurementRecord, ...]
    parts: tuple["Results", ...] = ()
    """of a merged folder: what was joined"""
    elsewhere: frozenset[tuple[str, str]] = frozenset()
    """(rung, task or scenario) that is left out here, because only another machine measured it"""
    unplanned: frozenset[tuple[str, str]] = frozenset()
    """(rung, task or scenario) of a merged study that none of its parts plans"""
    measured: tuple[MeasurementRecord, ...] = ()
    """`records` as they are stored: of a task that is asked in stages, one a stage"""
    measured_on: str | None = None
    """which machines these records are of, where the study has others too"""

    def of(self, rung: str) -> tuple[MeasurementRecord, ...]:
        return tuple(record for record in self.records if record.rung == rung)


def same_contents(study: StudyRecord, rungs: Mapping[str, RungRecord | None]) -> dict[str, str]:
    """Of each rung whose checkpoint holds what another's does, that other: the baseline, else the first of the plan.

    One measurement is of all of them: their figures, as several, would show a spread that is none.
    """
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    for name in sorted(study.rungs, key=lambda name: name != study.baseline):
        record = rungs.get(name)
        if record is not None and record.status == "ok" and record.content_hash is not None:
            other = first.setdefault(record.content_hash, name)
            if other != name:
                same[name] = other
    return same


def is_planned(study: StudyRecord, record: RungRecord) -> bool:
    """Whether a rung's checkpoint was made from the plan's model, or is the ready checkpoint as the plan found it."""
    if record.rung in study.added:
        return record.source is not None and record.source.content_hash == study.added[record.rung].content_hash
    return record.manifest is None or same_model(record.manifest.source, study.source)


def not_measured_as(other: str) -> str:
    """Why a rung of the same content as another has no figures of its own."""
    return Unknown(other, "same_content").reason


def item_name(item: Item) -> str:
    """The task, with its documents where it is asked in stages and with the way where it is scored again; the scenario,
    or ``divergence``."""
    if isinstance(item, AccuracyTask):
        chunk = item.order.chunk if item.order else None
        return item.task if chunk is None else f"{item.task}, documents {chunk[0] + 1:,} to {chunk[1]:,}"
    if isinstance(item, Rescoring):
        return f"{item.task.task} ({item.way})"
    return item.scenario if isinstance(item, Scenario) else DIVERGENCE


def titles_of(names: Iterable[str], groups: Iterable[TaskGroup]) -> list[str]:
    """The same by the titles of groups that are all there, such as MMLU for its 57 tasks; then the others."""
    left = dict.fromkeys(names)
    titles = []
    for group in groups:
        if left.keys() >= set(group.tasks):
            titles.append(group.title)
            left = {name: None for name in left if name not in group.tasks}
    return [*titles, *left]


def study_of(study: StudyRecord, rungs: Iterable[str], added: Mapping[str, Source]) -> StudyRecord:
    """The same study of these rungs: the ladder's, and ready checkpoints."""
    settings = {"rungs": tuple(rungs), "add": {name: source.model for name, source in added.items()}}
    return study.model_copy(update={"settings": study.settings.model_copy(update=settings), "added": dict(added)})


def place_of(record: MeasurementRecord) -> tuple[str, str]:
    """Which machine measured, and on which of its devices: what may stand in one table."""
    return place_key(record.machine, record.item.device)


def place_key(machine: Machine, device: str) -> tuple[str, str]:
    """The machine's identity and its cards in use: one card of a model is like another, and two are not like one."""
    return machine.identity, used_cards(machine, device) or "cpu"


def device_title(calibration: Calibration) -> str:
    """The study's device, of several cards with what they are: ``cuda:0,1 (2 x NVIDIA H100)``."""
    device = calibration.device
    several = len(cards_of(device)) > 1
    return f"{device} ({used_cards(calibration.machine, device)})" if several else device


def answering_machines(results: Results, order: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Of each task the machine whose answers are compared: of most rungs, and of equal ones the first in ``order``."""
    known = list(dict.fromkeys(order))
    done = Counter((item_name(record.item), place_of(record)) for record in results.records if record.status == "ok")
    tasks = dict.fromkeys(item.task for item in results.study.items if isinstance(item, AccuracyTask))
    return {task: max(known, key=lambda place: done[task, place]) for task in tasks} if known else {}


def used_cards(machine: Machine, device: str) -> str:
    """The cards that a device names, such as ``2 x NVIDIA H100``; empty for a CPU."""
    known = dict(enumerate(machine.gpus))
    return count_names(known[card].title if card in known else "GPU" for card in cards_of(device))


def different_rungs(parts: Sequence[Results]) -> Iterator[tuple[str, Results, Results]]:
    """Names of rungs that two parts have with other content."""
    first: dict[str, Results] = {}
    for part in parts:
        for name, rung in part.rungs.items():
            if rung.content_hash is None:
                continue
            known = first.setdefault(name, part)
            if known.rungs[name].content_hash != rung.content_hash:
                yield name, known, part


def join(directory: Path, parts: Sequence[Results]) -> Results:
    """One study out of several. Raises UserError, naming both folders, where figures could not stand side by side:

    another model or baseline, a rung with other content, a task with other prompts or another harness, a scenario with
    other settings on one machine, one measurement made twice on one machine.
    """
    _require_one_model(parts)
    _require_one_content(parts)
    groups = _joined_groups(parts)
    _require_one_way_of_asking(parts)
    measured = _joined_records(parts)
    first = next((part.study for part in parts if part.study.groups), parts[0].study)
    suites = {part.study.suite for part in parts if part.study.groups}
    names = dict.fromkeys(name for part in parts for name in part.study.settings.rungs)
    rungs = joined_rungs(parts)
    added = dict(ChainMap(*(part.study.added for part in parts)))
    # where they differ, what was audited and measured
    added = {name: (rungs[name].source if name in rungs else None) or source for name, source in added.items()}
    study = study_of(first, names, added).model_copy(
        update={
            "suite": first.suite if len(suites) < 2 else "custom",
            "groups": groups,
            "items": tuple(dict.fromkeys(item for part in parts for item in part.study.items)),
        }
    )
    records = tuple(read_as_one(study.items, measured))
    planned = {(rung, item_name(item)) for part in parts for rung in part.study.rungs for item in part.study.items}
    pairs = frozenset((rung, item_name(item)) for rung in study.rungs for item in study.items)
    return Results(directory, study, rungs, records, tuple(parts), unplanned=pairs - planned, measured=measured)


def joined_rungs(parts: Sequence[Results]) -> dict[str, RungRecord]:
    """Each rung's record: the first that ended well, else the first."""
    found: dict[str, RungRecord] = {}
    for part in parts:
        for name, rung in part.rungs.items():
            if name not in found or (found[name].status != "ok" and rung.status == "ok"):
                found[name] = rung
    return found


def _require_one_model(parts: Sequence[Results]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if not same_model(first.study.source, part.study.source):
            ours, theirs = (f"{one.study.source.model} in {one.directory}" for one in (first, part))
            raise UserError(f"not the same model: {ours}, {theirs}; expected equal files; merge studies of one model")
        if part.study.baseline != first.study.baseline:
            raise UserError(
                f"not the same baseline: {first.study.baseline} in {first.directory}, {part.study.baseline} in "
                f"{part.directory}; merge studies with one baseline"
            )


def same_model(one: Source, other: Source) -> bool:
    """Equal files; of a built-in model an equal name, since each version of transformers writes its configuration and
    its tokenizer in other words, while its tensors are held to one hash when it is made."""
    builtin = one.kind == other.kind == "builtin" and one.model == other.model
    return builtin or one.content_hash == other.content_hash


def _require_one_content(parts: Sequence[Results]) -> None:
    for name, one, other in different_rungs(parts):
        hashes = [(part.rungs[name].content_hash or "")[:12] for part in (one, other)]
        raise UserError(
            f"{name} has other content in {other.directory} ({hashes[1]}) than in {one.directory} ({hashes[0]}); "
            "measure both from one checkpoint"
        )


def _joined_groups(parts: Sequence[Results]) -> tuple[TaskGroup, ...]:
    groups: dict[str, tuple[TaskGroup, Path]] = {}
    for part in parts:
        for group in part.study.groups:
            known, directory = groups.setdefault(group.name, (group, part.directory))
            if known != group:
                raise UserError(
                    f"{group.name} is made of other tasks in {part.directory} than in {directory}; merge studies "
                    "with the same groups"
                )
    return tuple(group for group, _ in groups.values())


def _require_one_way_of_asking(parts: Sequence[Results]) -> None:
    asked: dict[str, tuple[AccuracyTask, Path]] = {}
    prompts: dict[str, tuple[str, Path]] = {}
    for part in parts:
        for item in part.study.items:
            if isinstance(item, AccuracyTask):
                known, directory = asked.setdefault(item.task, (item, part.directory))
                # The hash is of the documents, too, and differs with whatever names them.
                different = _differing_settings(known, item, _MAY_DIFFER | {"task_hash"})
                different = different or _differing_settings(known, item, _MAY_DIFFER)
                if different:
                    raise UserError(
                        f"{item.task} was asked in another way in {part.directory} than in {directory}: {different}; "
                        "merge studies with equal prompts and harness"
                    )
        for record in part.measured:
            if isinstance(record.outcome, AccuracyOutcome):
                task = item_name(record.item)
                documents, directory = prompts.setdefault(task, (record.outcome.documents_hash, part.directory))
                if documents != record.outcome.documents_hash:
                    raise UserError(
                        f"{task} has other prompts in {part.directory} than in {directory}; "
                        "merge studies with equal prompts and harness"
                    )


def _joined_records(parts: Sequence[Results]) -> tuple[MeasurementRecord, ...]:
    """All records, each measurement once a machine: one that ended well replaces one that did not."""
    items: dict[tuple[tuple[str, str], str], tuple[Item, Path]] = {}
    found: dict[tuple[tuple[str, str], str, str], tuple[MeasurementRecord, Path]] = {}
    for part in parts:
        for record in part.measured:
            place, name = place_of(record), item_name(record.item)
            item, directory = items.setdefault((place, name), (record.item, part.directory))
            if item != record.item:
                raise UserError(
                    f"{name} was measured on one machine with other settings in {part.directory} than in {directory}: "
                    f"{_differing_settings(item, record.item, set())}; leave one folder out"
                )
            known, directory = found.setdefault((place, name, record.rung), (record, part.directory))
            if known.status != "ok" and record.status == "ok":
                found[place, name, record.rung] = record, part.directory
            elif known.status == record.status == "ok" and known.outcome != record.outcome:
                raise UserError(
                    f"{record.rung}, {name}: measured twice on one machine, in {directory} and in {part.directory}, "
                    "with other results; leave one folder out"
                )
    return tuple(record for record, _ in found.values())


def _differing_settings(one: Item, other: Item, but: set[str]) -> str:
    """The settings that differ, with both values; empty where none does."""
    ours, theirs = one.model_dump(exclude=but), other.model_dump(exclude=but)
    return ", ".join(
        f"{name} {theirs.get(name)}, not {value}" for name, value in ours.items() if theirs.get(name) != value
    )


_TO_COME: tuple[UnknownKind, ...] = ("not_made", "not_measured", "unplanned")
"""that a study, or another one that is merged with it, may still come to"""


@dataclass(frozen=True)
class ItemOutcome:
    """What came of one measurement that is planned."""

    item: Item
    name: str
    record: MeasurementRecord | None
    """of the rung's present checkpoint, however it ended"""
    outcome: Outcome | Unknown
    is_planned: bool
    """False where no part of a merged study plans it"""

    @property
    def is_missing(self) -> bool:
        """Whether the study has not come to it: neither its own end nor its rung's is known."""
        return isinstance(self.outcome, Unknown) and self.outcome.kind in _TO_COME


@dataclass(frozen=True)
class RungOutcomes:
    """What came of one rung and of each of its measurements."""

    rung: str
    record: RungRecord | None
    unmade: Unknown | None
    """why there is no checkpoint"""
    same_as: str | None
    """the rung whose content this one's is, where nothing was measured of this one"""
    records: tuple[MeasurementRecord, ...]
    measurements: tuple[ItemOutcome, ...]
    """in the order of the plan"""

    @cached_property
    def answers(self) -> Mapping[str, AccuracyOutcome | Unknown]:
        """By task."""
        found = {end.name: end.outcome for end in self.measurements if end.item.kind == "accuracy"}
        return {task: one for task, one in found.items() if isinstance(one, AccuracyOutcome | Unknown)}


def read_outcomes(results: Results) -> dict[str, RungOutcomes]:
    """Of each planned rung."""
    same = same_contents(results.study, results.rungs)
    return {rung: _read(results, rung, same.get(rung)) for rung in results.study.rungs}


def _read(results: Results, rung: str, same_as: str | None) -> RungOutcomes:
    record, records = results.rungs.get(rung), results.of(rung)
    unmade = Unknown(kind="not_made") if record is None else _ended(record)
    same_as = None if records else same_as
    measured = {(one.item.kind, item_name(one.item)): one for one in records} if unmade is None else {}
    ends = []
    for item in results.study.items:
        name = item_name(item)
        found = measured.get((item.kind, name))
        outcome = _outcome(found) if found else unmade or _unmeasured(results, rung, name, same_as)
        ends.append(ItemOutcome(item, name, found, outcome, is_planned=(rung, name) not in results.unplanned))
    return RungOutcomes(rung, record, unmade, same_as, records, tuple(ends))


def _outcome(record: MeasurementRecord) -> Outcome | Unknown:
    if (ended := _ended(record)) is not None:
        return ended
    if record.outcome is None or record.outcome.kind != record.item.kind:
        return Unknown("its record has no outcome", "failed")
    return record.outcome


def _unmeasured(results: Results, rung: str, name: str, same_as: str | None) -> Unknown:
    if same_as is not None:
        return Unknown(same_as, "same_content")
    if (rung, name) in results.unplanned:
        return Unknown(kind="unplanned")
    return Unknown(kind="elsewhere" if (rung, name) in results.elsewhere else "not_measured")


def _ended(record: RungRecord | MeasurementRecord) -> Unknown | None:
    """How it ended that did not end well."""
    return None if record.status == "ok" else Unknown(record.reason or "", record.status)
