"""Tasks on which a rung is shown to lose more than the margin by itself, whatever the mean of all says."""

from bitladder.summary.counted_tasks import Judged, primary_tasks
from bitladder.summary.table import TaskSummary


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
