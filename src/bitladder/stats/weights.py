"""How much a task counts in the aggregate, and how that is told.

A model that can do next to nothing of a task has next to nothing to lose in it: a difference of 0 there hides what was
lost elsewhere, and a few lucky answers are a difference. So a task's weight rises with the best score, without a step
at which luck would decide. It is read from the best of all scores, the baseline's and the rungs' alike: read from the
baseline's alone it would count tasks where the baseline was lucky, beside which a rung that is its equal looks worse.
benchmarks/interval_coverage.py simulates both: of a rung equal to the baseline the mean difference is 0 where it is the
only one, and with four within 0.1 points beside two other tasks. A single task 3 points above chance, with four rungs
that each depart from the baseline by themselves, is off by 0.2 to 0.4 points where luck makes it count at all (by 0.5
to 2.5 if the baseline's score alone decided).
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from bitladder.stats.summary import AggregateSummary, TaskSummary

NO_WEIGHT_POINTS, FULL_WEIGHT_POINTS = 5.0, 10.0
"""above chance, from which on a task counts, and from which on wholly"""


def weight_at(above_chance: float) -> float:
    """Of a task in the aggregate, from 0 to 1, by how far above chance the best score of any rung is, a fraction."""
    return min(max((100 * above_chance - NO_WEIGHT_POINTS) / (FULL_WEIGHT_POINTS - NO_WEIGHT_POINTS), 0.0), 1.0)


def weight_reason(best: float, chance: float | None) -> str:
    """Why a task has no weight: the best score, and what guessing scores, as fractions of 1."""
    less = f"the best of all scores, {100 * best:.1f}%, is less than {NO_WEIGHT_POINTS:.0f}"
    return f"{less}%" if chance is None else f"{less} points above chance, {100 * chance:.1f}%"


class Judged(Protocol):
    """What is said of a rung's accuracy."""

    @property
    def aggregate(self) -> AggregateSummary: ...

    @property
    def tasks(self) -> tuple[TaskSummary, ...]: ...


def counted_tasks(rungs: Sequence[Judged]) -> list[TaskSummary]:
    """The tasks that the aggregate is the mean of, with their weights."""
    names = next((rung.aggregate.tasks for rung in rungs if rung.aggregate.tasks), ())
    found: dict[str, TaskSummary] = {}
    for rung in rungs:
        for task in rung.tasks:
            found.setdefault(task.name, task)  # a task's other metrics come behind it
    return [found[name] for name in names if name in found]


def weighted_titles(tasks: Iterable[TaskSummary]) -> str:
    """What the aggregate is the mean of; a weight is named where it isn't 1."""
    return ", ".join(
        task.title if task.weight is None or task.weight == 1 else f"{task.title} (weight {task.weight:.2f})"
        for task in tasks
    )


def left_out(rungs: Sequence[Judged]) -> list[TaskSummary]:
    """The tasks that would count but for their scores."""
    found = {task.name: task for rung in rungs for task in rung.tasks if task.weight == 0}
    return list(found.values())


def weights_text(rungs: Sequence[Judged]) -> str:
    """What a difference of the aggregate is of, where not all tasks count wholly; empty where they do."""
    counted, without = counted_tasks(rungs), left_out(rungs)
    if not counted or (not without and all(task.weight in (None, 1) for task in counted)):
        return ""
    parts = [f"mean of {weighted_titles(counted)}"]
    parts += [f"left out {task.title}: {task.no_signal_reason}" for task in without]
    return "; ".join(parts)
