"""What a plan's questions can show, before any of them is asked."""

from bitladder.records import AccuracyTask, StudyRecord, TaskSources
from bitladder.stats.aggregate import equivalent_documents
from bitladder.stats.power import Resolution, resolutions
from bitladder.summary.margin import study_margin_points
from bitladder.units import counted, format_count, points_text, two_digits


def task_documents(study: StudyRecord, sources: TaskSources) -> list[int]:
    """Documents of each row that the aggregate may rest on; those of parts that ask the same count once."""
    from bitladder.accuracy.library import task_library

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
