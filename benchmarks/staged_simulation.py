"""Simulated studies that stop when decided: how often a verdict falls, is wrong, and after how many documents.

The stages, the looks and their levels are a study's own. Every result is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitladder.results.stages import row_stops, shares_for
from bitladder.stats.aggregate import MeanOfTasks
from bitladder.stats.paired import PairedCounts
from bitladder.stats.verdict import Verdict, judge, judge_looks
from simulation import ChangeRates, is_wrong

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


def simulate_stages(rungs: Sequence[Rung], margin: float, draws: int, seed: int) -> StagedShares:
    """Share of comparisons decided, and so on, of simulated studies of these rungs that are judged together.

    Their tasks count equally, and no two documents resemble each other.
    """
    rng = np.random.default_rng(seed)
    shares = shares_for(max(task.n for task in rungs[0]))
    stops = np.array([row_stops(task.n, shares) for task in rungs[0]])
    asked = stops.sum(axis=0) / stops[:, -1].sum()
    changes = [_draw(rung, stops, draws, rng) for rung in rungs]
    means = [sum(task.gained - task.lost for task in rung) / len(rung) for rung in rungs]
    truths = [ChangeRates(max(mean, 0.0), max(-mean, 0.0), 1) for mean in means]
    found = np.zeros(5)
    for draw in range(draws):
        looks = [[_comparison(one[draw, :, look], stops[:, look]) for look in range(len(shares))] for one in changes]
        verdicts, stages = _stopped(looks, margin)
        everything = judge({str(rung): one[-1] for rung, one in enumerate(looks)}, margin, count_more=False)
        usual = [everything[str(rung)].verdict for rung in range(len(rungs))]
        found += np.array(
            [
                np.mean([verdict != "undecided" for verdict in verdicts]),
                np.mean([verdict != "undecided" for verdict in usual]),
                any(is_wrong(verdict, truth, margin) for verdict, truth in zip(verdicts, truths, strict=True)),
                any(is_wrong(verdict, truth, margin) for verdict, truth in zip(usual, truths, strict=True)),
                np.mean([asked[stage - 1] for stage in stages]),
            ],
            dtype=float,
        )
    return StagedShares(*(found / draws).tolist())


def _draw(rung: Rung, stops: NDArray[np.int64], draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(draws, tasks, stages, 2): gained and lost by the end of each stage."""
    sizes = np.diff(stops, axis=1, prepend=0)
    tasks = [
        np.stack([rng.multinomial(size, _rates(task), draws)[:, :2] for size in row], axis=1)
        for task, row in zip(rung, sizes, strict=True)
    ]
    return np.stack(tasks, axis=1).cumsum(axis=2)


def _rates(task: ChangeRates) -> tuple[float, float, float]:
    return task.gained, task.lost, 1 - task.gained - task.lost


def _comparison(changes: NDArray[np.int64], documents: NDArray[np.int64]) -> MeanOfTasks:
    pairs = zip(changes.tolist(), documents.tolist(), strict=True)
    return MeanOfTasks(parts=tuple(PairedCounts(gained=gained, lost=lost, n=n) for (gained, lost), n in pairs))


def _stopped(looks: Sequence[Sequence[MeanOfTasks]], margin: float) -> tuple[list[Verdict], list[int]]:
    """Of each rung the verdict that it stops with, and after how many stages: judged anew after each, as a study is."""
    last = len(looks[0])
    stages = dict.fromkeys(map(str, range(len(looks))), 0)
    verdicts: dict[str, Verdict] = dict.fromkeys(stages, "undecided")
    for stage in range(1, last + 1):
        stages |= {rung: stage for rung, verdict in verdicts.items() if verdict == "undecided"}
        compared = {rung: looks[int(rung)][done - 1] for rung, done in stages.items()}
        judged = judge_looks(compared, stages, last, len(looks), margin)
        verdicts = {rung: one.verdict for rung, one in judged.items()}
    return list(verdicts.values()), list(stages.values())
