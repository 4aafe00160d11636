"""The plan: which items stand in it, and which of them one worker gets."""

from itertools import groupby

from bitladder.records import AccuracyTask, Divergence, Item, Rescoring, StudyRecord
from bitladder.stages import measured_items


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
