"""Which tasks the aggregate is the mean of, which count nowhere, and on which a rung loses more than the margin."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from bitladder.summary.table import AggregateSummary, TaskSummary


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


def counted_losses(rung: Judged) -> list[TaskSummary]:
    """Of the tasks in the aggregate, by the metric that counts there."""
    return [task for task in primary_tasks(rung).values() if task.name in rung.aggregate.tasks and _is_loss(task)]


def other_losses(rung: Judged) -> list[TaskSummary]:
    """By a further metric of a task, or of a task in no aggregate: they fail nothing."""
    counted = [task for task in primary_tasks(rung).values() if task.name in rung.aggregate.tasks]
    return [task for task in rung.tasks if task not in counted and _is_loss(task)]


def losses_text(rung: Judged) -> list[tuple[str, TaskSummary]]:
    """Where a rung loses more, each with how that is called; not what the aggregate itself is of."""
    counted = counted_losses(rung) if len(rung.aggregate.tasks) > 1 else []
    return [(task.title, task) for task in counted] + [
        (f"{task.title} by {task.metric} (in no aggregate)", task) for task in other_losses(rung)
    ]


def _is_loss(task: TaskSummary) -> bool:
    return task.verdict == "beyond the margin"
