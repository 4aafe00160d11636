"""Prints what stopping when decided costs and saves: python benchmarks/until_decided.py

One task, one rung. Bets may stop at any document with 0.005 of each side's 0.025; Tango's interval at the end has
0.020. Beside it Tango's alone with 0.025, and bets alone with 0.025. Rows at a difference of -2 points lie on the
margin: there any verdict is wrong.
"""

from __future__ import annotations

import argparse

import numpy as np

from bitladder.stats.betting import EARLY_ALPHA, decided_after, each_alone
from bitladder.stats.paired import tango_interval
from bitladder.stats.power import ONE_SIDED_ALPHA

MARGIN = 0.02
TASKS = {"arc_challenge": 1172, "hellaswag": 10_042}
CHANGES = ((0.005, 0.005), (0.01, 0.01), (0.025, 0.025), (0.0, 0.02), (0.015, 0.035), (0.04, 0.06))


def row(documents: int, gained: float, lost: float, draws: int) -> tuple[float, float, float, float]:
    """Shares decided by both, by Tango's alone and by bets alone, and the mean share of documents that both took."""
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
    return float(both.mean()), float(alone.mean()), float(bets.mean()), float(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    print("| task | gained | lost | difference, points | decided | fixed n alone | bets alone | documents taken |")
    print("|---|---|---|---|---|---|---|---|")
    for task, documents in TASKS.items():
        for gained, lost in CHANGES:
            shares = row(documents, gained, lost, draws)
            print(
                f"| {task} | {gained:.1%} | {lost:.1%} | {100 * (gained - lost):+.1f} | "
                + " | ".join(f"{share:.1%}" for share in shares)
                + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
