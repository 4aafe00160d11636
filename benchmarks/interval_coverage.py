"""Prints how well bitladder's intervals keep their promise, simulated: python benchmarks/interval_coverage.py

Coverage of Tango's interval and of the aggregate where few answers change, with Wald's beside it; of four intervals for
documents in clusters; how often any of several verdicts is wrong; the predicted number of further questions against the
simulated one; the power at the planned number of documents. Same seed, same tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product

from bitladder.records.base import Unknown
from bitladder.stats.aggregate import MeanOfTasks
from bitladder.stats.paired import PairedCounts
from bitladder.stats.power import documents_for_power, documents_for_power_many_changes, questions_as_observed
from simulation import (
    ChangeRates,
    ClusteredTask,
    WeighedTask,
    clustered_coverage,
    coverage,
    decided_share,
    simulated_questions_to_decide,
    wald_interval,
    weighed_difference_points,
    within_share,
    wrong_verdict_share,
)

CHANGED_SHARES = (0.0, 0.005, 0.01, 0.02, 0.05)
GAINED_OF_CHANGED = (0.5, 0.25, 0.0)
SIZES = (
    (100,),
    (400,),
    (1172,),
    (100, 100, 100),
    (150, 150, 150, 150),
    (1172, 2376, 1319, 10042, 14042),
)
CLUSTERS = {
    "30 templates of 8 to 26": (8, 10, 12, 14, 16, 18, 20, 22, 24, 26) * 3,
    "1,000 sources of 1 or 2": (1,) * 838 + (2,) * 162,
    "8 passages of 50": (50,) * 8,
    "60 passages of 16": (16,) * 60,
    "200 passages of 10": (10,) * 200,
    "300 of 2 and 5 of 120": (2,) * 300 + (120,) * 5,
}
CORRELATIONS = (0.0, 0.3, 0.6, 0.9)
CLUSTERED_CHANGES = (
    (0.002, 0.002, 1.0),
    (0.0, 0.02, 1.0),
    (0.05, 0.05, 1.0),
    (0.0, 0.1, 1.0),
    (0.0, 0.03, 0.5),
    (0.0, 0.1, 0.5),
)
"""gained, lost, and by how much: half a point is a graded score's"""
JUDGED = (
    ((0.0, 0.02),),
    ((0.0, 0.02),) * 4,
    ((0.02, 0.04),) * 4,
    ((0.0, 0.02), (0.02, 0.04), (0.02, 0.02), (0.0, 0.0)),
    ((0.02, 0.02),) * 4,
)
UNDECIDED = (
    (((15, 28, 400),), 0.05),
    (((8, 20, 300),), 0.05),
    (((0, 3, 100),), 0.05),
    (((29, 29, 1172),), 0.01),
    (((3, 9, 400),), 0.01),
    (((0, 0, 100),), 0.01),
    (((20, 60, 1172),), 0.02),
    (((3, 5, 100), (2, 9, 150), (4, 4, 150)), 0.05),
    (((3, 5, 100), (2, 9, 150), (4, 4, 150)), 0.01),
    (((5, 12, 100), (6, 12, 100), (8, 9, 100), (6, 15, 100)), 0.05),
    (((20, 25, 1172), (40, 44, 2376), (3, 6, 1319), (90, 100, 1000), (200, 230, 1404)), 0.01),
)


def print_row(cells: Sequence[object]) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def print_header(title: str, columns: Sequence[str]) -> None:
    print(f"\n{title}\n")
    print_row(columns)
    print_row(["---"] * len(columns))


def print_coverage(draws: int, seed: int) -> None:
    print_header(
        f"Coverage of the 95% interval of the mean difference ({draws} runs a row)",
        ["questions of each task", "changed answers, %", "gained of them, %", "Tango", "Wald"],
    )
    for sizes, share, gained in product(SIZES, CHANGED_SHARES, GAINED_OF_CHANGED):
        tasks = [ChangeRates(share * gained, share * (1 - gained), n) for n in sizes]
        shares = [coverage(tasks, draws, seed), coverage(tasks, draws, seed, wald_interval)]
        print_row([", ".join(map(str, sizes)), 100 * share, 100 * gained, *(f"{covered:.3f}" for covered in shares)])


