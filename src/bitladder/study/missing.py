"""What is missing of a plan: which rungs are measured, and what of each has no record that counts."""

from itertools import chain

from bitladder.records import AccuracyTask, Item, Rescoring, RungRecord, StudyRecord, measurement_id
from bitladder.results import same_contents
from bitladder.stages import measured_items, staged_tasks
from bitladder.study.kept import Kept
from bitladder.study.plan import bind_baseline


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
