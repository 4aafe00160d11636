"""What is left of a study in time, as estimated and as what is done has really taken; and what is told meanwhile."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bitladder.machine.host import BUSY_SHARE, busy_share
from bitladder.methods import BASELINE
from bitladder.records import (
    AccuracyTask,
    Divergence,
    Item,
    MeasurementRecord,
    Rescoring,
    Scenario,
    StudyRecord,
    TaskSources,
)
from bitladder.results import is_planned, not_measured_as
from bitladder.results.stages import measured_items
from bitladder.results.store import Store
from bitladder.study.estimate import PROCESS_START_S, RungEstimate
from bitladder.study.messages import StudyProgress, busy_warning
from bitladder.study.plan import Missing, too_few_questions
from bitladder.summary.metrics import study_margin_points
from bitladder.units import format_left, points_text

_ROUND_NUMBERS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
TASK_START_S = 1.0
"""of each task, however few its questions: prompts, plan, and the first batch, which is slower than all others"""
_PLANNED_SHARE = 0.1
"""of all that is planned: as much of it as if it had been measured to take what is planned, so that a first measurement
that takes long says little, and at most ten times what it took is added"""
_ADVISED_SHARE = 0.3
"""of the time from which a study asks, for each half: within it a plan is not asked about again"""


class TimeLeft:
    """Seconds that are left of a plan. A ready checkpoint, whose format isn't timed, counts as the baseline does."""

    def __init__(
        self, study: StudyRecord, estimates: Sequence[RungEstimate], missing: Mapping[str, Collection[Item]]
    ) -> None:
        """``missing``: by rung, of `measured_items`."""
        timed = {one.rung: one.item_s for one in estimates if None not in one.item_s}
        self._left_s: dict[tuple[str, Item], float] = {}
        for one in estimates:
            seconds = timed.get(one.rung) or timed.get(BASELINE) or next(iter(timed.values()))
            for item, item_s in zip(study.items, seconds, strict=True):
                for part, share in _shares(item).items():
                    if part in missing[one.rung]:
                        self._left_s[one.rung, _unbound(part)] = (item_s or 0.0) * share
        self._unmade_s: dict[str, float] = {}
        self._taken: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        """of the scenarios, and of all else: seconds that were expected, and taken"""

    def to_make(self, rungs: Collection[str]) -> None:
        """Checkpoints that have to be made, or only audited."""
        self._unmade_s = dict.fromkeys(rungs, 2 * PROCESS_START_S)

    def made(self, rung: str) -> None:
        self._unmade_s.pop(rung, None)

    def measured(self, rung: str, item: Item, taken_s: float) -> None:
        """Scales what is left of its kind by how long what was measured took."""
        planned_s = self._left_s.pop((rung, _unbound(item)), None)
        if planned_s is not None:
            self._taken[isinstance(item, Scenario)].append((planned_s + _start_s(item), taken_s))

    def decided(self) -> None:
        """No more stages are asked."""
        self._left_s = {
            (rung, item): seconds
            for (rung, item), seconds in self._left_s.items()
            if not isinstance(item, AccuracyTask) or item.order is None
        }

    @property
    def seconds(self) -> float:
        return self._kind_s(performance=False) + self._kind_s(performance=True) + sum(self._unmade_s.values())

    def _kind_s(self, *, performance: bool) -> float:
        left = {key: s for key, s in self._left_s.items() if isinstance(key[1], Scenario) == performance}
        left_s = sum(seconds + _start_s(item) for (_, item), seconds in left.items())
        expected_s, taken_s = (sum(one) for one in zip((0.0, 0.0), *self._taken[performance], strict=True))
        as_planned_s = _PLANNED_SHARE * (expected_s + left_s)
        return left_s * (taken_s + as_planned_s) / (expected_s + as_planned_s) if left_s else 0.0

    def half_s(self, *, performance: bool) -> float:
        """Of the scenarios, or of all else that is measured."""
        return sum(s for (_, item), s in self._left_s.items() if isinstance(item, Scenario) == performance)

    def task_s(self) -> dict[str, float]:
        """Of each accuracy task, over all rungs."""
        found: dict[str, float] = {}
        for (_, item), seconds in self._left_s.items():
            if isinstance(item, AccuracyTask):
                found[item.task] = found.get(item.task, 0.0) + seconds
        return found


def _start_s(item: Item) -> float:
    """What is not in its estimate."""
    return TASK_START_S if isinstance(item, AccuracyTask | Rescoring) else 0.0


def _unbound(item: Item) -> Item:
    """A divergence as it is planned, before its baseline's content is known."""
    return item.model_copy(update={"baseline_hash": None}) if isinstance(item, Divergence) else item


def _shares(item: Item) -> dict[Item, float]:
    """What of an item's time each of its measurements takes: of stages, by their documents."""
    parts = measured_items(item)
    if parts == (item,):
        return {item: 1.0}
    chunks = [part.order.chunk for part in parts if isinstance(part, AccuracyTask) and part.order]
    lengths = [chunk[1] - chunk[0] for chunk in chunks if chunk]
    return {part: length / sum(lengths) for part, length in zip(parts, lengths, strict=True)}