def print_clusters(draws: int, seed: int) -> None:
    print_header(
        f"Coverage of the 95% interval where documents come in clusters ({draws} runs a row)",
        [
            "clusters",
            "correlation within one",
            "gained, %",
            "lost, %",
            "by",
            "on the effective sample (ours)",
            "cluster-robust t",
            "the wider of that and Tango's",
            "Tango's",
        ],
    )
    for name, sizes in CLUSTERS.items():
        for correlation, (gained, lost, by) in product(CORRELATIONS, CLUSTERED_CHANGES):
            found = clustered_coverage(ClusteredTask(sizes, gained, lost, correlation, by), draws, seed)
            shares = [f"{covered:.3f}" for covered in found]
            print_row([name, correlation, f"{100 * gained:g}", f"{100 * lost:g}", by, *shares])


def print_wrong_verdicts(draws: int, seed: int) -> None:
    print_header(
        f"Any verdict wrong, of rungs judged together against a margin of 2 points, 5% allowed ({draws} runs a row)",
        ["true differences, points", "changed answers, %", "documents", "wrong"],
    )
    for rungs, n in product(JUDGED, (400, 1172, 5000)):
        rates = [ChangeRates(gained, lost, n) for gained, lost in rungs]
        truths = ", ".join(f"{100 * (gained - lost):+g}" for gained, lost in rungs)
        changed = ", ".join(f"{100 * (gained + lost):g}" for gained, lost in rungs)
        print_row([truths, changed, n, f"{wrong_verdict_share(rates, 0.02, draws, seed):.3f}"])


def print_task_weights(draws: int, seed: int) -> None:
    print_header(
        "Mean difference of a rung equal to the baseline, points, of a task with little above chance",
        ["n", "above chance", "answers changed", "other tasks", "by the better score", "by the baseline's"],
    )
    for n, above, changed, others in product((60, 200, 1000), (0.03, 0.06, 0.09), (0.05, 0.15), (0, 2)):
        task = WeighedTask(n, 0.25 + above, 0.25, changed)
        by_better, by_baseline = (
            weighed_difference_points(task, draws, seed, others=others, by_baseline=one) for one in (False, True)
        )
        cells = [n, f"{100 * above:.0f} points", f"{changed:.0%}", others]
        print_row([*cells, f"{by_better:+.2f}", f"{by_baseline:+.2f}"])


def print_questions_to_decide(draws: int, seed: int) -> None:
    print_header(
        f"More questions until decided ({draws} continuations a row)",
        [
            "gained, lost, n of each task",
            "margin",
            "difference, 95%",
            "predicted",
            "simulated",
            "ratio",
            "decided there",
        ],
    )
    for counts, margin in UNDECIDED:
        tasks = [PairedCounts(gained=gained, lost=lost, n=n) for gained, lost, n in counts]
        mean = MeanOfTasks(parts=tuple(tasks))
        now = mean.interval()
        predicted = questions_as_observed(mean, margin)
        if isinstance(predicted, Unknown):
            raise AssertionError(f"no prediction for {counts} at {margin}")
        simulated = simulated_questions_to_decide(tasks, margin, draws, seed)
        decided = decided_share(tasks, predicted, margin, draws, seed + 1)
        difference = f"{now.value:+.4f} [{now.low:+.4f}, {now.high:+.4f}]"
        shown = " ".join(str(task) for task in counts)
        print_row([shown, margin, difference, predicted, simulated, f"{predicted / simulated:.2f}", f"{decided:.2f}"])


def print_power(draws: int, seed: int) -> None:
    print_header(
        f"Equal rungs found within the margin at the planned number of documents, 80% wanted ({draws} runs a row)",
        ["margin", "changed answers, %", "documents", "found within", "textbook documents", "found within"],
    )
    for margin, share in product((0.01, 0.02, 0.05), CHANGED_SHARES[1:]):
        cells: list[object] = [margin, 100 * share]
        for planned in (documents_for_power, documents_for_power_many_changes):
            documents = planned(margin, share)
            found = within_share(ChangeRates(share / 2, share / 2, documents), margin, draws, seed)
            cells += [documents, f"{found:.3f}"]
        print_row(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000, help="simulated runs a row")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print_coverage(options.draws, options.seed)
    print_clusters(min(options.draws, 1000), options.seed)
    print_wrong_verdicts(min(options.draws, 2000), options.seed)
    print_task_weights(max(options.draws, 40_000), options.seed)
    print_questions_to_decide(min(options.draws, 1000), options.seed)
    print_power(options.draws, options.seed)


if __name__ == "__main__":
    main()
