"""The metric that is a score, pooling, chance and signal, and the pairing of two rungs' answers."""

import math

import pytest

from bitladder.records import AccuracyOutcome, DocumentOutcome, MetricInfo, TaskGroup
from bitladder.records.base import Unknown
from bitladder.stats.aggregate import weight_at
from bitladder.stats.interval import Interval
from bitladder.stats.paired import tango_interval
from bitladder.summary import scores
from bitladder.summary.questions import QuestionPool, make_pots, most_correlated, primary_metric


def metric(name: str, filter_name: str = "none", higher: bool = True, aggregation: str = "mean") -> MetricInfo:
    return MetricInfo(name=name, filter=filter_name, aggregation=aggregation, higher_is_better=higher)


def answers(
    values: list[float], *, choices: int | None = 4, name: str = "acc", hashes: list[str] | None = None
) -> AccuracyOutcome:
    hashes = hashes or [str(index) for index in range(len(values))]
    return AccuracyOutcome(
        documents_hash="d",
        output_type="multiple_choice" if choices else "generate_until",
        metrics=(metric(name),),
        harness_results={},
        documents=tuple(
            DocumentOutcome(
                doc_hash=doc_hash,
                prompt_hash=f"prompt of {doc_hash}",
                loglikelihoods=(-1.0,) * choices if choices else None,
                metrics={f"{name},none": value},
            )
            for value, doc_hash in zip(values, hashes, strict=True)
        ),
    )


def group(*tasks: str, pooling: str = "documents") -> TaskGroup:
    return TaskGroup.model_validate(
        {"name": "row", "title": "Row", "tasks": tasks, "pooling": pooling, "in_aggregate": True}
    )


def pools(values: list[float], *, choices: int | None = 4, hashes: list[str] | None = None) -> tuple[QuestionPool, ...]:
    return make_pots(group("t"), {"t": answers(values, choices=choices, hashes=hashes)})


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ([metric("f1"), metric("exact_match"), metric("acc_norm"), metric("acc")], "acc,none"),
        (
            [metric("exact_match", "flexible-extract"), metric("exact_match", "strict-match")],
            "exact_match,strict-match",
        ),
        ([metric("exact_match", "first"), metric("exact_match", "second")], "exact_match,first"),
        ([metric("ter", higher=False), metric("bleu"), metric("chrf")], "bleu,none"),
        ([metric("word_perplexity", higher=False), metric("byte_perplexity", higher=False)], "word_perplexity,none"),
    ],
)
def test_primary_metric(metrics: list[MetricInfo], expected: str) -> None:
    assert primary_metric(metrics).key == expected


def test_no_metric_is_no_score() -> None:
    with pytest.raises(ValueError, match="without metrics"):
        primary_metric([])


def test_share_is_a_mean_of_values_from_0_to_1() -> None:
    assert scores.is_share([answers([0.0, 0.5, 1.0])])
    assert not scores.is_share([answers([0.0, 1.0]), answers([0.0, 31.5])])


def test_documents_are_pooled_by_size() -> None:
    outcomes = {"a": answers([1.0, 0.0]), "b": answers([1.0] * 6, choices=2)}
    (pool,) = make_pots(group("a", "b"), outcomes)
    assert pool.score == 7 / 8
    assert pool.chance == pytest.approx((2 / 4 + 6 / 2) / 8)


def test_mean_of_parts_ignores_their_size() -> None:
    outcomes = {"a": answers([1.0, 0.0], choices=None), "b": answers([1.0] * 6, choices=None)}
    parts = make_pots(group("a", "b", pooling="mean"), outcomes)
    assert [pool.title for pool in parts] == ["a", "b"]
    assert scores.row_score(parts).value == 0.75
    assert scores.chance_of(parts) is None


def test_score_interval_is_wilsons_for_right_and_wrong() -> None:
    found = scores.row_score(pools([1.0] * 8 + [0.0] * 2)).percent()
    assert found.value == 80
    assert (found.low, found.high) == pytest.approx((49.0, 94.3), abs=0.1)


