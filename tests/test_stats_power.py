"""How many questions a verdict takes, against simulation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bitladder.records.base import Unknown
from bitladder.stats.aggregate import MeanOfTasks, SameQuestions, equivalent_documents
from bitladder.stats.paired import Comparison, PairedCounts, PairedMean
from bitladder.stats.power import (
    CHANGED_SHARES,
    ONE_SIDED_ALPHA,
    documents_for_power,
    documents_for_power_many_changes,
    is_decided,
    questions_as_observed,
    questions_to_decide,
    resolutions,
    resolvable_margin,
)
from simulation import ChangeRates, decided_share, simulated_questions_to_decide, within_share

# ((gained, lost, n) of each task, margin): above the margin and below it, few and many changes, one task and several.
UNDECIDED = [
    ([(15, 28, 400)], 0.05),
    ([(0, 3, 100)], 0.05),
    ([(29, 29, 1172)], 0.01),
    ([(3, 9, 400)], 0.01),
    ([(8, 20, 300)], 0.02),
    ([(3, 5, 100), (2, 9, 150), (4, 4, 150)], 0.05),
    ([(3, 5, 100), (2, 9, 150), (4, 4, 150)], 0.01),
    ([(9, 14, 100), (6, 12, 100), (8, 9, 100), (6, 15, 100)], 0.02),
]


def tasks_of(counts: list[tuple[int, int, int]]) -> list[PairedCounts]:
    return [PairedCounts(gained=gained, lost=lost, n=n) for gained, lost, n in counts]


def mean_of(tasks: Sequence[Comparison]) -> MeanOfTasks:
    return MeanOfTasks.model_validate({"parts": tuple(tasks)})


@pytest.mark.parametrize(("counts", "margin"), UNDECIDED)
def test_predicted_questions_are_within_30_percent_of_simulation(
    counts: list[tuple[int, int, int]], margin: float
) -> None:
    tasks = tasks_of(counts)
    predicted = questions_as_observed(mean_of(tasks), margin)
    assert isinstance(predicted, int)
    assert predicted == pytest.approx(simulated_questions_to_decide(tasks, margin, draws=250, seed=1), rel=0.3)


@pytest.mark.parametrize("redraw", [False, True])
@pytest.mark.parametrize(("counts", "margin"), UNDECIDED[:6])
def test_odds_of_a_verdict_are_even_at_the_predicted_number(
    counts: list[tuple[int, int, int]], margin: float, redraw: bool
) -> None:
    tasks = tasks_of(counts)
    predicted = questions_as_observed(mean_of(tasks), margin)
    assert isinstance(predicted, int)
    assert 0.4 < decided_share(tasks, predicted, margin, draws=500, seed=2, redraw=redraw) < 0.62


def test_prediction_is_the_first_total_that_decides_where_no_answer_changed() -> None:
    predicted = questions_as_observed(mean_of(tasks_of([(0, 0, 100)])), 0.01)
    assert isinstance(predicted, int)
    assert is_decided(tasks_of([(0, 0, 100 + predicted)])[0].interval(), 0.01)
    assert not is_decided(tasks_of([(0, 0, 99 + predicted)])[0].interval(), 0.01)


@pytest.mark.parametrize("counts", [(5, 5, 400), (0, 60, 400)])
def test_no_more_questions_where_it_is_decided(counts: tuple[int, int, int]) -> None:
    assert questions_to_decide(mean_of(tasks_of([counts])), 0.05) == 0


def test_no_number_decides_a_difference_on_the_margin() -> None:
    answer = questions_to_decide(mean_of(tasks_of([(20, 40, 400)])), 0.05)
    assert isinstance(answer, Unknown)
    assert "on the margin" in answer.reason


def test_scores_on_a_scale_and_parts_on_the_same_questions_are_extrapolated_too() -> None:
    mixed: list[Comparison] = [
        PairedMean(mean=-0.03, sd=0.2, n=100),
        SameQuestions(parts=(PairedCounts(gained=4, lost=11, n=200), PairedCounts(gained=5, lost=9, n=200))),
    ]
    predicted = questions_as_observed(mean_of(mixed), 0.01)
    assert isinstance(predicted, int)
    growth = 1 + predicted / (100 + 200)
    assert is_decided(mean_of(mixed).interval(growth=growth), 0.01)
    assert not is_decided(mean_of(mixed).interval(growth=0.99 * growth), 0.01)


def test_weights_change_the_number() -> None:
    tasks = tasks_of([(3, 5, 100), (2, 9, 150)])
    one, other = (MeanOfTasks(parts=tuple(tasks), weights=weights) for weights in ((1.0, 0.0), (0.0, 1.0)))
    assert questions_to_decide(one, 0.05) != questions_to_decide(other, 0.05)


@pytest.mark.parametrize("counts", [(0, 0, 60), (1, 1, 60), (1, 0, 60), (0, 2, 60), (3, 0, 60)])
@pytest.mark.parametrize("rungs", [1, 3])
def test_what_may_be_equal_takes_no_fewer_questions_than_a_plan_says(counts: tuple[int, int, int], rungs: int) -> None:
    """Ahead by luck, one of 60 would seem decided after few more, while the plan of the same study says 951."""
    gained, lost, n = counts
    alpha = ONE_SIDED_ALPHA / rungs
    told = questions_to_decide(mean_of(tasks_of([counts])), 0.01, 1 - 2 * alpha)
    planned = documents_for_power(0.01, max((gained + lost) / n, CHANGED_SHARES[0]), one_sided_alpha=alpha)
    assert isinstance(told, int)
    assert planned - n <= told or told == pytest.approx(planned - n, rel=0.15)
    as_observed = questions_as_observed(mean_of(tasks_of([(gained, lost, n)])), 0.01)
    assert isinstance(as_observed, int)
    assert told >= as_observed


@pytest.mark.parametrize(("margin", "share"), [(0.01, 0.005), (0.01, 0.05), (0.02, 0.01), (0.05, 0.02), (0.05, 0.1)])
def test_planned_documents_give_the_power_they_promise(margin: float, share: float) -> None:
    documents = documents_for_power(margin, share)
    assert 0.79 < within_share(ChangeRates(share / 2, share / 2, documents), margin, draws=10_000, seed=1) < 0.87


def test_textbook_number_of_documents_is_close_for_many_changes_only() -> None:
    assert documents_for_power_many_changes(0.01, 0.05) == 3924
    assert documents_for_power(0.01, 0.05) == pytest.approx(3924, rel=0.03)
    few = documents_for_power_many_changes(0.01, 0.005)
    assert within_share(ChangeRates(0.0025, 0.0025, few), 0.01, draws=10_000, seed=1) < 0.5


@pytest.mark.parametrize("documents", [1, 400, 4020])
def test_resolvable_margin_is_the_inverse(documents: int) -> None:
    margin = resolvable_margin(documents, 0.05)
    assert documents_for_power(margin * (1 + 1e-6), 0.05) <= documents <= documents_for_power(margin * (1 - 1e-6), 0.05)


def test_margins_and_documents_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0"):
        documents_for_power(0.0, 0.05)
    with pytest.raises(ValueError, match="got 5"):
        documents_for_power_many_changes(5, 0.05)
    with pytest.raises(ValueError, match="got 0"):
        resolvable_margin(0, 0.05)


def test_a_mean_over_tasks_tells_as_much_as_its_equivalent() -> None:
    """Of two tasks of one size, whose errors average, as much as one task of both together."""
    assert equivalent_documents([500, 500]) == 1000
    assert equivalent_documents([100, 10_000]) == pytest.approx(396, abs=0.1)  # the small one limits the mean
    with pytest.raises(ValueError, match="at least 1 task"):
        equivalent_documents([])


def test_the_plan_says_which_margin_it_resolves() -> None:
    """One point, equal rungs, 80% power, 5% changed: 4,020 documents with the variance at the margin, else 3,924."""
    (alone,) = resolutions([4020], 1, 0.01, changed_shares=[0.05])
    assert (alone.documents, alone.documents_many_changes) == (4020, 3924)
    assert alone.resolvable_margin == pytest.approx(0.01, rel=1e-3)
    (four,) = resolutions([4020], 4, 0.01, changed_shares=[0.05])
    assert four.resolvable_margin > alone.resolvable_margin
    assert four.documents == documents_for_power(0.01, 0.05, one_sided_alpha=0.025 / 4)