def advise(study: StudyRecord, sources: TaskSources, left: TimeLeft, asked_from_s: float | None) -> str | None:
    """What to add, for a study on a CPU of which more is left than ``asked_from_s``; None for any other."""
    if asked_from_s is None or study.calibration.device != "cpu" or left.seconds <= asked_from_s:
        return None
    most_s = _ADVISED_SHARE * asked_from_s
    flags, note = [], ""
    if (
        left.half_s(performance=False) > most_s
        and (limit := _advised_limit(study, sources, left, asked_from_s)) is not None
    ):
        if too_few_questions(study, sources) is not None:
            flags, note = ["fewer --rungs"], " (fewer questions would settle nothing)"
        else:
            flags = [f"--limit {limit}"]
            if too_few_questions(_limited(study, limit), sources) is not None:
                note = f" (so few questions settle no drop of {points_text(study_margin_points(study))})"
    requests = _advised_requests(study, left, asked_from_s)
    if left.half_s(performance=True) > most_s and requests is not None:
        flags.append(f"--requests {requests}")
    less = " and ".join(flags) or "fewer --rungs"
    return (
        f"about {format_left(left.seconds)} of work on this CPU, and more than {format_left(asked_from_s)} has to be "
        f"meant; give {less} to measure less{note}, or --yes to go on"
    )


def _limited(study: StudyRecord, limit: int) -> StudyRecord:
    """As it would be planned with such a ``--limit``."""
    items = (
        item.model_copy(update={"limit": min(limit, item.limit or limit)}) if isinstance(item, AccuracyTask) else item
        for item in study.items
    )
    return study.model_copy(update={"items": tuple(items)})


def _advised_limit(study: StudyRecord, sources: TaskSources, left: TimeLeft, asked_from_s: float) -> int | None:
    """The largest round number of questions a task whose time is within bounds; None where it is no fewer."""
    from bitladder.tasks.library import task_library

    library = task_library(sources)
    items = {item.task: item for item in study.items if isinstance(item, AccuracyTask)}
    counts = {task: library.count(task, item.limit) for task, item in items.items()}

    def seconds(limit: int) -> float:
        return sum(s * min(1.0, limit / counts[task]) for task, s in left.task_s().items())

    found = _largest(seconds, _ADVISED_SHARE * asked_from_s)
    return found if found < max(counts.values(), default=0) else None


def _advised_requests(study: StudyRecord, left: TimeLeft, asked_from_s: float) -> int | None:
    scenarios = [item for item in study.items if isinstance(item, Scenario)]

    def seconds(requests: int) -> float:
        return max(min(1.0, requests / item.requests) for item in scenarios) * left.half_s(performance=True)

    found = _largest(seconds, _ADVISED_SHARE * asked_from_s) if scenarios else _ROUND_NUMBERS[0]
    return found if any(found < item.requests for item in scenarios) else None


def _largest(seconds: Callable[[int], float], most_s: float) -> int:
    return max((number for number in _ROUND_NUMBERS if seconds(number) <= most_s), default=_ROUND_NUMBERS[0])


@dataclass
class Telling:
    """Tells ``progress`` what follows from the plan and what is missing of it."""

    progress: StudyProgress
    left: TimeLeft
    store: Store
    missing: Missing
    only: Literal["accuracy", "performance"] | None = None
    """the half that is asked for"""
    warned: bool = False
    """that others keep the processors busy"""

    def changed(self) -> None:
        """Which ready checkpoints are no longer what was audited."""
        for name in self.missing.study.added:
            record = self.store.read_rung(name)
            if record is not None and not is_planned(self.missing.study, record):
                self.progress.warn(
                    f"{name}: its files have changed since its audit, which is made anew; nothing that was measured "
                    "of other weights is shown any more"
                )

    def same(self, told: Mapping[str, str]) -> None:
        """What is left out, and the plan anew where it was told with it, as it is before a checkpoint is made."""
        same = self.missing.same
        for name, other in same.items():
            self.progress.warn(f"{name}: {not_measured_as(other)}")
        if same != told:
            self.plan()

    def plan(self, *, staged: bool = True) -> None:
        """With all that the stages may ask, or with what they have asked."""
        missing = self.missing
        total = len(missing.measured) * len(missing.all_items)
        if not staged:
            total -= sum(len(missing.of(record, missing.staged_items)) for record in missing.measured)
        self.progress.time_left(self.left.seconds)
        self.progress.planned(total, missing.recorded)

    def measured(self, record: MeasurementRecord) -> None:
        self.left.measured(record.rung, record.item, record.duration_s)
        self.progress.time_left(self.left.seconds)
        self.progress.measured(record)

    def other_half(self, asked: Collection[str]) -> None:
        """With ``only`` the half that isn't asked for stays in the plan, and so is measured where something lacks."""
        missing, only = self.missing, self.only
        if only is None:
            return
        others = tuple(item for item in missing.whole_items if isinstance(item, Scenario) == (only == "accuracy"))
        is_asked = only == "performance" and bool(asked)
        if is_asked or any(missing.of(record, others) for record in missing.rungs.values()):
            half = "performance" if only == "accuracy" else "accuracy"
            self.progress.warn(
                f"--only {only}: {self.store.directory} has {half} in its plan too, which is measured where it is "
                f"missing; take another --out for {only} alone"
            )

    def busy_share(self) -> float:
        """How busy others keep the processors, told once where that spoils what is measured."""
        share = busy_share()
        if share > BUSY_SHARE and not self.warned:
            self.warned = True
            self.progress.warn(busy_warning(share))
        return share