def test_equal_graded_answers_have_no_interval() -> None:
    found = scores.row_score(pools([0.5, 0.5])).percent()
    assert (found.value, found.low) == (50, None)
    assert found.reason == "all 2 values are equal, so they show no spread"


@pytest.mark.parametrize(
    ("right", "choices", "weight"),
    [
        (80, 4, 1.0),
        (35, 4, 1.0),
        (32, 4, 0.4),
        (30, 4, 0.0),
        (5, 4, 0.0),
        (10, None, 1.0),
        (7, None, 0.4),
        (5, None, 0.0),
    ],
)
def test_a_task_counts_by_how_far_above_chance_it_is_answered(right: int, choices: int | None, weight: float) -> None:
    answers = pools([1.0] * right + [0.0] * (100 - right), choices=choices)
    assert weight_at(scores.above_chance(answers)) == pytest.approx(weight)


def test_pairs_by_document_and_prompt_whatever_the_order() -> None:
    baseline = pools([1.0, 1.0, 0.0, 0.0], hashes=["a", "b", "c", "d"])
    variant = pools([1.0, 0.0, 0.0, 1.0], hashes=["d", "c", "b", "a"])
    assert scores.find_unpaired(variant, baseline) is None
    found = scores.compare(variant, baseline)
    assert (found.gained, found.lost, found.value) == (1, 1, 0.0)
    assert interval_of(found) == tango_interval(1, 1, 4)


def test_duplicate_documents_pair_by_occurrence() -> None:
    baseline = pools([1.0, 0.0, 1.0], hashes=["same", "same", "other"])
    variant = pools([0.0, 1.0, 1.0], hashes=["same", "same", "other"])
    found = scores.compare(variant, baseline)
    assert (found.gained, found.lost) == (1, 1)


def test_a_missing_document_is_told_not_dropped() -> None:
    baseline, variant = pools([1.0, 1.0, 0.0], hashes=["a", "b", "c"]), pools([1.0, 1.0], hashes=["a", "x"])
    assert scores.find_unpaired(variant, baseline) == Unknown(
        "Row: the questions differ by document or prompt: 2 of 3 are the baseline's alone, 1 are this rung's alone"
    )
    assert scores.find_unpaired(pools([1.0], hashes=["same"]), pools([1.0, 1.0], hashes=["same", "same"])) is not None


def test_graded_answers_take_the_paired_t_interval() -> None:
    found = scores.compare(pools([0.5, 0.75, 1.0]), pools([1.0, 0.75, 0.75]))
    assert (found.gained, found.lost) == (None, None)
    assert found.value == pytest.approx(-0.25 / 3)
    interval = interval_of(found)
    # differences -0.5, 0, 0.25: t(2, 0.975) = 4.3027, sd = 0.38188
    assert interval.high - interval.value == pytest.approx(4.3027 * 0.38188 / math.sqrt(3), rel=1e-4)


def test_graded_answers_that_all_moved_alike_have_no_interval() -> None:
    assert isinstance(scores.compare(pools([0.5, 0.5]), pools([0.75, 0.75])).comparison, Unknown)


def test_mean_of_parts_with_other_questions_takes_the_widest_interval() -> None:
    others = [f"other {index}" for index in range(100)]
    baseline = (*pools([1.0] * 50 + [0.0] * 50), *pools([1.0] * 50 + [0.0] * 50, hashes=others))
    variant = (*pools([1.0] * 40 + [0.0] * 60), *pools([1.0] * 48 + [0.0] * 52, hashes=others))
    found = scores.compare(variant, baseline)
    first, second = tango_interval(0, 10, 100), tango_interval(0, 2, 100)
    assert found.value == pytest.approx(-0.06)
    interval = interval_of(found)
    assert interval.low == pytest.approx((first.low + second.low) / 2)
    assert interval.high == pytest.approx((first.high + second.high) / 2)
    assert (found.gained, found.lost) == (0, 12)


def interval_of(found: scores.RowComparison) -> Interval:
    assert not isinstance(found.comparison, Unknown)
    return found.comparison.interval()


