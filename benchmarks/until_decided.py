"""Prints what stopping when decided costs and saves: python benchmarks/until_decided.py [--draws N]

Whole studies, with a study's own stages and looks, several rungs judged together, and an aggregate over tasks: the
share of verdicts that fall, beside the usual intervals' once all documents are asked; the share of studies with any
wrong verdict, by both, of which 5% are nominal; and the share of documents that a rung is asked. Half of the rows lie
on the margin: there any verdict is wrong.
"""

from __future__ import annotations

import argparse

import numpy as np

from simulation import ChangeRates
from staged_simulation import simulate_stages

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    draws = parser.parse_args().draws
    columns = "decided | fixed n | any wrong | any wrong, fixed n | documents asked"
    print(f"| study | gained | lost | difference, points | {columns} |")
    print("|---|---|---|---|---|---|---|---|---|")
    asked = []
    for study, (tasks, rungs, margin) in STUDIES.items():
        for changed in SHARES:
            for difference in (0.0, -margin):
                lost = max((changed - difference) / 2, -difference)
                gained = lost + difference
                rung = tuple(ChangeRates(gained, lost, documents) for documents in tasks)
                shares = simulate_stages((rung,) * rungs, margin, draws, seed=1)
                figures = " | ".join(f"{share:.1%}" for share in shares)
                print(f"| {study} | {gained:.1%} | {lost:.1%} | {100 * difference:+.1f} | {figures} |", flush=True)
                asked.append((difference == 0, shares.documents))
    equal = np.mean([share for is_equal, share in asked if is_equal])
    print(f"\ndocuments asked: {np.mean([share for _, share in asked]):.1%} of all, {equal:.1%} of equal rungs")


if __name__ == "__main__":
    main()
