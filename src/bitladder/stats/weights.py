"""How much a task counts in the aggregate.

A model that can do next to nothing of a task has next to nothing to lose in it: a difference of 0 there hides what was
lost elsewhere, and a few lucky answers are a difference. So a task's weight rises with the score, without a step at
which luck would decide. It is read from the better of the two scores that are compared: read from the baseline's alone
it would count tasks where the baseline was lucky, beside which a rung that is its equal looks worse; read from the best
of several rungs it would let one of them change the verdict on another. benchmarks/interval_coverage.py simulates it:
of a rung equal to the baseline the mean difference is 0 to within 0.06 points, however many others there are; by the
baseline's score alone it is 0.5 to 2.5 points.
"""

NO_WEIGHT_POINTS, FULL_WEIGHT_POINTS = 5.0, 10.0
"""above chance, from which on a task counts, and from which on wholly"""


def weight_at(above_chance: float) -> float:
    """Of a task in the aggregate, from 0 to 1, by how far above chance the better of two scores is, a fraction."""
    return min(max((100 * above_chance - NO_WEIGHT_POINTS) / (FULL_WEIGHT_POINTS - NO_WEIGHT_POINTS), 0.0), 1.0)


def weight_reason(best: float, chance: float | None) -> str:
    """Why a task has no weight: the better score, and what guessing scores, as fractions of 1."""
    less = f"the better score, {100 * best:.1f}%, is less than {NO_WEIGHT_POINTS:.0f}"
    return f"{less}%" if chance is None else f"{less} points above chance, {100 * chance:.1f}%"
