"""How much a task counts in the aggregate, and how that is told.

A model that can do next to nothing of a task has next to nothing to lose in it: a difference of 0 there hides what was
lost elsewhere, and a few lucky answers are a difference. So a task's weight rises with the score, without a step at
which luck would decide. It is read from the better of the two scores that are compared: read from the baseline's alone
it would count tasks where the baseline was lucky, beside which a rung that is its equal looks worse; read from the best
of several rungs it would let one of them change the verdict on another. benchmarks/interval_coverage.py simulates it:
of a rung equal to the baseline the mean difference is 0 to within 0.06 points, however many others there are; by the
baseline's score alone it is 0.5 to 2.5 points.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from bitladder.stats.summary import AggregateSummary, TaskSummary

NO_WEIGHT_POINTS, FULL_WEIGHT_POINTS = 5.0, 10.0
"""above chance, from which on a task counts, and from which on wholly"""


def weight_at(above_chance: float) -> float:
    """Of a task in the aggregate, from 0 to 1, by how far above chance the better of two scores is, a fraction."""
    return min(max((100 * above_chance - NO_WEIGHT_POINTS) / (FULL_WEIGHT_POINTS - NO_WEIGHT_POINTS), 0.0), 1.0)


def weight_reason(best: float, chance: float | None) -> str:
    """Why a task has no weight: the better score, and what guessing scores, as fractions of 1."""
    less = f"the better score, {100 * best:.1f}%, is less than {NO_WEIGHT_POINTS:.0f}"
    return f"{less}%" if chance is None else f"{less} points above chance, {100 * chance:.1f}%"


class Judged(Protocol):
    """What is said of a rung's accuracy."""

    @property
    def aggregate(self) -> AggregateSummary: ...

    @property
    def tasks(self) -> tuple[TaskSummary, ...]: ...


def primary_tasks(rung: Judged) -> dict[str, TaskSummary]:
    """By name, each task by the metric that counts: its further ones come behind it."""
    found: dict[str, TaskSummary] = {}
    for task in rung.tasks:
        found.setdefault(task.name, task)
    return found


class CountedTask(NamedTuple):
    """A task that the aggregate is the mean of."""

    title: str
    weights: tuple[float, ...]
    """lowest first, each once; empty where none is known"""


def counted_tasks(rungs: Sequence[Judged]) -> list[CountedTask]:
    """The tasks that the aggregates of these rungs are the mean of, with the weights that they have in them."""
    names = dict.fromkeys(name for rung in rungs for name in rung.aggregate.tasks)
    found: dict[str, list[TaskSummary]] = {name: [] for name in names}
    for rung in rungs:
        own = primary_tasks(rung)
        for name in names & own.keys():
            found[name].append(own[name])
    return [
        CountedTask(tasks[0].title, tuple(sorted({task.weight for task in tasks if task.weight is not None})))
        for tasks in found.values()
        if tasks
    ]


def weighted_titles(tasks: Iterable[CountedTask]) -> str:
    """What the aggregate is the mean of; a weight is named where it isn't 1, as a range where rungs differ in it."""
    return ", ".join(f"{task.title}{_weight_text(task.weights)}" for task in tasks)


def _weight_text(weights: tuple[float, ...]) -> str:
    ends = list(dict.fromkeys(f"{weight:.2f}" for weight in weights[:1] + weights[-1:]))
    return "" if not ends or ends == ["1.00"] else f" (weight {' to '.join(ends)})"


def left_out(rungs: Sequence[Judged]) -> list[TaskSummary]:
    """The tasks that would count but for their scores."""
    counted = {name for rung in rungs for name in rung.aggregate.tasks}
    found = {task.name: task for rung in rungs for task in rung.tasks if task.weight == 0 and task.name not in counted}
    return list(found.values())


def weights_text(rungs: Sequence[Judged]) -> str:
    """What a difference of the aggregate is of, where not all tasks count wholly; empty where they do."""
    counted, without = counted_tasks(rungs), left_out(rungs)
    if not counted or (not without and all(not _weight_text(task.weights) for task in counted)):
        return ""
    parts = [f"mean of {weighted_titles(counted)}"]
    parts += [f"left out {task.title}: {task.no_signal_reason}" for task in without]
    return "; ".join(parts)
