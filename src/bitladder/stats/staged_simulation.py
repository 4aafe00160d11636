"""Simulated studies that stop when decided: how often a verdict falls, is wrong, and after how many documents.

The stages, the bets and the last test are a study's own. Every result is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitladder.stages import row_stops, stages_for
from bitladder.stats.aggregate import MeanOfTasks
from bitladder.stats.betting import EARLY_ALPHA, Draws, decided_after, evenly
from bitladder.stats.paired import PairedCounts
from bitladder.stats.simulation import ChangeRates
from bitladder.stats.stopping import LAST_CONFIDENCE
from bitladder.stats.verdict import Beside, judge

Rung = Sequence[ChangeRates]
"""one a task; all rungs have the same tasks"""


class StagedShares(NamedTuple):
    decided: float
    """of all rungs' comparisons"""
    fixed: float
    """decided by the usual intervals once all documents are asked, with nothing spent before"""
    wrong: float
    """of the studies, those with any wrong verdict"""
    fixed_wrong: float
    """the same by the usual intervals"""
    documents: float
    """of all, that a rung is asked; the mean over rungs and studies"""


class Schedule(NamedTuple):
    """The blocks and documents of a study's stages, where no two documents resemble each other."""

    starts: tuple[NDArray[np.int64], ...]
    """of each task's blocks"""
    ends: NDArray[np.int64]
    """blocks by the end of each stage"""
    documents: NDArray[np.int64]
    """asked by the end of each stage"""


def schedule_of(tasks: Rung) -> Schedule:
    stages = max(stages_for(task.n) for task in tasks)
    stops = np.array([[0, *row_stops(task.n, stages)] for task in tasks])
    blocks = np.diff(stops).min(axis=0)
    starts = tuple(
        np.concatenate(
            [begin + evenly(end - begin, count) for begin, end, count in zip(row[:-1], row[1:], blocks, strict=True)]
        )
        for row in stops
    )
    return Schedule(starts, np.cumsum(blocks), stops[:, 1:].sum(axis=0))


def simulate_stages(rungs: Sequence[Rung], margin: float, draws: int, seed: int) -> StagedShares:
    """Share of comparisons decided, and so on, of simulated studies of these rungs that are judged together."""
    rng = np.random.default_rng(seed)
    schedule = schedule_of(rungs[0])
    found = [_simulate_rung(rung, schedule, margin, draws, EARLY_ALPHA / len(rungs), rng) for rung in rungs]
    truths = [sum(task.gained - task.lost for task in rung) / len(rung) for rung in rungs]
    decided = fixed = wrong = fixed_wrong = 0
    for draw in range(draws):
        sides = [one.sides[draw] for one in found]
        comparisons = {str(index): one.comparisons[draw] for index, one in enumerate(found)}
        left = {name: one for name, one in comparisons.items() if not sides[int(name)]}
        beside = Beside(low=sides.count("beyond"), high=sides.count("within"))
        verdicts: dict[str, str] = {str(index): side for index, side in enumerate(sides)}
        judged = judge(left, margin, count_more=False, confidence=LAST_CONFIDENCE, beside=beside)
        verdicts |= {name: one.verdict for name, one in judged.items()}
        decided += sum(verdict != "undecided" for verdict in verdicts.values())
        usual = judge(comparisons, margin, count_more=False)
        fixed += sum(one.verdict != "undecided" for one in usual.values())
        wrong += any(_is_wrong(verdicts[str(index)], truth, margin) for index, truth in enumerate(truths))
        fixed_wrong += any(_is_wrong(usual[str(index)].verdict, truth, margin) for index, truth in enumerate(truths))
    documents = np.mean([one.documents for one in found]) / schedule.documents[-1]
    return StagedShares(
        decided=decided / draws / len(rungs),
        fixed=fixed / draws / len(rungs),
        wrong=wrong / draws,
        fixed_wrong=fixed_wrong / draws,
        documents=float(documents),
    )


class _Simulated(NamedTuple):
    sides: list[Literal["within", "beyond", ""]]
    """by draw, what the bets decided"""
    documents: NDArray[np.int64]
    """by draw, asked until then"""
    comparisons: list[MeanOfTasks]
    """by draw, of all documents"""


def _simulate_rung(
    rung: Rung, schedule: Schedule, margin: float, draws: int, alpha: float, rng: np.random.Generator
) -> _Simulated:
    answers = [
        rng.choice([1.0, -1.0, 0.0], (draws, task.n), p=[task.gained, task.lost, 1 - task.gained - task.lost])
        for task in rung
    ]
    tasks = [Draws(values, starts) for values, starts in zip(answers, schedule.starts, strict=True)]
    within, beyond = (decided_after(tasks, margin, side, alpha) for side in ("within", "beyond"))
    first = np.minimum(within, beyond)
    early = first <= schedule.ends[-1]
    stages = np.minimum(np.searchsorted(schedule.ends, first), len(schedule.ends) - 1)
    sides: list[Literal["within", "beyond", ""]] = [
        ("within" if one < other else "beyond") if stopped else ""
        for one, other, stopped in zip(within, beyond, early, strict=True)
    ]
    gained = [(values > 0).sum(axis=1) for values in answers]
    lost = [(values < 0).sum(axis=1) for values in answers]
    comparisons = [
        MeanOfTasks(
            parts=tuple(
                PairedCounts(gained=int(up[draw]), lost=int(down[draw]), n=task.n)
                for up, down, task in zip(gained, lost, rung, strict=True)
            )
        )
        for draw in range(draws)
    ]
    return _Simulated(sides, schedule.documents[stages], comparisons)


def _is_wrong(verdict: str, truth: float, margin: float) -> bool:
    on_margin = abs(truth + margin) < 1e-9
    if verdict.startswith("beyond"):
        return on_margin or truth > -margin
    if verdict == "lower but within":
        return on_margin or truth < -margin or truth >= 0
    return verdict.startswith("within") and (on_margin or truth < -margin)
