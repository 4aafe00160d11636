"""Prints what stopping when decided costs and saves: python benchmarks/until_decided.py

One task, one rung. Bets may stop at any document with 0.005 of each side's 0.025; Tango's interval at the end has
0.020. Beside it Tango's alone with 0.025, and bets alone with 0.025; and how many documents a gambler would take who
knew the rates and bet the best constant stake on them, looking after every document: fewer than that no bet takes for
long. Rows at a difference of -2 points lie on the margin: there any verdict is wrong.

Then whole studies, with a study's own stages, several rungs judged together, and an aggregate over tasks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import numpy as np

from bitladder.stats.betting import EARLY_ALPHA, decided_after, each_alone
from bitladder.stats.paired import tango_interval
from bitladder.stats.power import ONE_SIDED_ALPHA
from bitladder.stats.simulation import ChangeRates
from bitladder.stats.staged_simulation import StagedShares, simulate_stages

PART = 100

MARGIN = 0.02
TASKS = {"arc_challenge": 1172, "hellaswag": 10_042, "mmlu": 14_042}
CHANGES = ((0.005, 0.005), (0.01, 0.01), (0.025, 0.025), (0.0, 0.02), (0.015, 0.035), (0.04, 0.06))

STUDIES = {
    "hellaswag, 1 rung": ((10_042,), 1, 0.02),
    "mmlu, 1 rung": ((14_042,), 1, 0.02),
    "arc_challenge, 1 rung": ((1172,), 1, 0.02),
    "paper suite, 4 rungs": ((1172, 2376, 1319, 10_042, 14_042), 4, 0.02),
    "paper suite, 4 rungs, margin 1": ((1172, 2376, 1319, 10_042, 14_042), 4, 0.01),
    "builtin suite, 4 rungs, margin 5": ((538, 465, 585), 4, 0.05),
}
"""documents of each task, rungs, margin"""
SHARES = (0.01, 0.02, 0.05, 0.1)
"""of changed answers, of rungs equal to the baseline and on the margin"""


def row(documents: int, gained: float, lost: float, draws: int) -> tuple[float, float, float, float, float]:
    """Shares decided by both, by Tango's alone and by bets alone; and the mean share of documents that both took, and
    that a gambler takes who knows the rates."""
    rng = np.random.default_rng(1)
    answers = rng.choice([1.0, -1.0, 0.0], (draws, documents), p=[gained, lost, 1 - gained - lost])

    def stopped(alpha: float) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        sides = [decided_after(each_alone(answers), MARGIN, side, alpha) for side in ("within", "beyond")]
        return np.minimum(*sides)

    def clears(one_sided_alpha: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        counts = [(int((one > 0).sum()), int((one < 0).sum())) for one in answers]
        known = {pair: tango_interval(*pair, documents, 1 - 2 * one_sided_alpha) for pair in set(counts)}
        return np.array([known[pair].low > -MARGIN or known[pair].high < -MARGIN for pair in counts])

    early = stopped(EARLY_ALPHA)
    both = (early <= documents) | clears(ONE_SIDED_ALPHA - EARLY_ALPHA)
    alone, bets = clears(ONE_SIDED_ALPHA), stopped(ONE_SIDED_ALPHA) <= documents
    taken = np.minimum(early, documents).mean() / documents
    least = taken_by_knowing(answers, gained, lost) / documents
    return float(both.mean()), float(alone.mean()), float(bets.mean()), float(taken), least


def taken_by_knowing(answers: np.ndarray[tuple[int, ...], np.dtype[np.float64]], gained: float, lost: float) -> float:
    """Mean number of documents after which the best constant stake against the margin has won, or all of them."""
    found = []
    for sign in (1.0, -1.0):  # against a difference of at most -MARGIN, and of at least that
        gains = {1.0: gained, -1.0: lost, 0.0: 1 - gained - lost}
        stakes = np.linspace(0, 0.99 / (1 - sign * MARGIN), 200)
        growth = sum(share * np.log1p(stakes * sign * (one + MARGIN)) for one, share in gains.items())
        best = stakes[np.argmax(growth)]
        enough = np.cumsum(np.log1p(best * sign * (answers + MARGIN)), axis=1) >= -np.log(EARLY_ALPHA)
        found.append(np.where(enough.any(axis=1), enough.argmax(axis=1) + 1, answers.shape[1]))
    return float(np.minimum(*found).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    columns = "decided | fixed n alone | bets alone | documents taken | knowing"
    print(f"| task | gained | lost | difference, points | {columns} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for task, documents in TASKS.items():
        for gained, lost in CHANGES:
            print_row(f"{task} | {gained:.1%} | {lost:.1%}", gained - lost, row(documents, gained, lost, draws))
    columns = "decided | fixed n alone | any wrong | any wrong, fixed n | documents taken"
    print(f"\n| study | gained | lost | difference, points | {columns} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for study, (tasks, rungs, margin) in STUDIES.items():
        for changed in SHARES:
            for difference in (0.0, -margin):
                lost = max((changed - difference) / 2, -difference)
                gained = lost + difference
                rung = tuple(ChangeRates(gained, lost, documents) for documents in tasks)
                shares = in_parts((rung,) * rungs, margin, draws // 6)
                print_row(f"{study} | {gained:.1%} | {lost:.1%}", difference, shares)


def in_parts(rungs: tuple[tuple[ChangeRates, ...], ...], margin: float, draws: int) -> StagedShares:
    """Means of simulations that fit memory."""
    parts = [simulate_stages(rungs, margin, PART, seed) for seed in range(-(-draws // PART))]
    return StagedShares(*np.mean(parts, axis=0).tolist())


def print_row(about: str, difference: float, shares: Iterable[float]) -> None:
    figures = " | ".join(f"{share:.1%}" for share in shares)
    print(f"| {about} | {100 * difference:+.1f} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
