"""Whether a rung's flips are above what flips by itself."""

import numpy as np
import pytest

from bitladder.records import AccuracyOutcome, DocumentOutcome, MetricInfo
from bitladder.stats.power import ONE_SIDED_ALPHA
from bitladder.stats.verdict import above_floor, judge_flips
from bitladder.summary.comparison import _kind, paired_documents
from textbook import midp_mcnemar


def flags(count: int, of: int, start: int = 0) -> list[bool]:
    return [start <= index < start + count for index in range(of)]


def test_above_floor_is_one_sided_midp() -> None:
    flips, floor = flags(16, 100), flags(6, 100, start=50)
    assert above_floor(flips, floor) == pytest.approx(midp_mcnemar(6, 16) / 2)
    assert above_floor(floor, flips) == pytest.approx(1 - midp_mcnemar(6, 16) / 2)


def test_the_same_documents_are_no_evidence_whatever_their_count() -> None:
    assert above_floor(flags(30, 100), flags(30, 100)) == 1.0
    assert above_floor([False] * 10, [False] * 10) == 1.0


def test_documents_are_paired_not_counted() -> None:
    """12 flips against 4 on the floor: shown where the 4 are among the 12, and not where all 16 are others."""
    assert judge_flips(flags(12, 200), flags(4, 200), flags(0, 200)).verdict == "above the floor"
    assert judge_flips(flags(12, 200), flags(5, 200, start=100), flags(0, 200)).verdict == "not settled"


def test_both_floors_have_to_be_exceeded() -> None:
    flips = flags(20, 200)
    assert judge_flips(flips, flags(2, 200), flags(2, 200, start=100)).verdict == "above the floor"
    assert judge_flips(flips, flags(2, 200), flags(15, 200, start=100)).verdict == "not settled"
    assert judge_flips(flips, flags(15, 200, start=100), flags(2, 200)).verdict == "not settled"


def test_a_rung_that_only_flips_like_its_floor_is_seldom_told_apart() -> None:
    rng = np.random.default_rng(0)
    found = [judge_flips(*((rng.random(500) < 0.05).tolist() for _ in range(3))).verdict for _ in range(400)]
    assert found.count("above the floor") / 400 <= 0.025


def test_twice_the_floor_is_seldom_called_indistinguishable() -> None:
    """With 500 documents nothing is shown of it in most runs, which is no sameness."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(400):
        flips = (rng.random(500) < 0.04).tolist()
        own, other = ((rng.random(500) < 0.02).tolist() for _ in range(2))
        found.append(judge_flips(flips, own, other).verdict)
    assert found.count("not settled") / 400 > 0.5
    assert found.count("indistinguishable") / 400 <= 0.025


def test_what_flips_by_itself_is_indistinguishable_once_that_is_shown() -> None:
    noisy = flags(30, 6000)
    assert judge_flips(noisy, noisy, flags(0, 6000)).verdict == "indistinguishable", "its own floor explains it"
    assert judge_flips(flags(0, 500), flags(0, 500), flags(0, 500)).verdict == "indistinguishable"
    assert judge_flips(flags(0, 100), flags(0, 100), flags(0, 100)).verdict == "not settled"


def test_lengths_have_to_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        above_floor([True], [True, False])


def outcome(choices: list[int], scores: list[float]) -> AccuracyOutcome:
    return AccuracyOutcome(
        documents_hash="d",
        output_type="multiple_choice",
        metrics=(MetricInfo(name="acc", filter="none", aggregation="mean", higher_is_better=True),),
        harness_results={},
        documents=tuple(
            DocumentOutcome(
                doc_hash=str(index),
                prompt_hash="p",
                loglikelihoods=tuple(-1.0 if place == choice else -3.0 for place in range(3)),
                metrics={"acc,none": score},
            )
            for index, (choice, score) in enumerate(zip(choices, scores, strict=True))
        ),
    )


def test_an_answer_flips_by_its_choice_or_its_score() -> None:
    first = outcome([0, 1, 2, 0], [1.0, 0.0, 0.0, 0.0])
    second = outcome([0, 2, 1, 1], [1.0, 0.0, 1.0, 0.0])
    shuffled = second.model_copy(update={"documents": second.documents[::-1]})
    kinds = [_kind(before, after, "acc,none") for before, after in paired_documents(first, shuffled)]
    assert kinds == [None, "changed", "gained", "changed"]


def test_documents_that_flip_together_count_once() -> None:
    """Six of one source are one flip, of which nothing can be said; six of six sources are told."""
    flips, floor = flags(6, 60), flags(0, 60)
    sources = [index // 6 for index in range(60)]
    assert above_floor(flips, floor) == pytest.approx(0.5**7)
    assert above_floor(flips, floor, sources) == pytest.approx(0.25)
    assert above_floor(flips, floor, list(range(60))) == above_floor(flips, floor)


def test_clusters_keep_the_level() -> None:
    """Whole clusters flip, as often in one pass as in the other: seldom is one above the other."""
    random = np.random.default_rng(5)
    sources = np.repeat(np.arange(80), 6)
    told = sum(
        above_floor(some_flip(random, sources), some_flip(random, sources), sources.tolist()) <= ONE_SIDED_ALPHA
        for _ in range(1000)
    )
    assert told < 40


def some_flip(random: np.random.Generator, sources: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> list[bool]:
    flipped: list[bool] = (random.random(80) < 0.1)[sources].tolist()
    return flipped