def rolling(name: str, aggregation: str, pairs: list[tuple[float, float]]) -> AccuracyOutcome:
    return AccuracyOutcome(
        documents_hash="d",
        output_type="loglikelihood_rolling",
        metrics=(metric(name, higher=False, aggregation=aggregation),),
        harness_results={f"{name},none": 7.5},
        documents=tuple(
            DocumentOutcome(doc_hash=str(index), prompt_hash="p", metrics={f"{name},none": pair})
            for index, pair in enumerate(pairs)
        ),
    )


PAIRS = [(-700.0, 1000.0), (-1500.0, 2000.0), (-210.0, 300.0)]


def test_bits_per_byte_is_lm_evals() -> None:
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity

    bits = scores.raw_score([rolling("bits_per_byte", "bits_per_byte", PAIRS)])
    perplexity = scores.raw_score([rolling("word_perplexity", "weighted_perplexity", PAIRS)])
    assert bits.value == pytest.approx(bits_per_byte(PAIRS))
    assert perplexity.value == pytest.approx(weighted_perplexity(PAIRS))
    for found in (bits, perplexity):
        assert found.low is not None and found.value is not None and found.high is not None
        assert 0 < found.low < found.value < found.high
    assert not scores.is_share([rolling("bits_per_byte", "bits_per_byte", PAIRS)])


def test_an_aggregation_of_lm_evals_own_is_shown_without_interval() -> None:
    found = scores.raw_score([rolling("mcc", "matthews_corrcoef", PAIRS)])
    assert (found.value, found.reason) == (7.5, "no interval: matthews_corrcoef is no mean over documents")
    two = [rolling("mcc", "matthews_corrcoef", PAIRS)] * 2
    assert scores.raw_score(two).value is None


def test_disagreement_with_lm_eval_is_told() -> None:
    right = answers([1.0, 0.0]).model_copy(update={"harness_results": {"acc,none": 0.5}})
    wrong = answers([1.0, 0.0]).model_copy(update={"harness_results": {"acc,none": 0.75}})
    assert scores.disagreements(right) == []
    assert scores.disagreements(wrong) == ["lm-eval says acc 0.750000, the stored answers give 0.500000."]


def test_a_document_in_two_tasks_of_a_pot_counts_once() -> None:
    values = [1.0] * 60 + [0.0] * 40
    before = [1.0] * 64 + [0.0] * 36
    outcomes = {"a": answers(values), "b": answers(values)}
    twice = make_pots(group("a", "b"), outcomes)
    found = scores.compare(twice, make_pots(group("a", "b"), {"a": answers(before), "b": answers(before)}))
    once = interval_of(scores.compare(pools(values), pools(before)))
    both = interval_of(found)
    assert both.low <= once.low and both.high >= once.high


def test_rows_are_correlated_as_far_as_they_share_documents() -> None:
    hashes = [str(index) for index in range(100)]
    row = pools([1.0, 0.0] * 50)
    repeated = pools([1.0, 0.0] * 100, hashes=hashes * 2)
    other = pools([1.0, 0.0] * 50, hashes=[f"other {index}" for index in range(100)])
    quarter = pools([1.0, 0.0] * 100, hashes=[*hashes[:25], *(f"other {index}" for index in range(175))])
    assert most_correlated(row, row) == most_correlated(row, repeated) == 1.0
    assert most_correlated(row, other) == 0.0
    assert most_correlated(row, quarter) == pytest.approx(math.sqrt(25 / 100 * 25 / 200))


def mass(values: list[float], true_shares: list[float | None]) -> tuple[QuestionPool, ...]:
    """Answers scored by the probability of all true choices."""
    outcome = answers(values)
    documents = tuple(
        one.model_copy(update={"true_share": share}) for one, share in zip(outcome.documents, true_shares, strict=True)
    )
    return make_pots(group("t"), {"t": outcome.model_copy(update={"documents": documents})})


def test_chance_of_a_probability_mass_is_the_share_of_true_choices() -> None:
    assert scores.chance_of(mass([0.3, 0.7], [0.5, 0.25])) == 0.375
    (unknown,) = mass([0.3, 0.7], [0.5, None])
    assert isinstance(unknown.chance, Unknown)
    assert scores.chance_of(mass([1.0, 0.0], [0.5, 0.5])) == 0.25  # right or wrong: mc1 of the same documents
