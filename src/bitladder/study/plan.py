"""The plan: a pure function of settings, source, calibration, resolved tasks and prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bitladder.records import (
    AccuracyTask,
    Calibration,
    Divergence,
    Item,
    LoadPolicy,
    Rescoring,
    Scenario,
    Settings,
    Source,
    StudyRecord,
    TaskGroup,
    TaskSources,
)
from bitladder.rungs import BASELINE
from bitladder.stages import measured_items


@dataclass(frozen=True)
class PlannedWork:
    """What is estimated: what each rung gets, on which machine, and with which model."""

    items: tuple[Item, ...]
    rungs: tuple[str, ...]
    """of the ladder"""
    calibration: Calibration
    directory: Path
    """the model's"""
    policy: LoadPolicy
    sources: TaskSources
    prompt_tokens: int
    new_tokens: int
    token_budget: int | None
    """of the accuracy backend's forward, where it is given"""


def plan_study(
    settings: Settings,
    suite: str,
    source: Source,
    calibration: Calibration,
    groups: tuple[TaskGroup, ...],
    tasks: tuple[AccuracyTask, ...],
    scenarios: tuple[Scenario, ...],
    divergence: Divergence | None = None,
    rescorings: tuple[Rescoring, ...] = (),
    added: Mapping[str, Source] | None = None,
) -> StudyRecord:
    """The study's record: every rung and every ready checkpoint gets every item, what is cheap first."""
    items: tuple[Item, ...] = (*((divergence,) if divergence else ()), *tasks, *rescorings, *scenarios)
    return StudyRecord(
        settings=settings,
        suite=suite,
        baseline=BASELINE,
        source=source,
        calibration=calibration,
        groups=groups,
        items=items,
        added=dict(added or {}),
    )


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
    items = [item for item in study.items if measured_items(item) == (item,)]
    accuracy = tuple(item for item in items if isinstance(item, AccuracyTask | Rescoring))
    alone = [(item,) for item in items if not isinstance(item, AccuracyTask | Rescoring)]
    first = tuple(items for items in alone if isinstance(items[0], Divergence))
    return (*first, *((accuracy,) if accuracy else ()), *(items for items in alone if items not in first))
