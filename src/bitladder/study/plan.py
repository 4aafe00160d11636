"""The plan: a pure function of settings, source, calibration, resolved tasks and prompts."""

from collections.abc import Mapping

from bitladder.records import (
    AccuracyTask,
    Calibration,
    Item,
    Scenario,
    Settings,
    Source,
    StudyRecord,
    TaskGroup,
)
from bitladder.rungs import BASELINE


def plan_study(
    settings: Settings,
    suite: str,
    source: Source,
    calibration: Calibration,
    groups: tuple[TaskGroup, ...],
    tasks: tuple[AccuracyTask, ...],
    scenarios: tuple[Scenario, ...],
    added: Mapping[str, Source] | None = None,
) -> StudyRecord:
    """The study's record: every rung and every ready checkpoint gets every item, accuracy first."""
    items: tuple[Item, ...] = (*tasks, *scenarios)
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


def phase_items(study: StudyRecord) -> tuple[tuple[Item, ...], ...]:
    """Items by worker: all accuracy tasks share one process, each scenario has its own, for clean memory figures."""
    accuracy = tuple(item for item in study.items if isinstance(item, AccuracyTask))
    scenarios = tuple((item,) for item in study.items if isinstance(item, Scenario))
    return ((accuracy,) if accuracy else ()) + scenarios
