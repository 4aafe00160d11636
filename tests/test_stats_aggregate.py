"""Intervals over several tasks."""

from __future__ import annotations

import pytest

from bitladder.stats.aggregate import MeanOfTasks, SameQuestions, combine, combine_dependent
from bitladder.stats.interval import Interval, wilson_interval
from bitladder.stats.paired import PairedCounts, tango_interval

TASKS = [
    PairedCounts(gained=3, lost=5, n=100),
    PairedCounts(gained=2, lost=9, n=150),
    PairedCounts(gained=0, lost=0, n=40),
]


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_combining_recovers_variances_as_newcombe_published() -> None:
    """56/70 against 48/80: 0.0524 to 0.3339 (Newcombe 1998, Statistics in Medicine 17:873-890, table II, method 10).

    The mean of a proportion and of another one negated is half of their difference.
    """
    one, other = wilson_interval(56, 70), wilson_interval(48, 80)
    negated = Interval(low=-other.high, value=-other.value, high=-other.low, confidence=other.confidence)
    half = combine([one, negated])
    assert (round(2 * half.low, 4), round(2 * half.high, 4)) == (0.0524, 0.3339)


def test_weights_are_shares_of_their_sum() -> None:
    parts = [task.interval() for task in TASKS]
    assert combine(parts, [2, 2, 2]) == combine(parts)
    assert combine(parts, [1, 0, 0]).low == pytest.approx(parts[0].low)
    weighted = combine(parts, [3, 1, 0])
    assert weighted.value == pytest.approx(0.75 * parts[0].value + 0.25 * parts[1].value)
    assert weighted.value - weighted.low == pytest.approx(
        ((0.75 * (parts[0].value - parts[0].low)) ** 2 + (0.25 * (parts[1].value - parts[1].low)) ** 2) ** 0.5
    )


def test_aggregate_of_one_task_is_its_own_interval() -> None:
    alone, tango = MeanOfTasks(parts=tuple(TASKS[:1])).interval(), tango_interval(3, 5, 100)
    assert (alone.low, alone.value, alone.high) == pytest.approx((tango.low, tango.value, tango.high))


def test_aggregate_is_the_mean_over_tasks_and_narrower_than_they_are() -> None:
    mean = MeanOfTasks(parts=tuple(TASKS))
    interval = mean.interval()
    assert interval.value == pytest.approx((-2 / 100 - 7 / 150 + 0) / 3)
    assert width(interval) < min(width(task.interval()) for task in TASKS)
    assert width(mean.interval(0.99)) > width(interval) > width(mean.interval(growth=2.0))


def test_parts_on_the_same_questions_do_not_narrow_each_other() -> None:
    part = PairedCounts(gained=4, lost=11, n=200)
    assert SameQuestions(parts=(part, part)).interval() == part.interval()
    other = PairedCounts(gained=9, lost=2, n=200)
    together = SameQuestions(parts=(part, other))
    independent = combine([part.interval(), other.interval()])
    assert together.n_questions == 200
    assert together.interval().value == pytest.approx(independent.value)
    assert together.interval().low < independent.low < independent.high < together.interval().high


@pytest.mark.parametrize("method", [combine, combine_dependent])
@pytest.mark.parametrize(
    ("confidences", "weights", "message"),
    [
        ([], None, "no interval"),
        ([0.95, 0.9], None, "confidences differ"),
        ([0.95, 0.95], [1.0], "2 weights"),
        ([0.95, 0.95], [1.0, -1.0], "at least 0"),
        ([0.95, 0.95], [0.0, 0.0], "not all 0"),
    ],
)
def test_what_cannot_be_combined_is_refused(
    method: object, confidences: list[float], weights: list[float] | None, message: str
) -> None:
    assert callable(method)
    with pytest.raises(ValueError, match=message):
        method([tango_interval(1, 2, 50, confidence) for confidence in confidences], weights)


def test_rows_of_the_same_documents_do_not_narrow_each_other() -> None:
    part = TASKS[0].interval()
    alike = combine([part, part], correlations=[[1.0, 1.0], [1.0, 1.0]])
    assert (alike.low, alike.value, alike.high) == pytest.approx((part.low, part.value, part.high))
    others = [task.interval() for task in TASKS]
    ones = [[1.0] * 3] * 3
    whole, dependent = combine(others, correlations=ones), combine_dependent(others)
    assert (whole.low, whole.high) == pytest.approx((dependent.low, dependent.high))
    none = [[float(one == other) for other in range(3)] for one in range(3)]
    independent = combine(others)
    found = combine(others, correlations=none)
    assert (found.low, found.high) == pytest.approx((independent.low, independent.high))
