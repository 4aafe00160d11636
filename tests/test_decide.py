"""Which rung is picked under which limits, and what is said about the others."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from bitladder.cli.results import recommend_command
from bitladder.decide import recommend
from bitladder.decide.recommendation import Limits, Recommendation, RungVerdict
from bitladder.errors import UnknownNameError, UserError
from bitladder.records import AccuracyTask, Finding, RungRecord, Status
from bitladder.records.base import Unknown
from bitladder.results.store import Store, load_results
from bitladder.summary.metrics import recovery_margin_points
from bitladder.summary.summarize import summarize
from bitladder.summary.table import Estimate, RungSummary, ScenarioSummary, Summary
from bitladder.units import MIB
from replay import BUILTIN_GROUPS, BUILTIN_TASKS, RUNGS, write_broken_replay, write_replay


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_replay(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def summary(directory: Path) -> Summary:
    return summarize(load_results(directory))


def verdict(answer: Recommendation, rung: str) -> RungVerdict:
    return next(found for found in answer.verdicts if found.rung == rung)


def picked(answer: Recommendation) -> dict[str, str]:
    return {pick.goal: pick.rung for pick in answer.picks}


def with_rung(summary: Summary, name: str, **changes: Any) -> Summary:
    """The summary with fields of one rung replaced; `difference` and `more` are those of its aggregate."""
    rungs = []
    for rung in summary.rungs:
        if rung.rung == name:
            aggregate = dict(changes.pop("aggregate", {}))
            rung = rung.model_copy(
                update={**changes, "aggregate": rung.aggregate.model_copy(update=aggregate)},
            )
        rungs.append(rung)
    return summary.model_copy(update={"rungs": tuple(rungs)})


def test_without_limits_every_goal_has_its_pick_within_the_default_margin(summary: Summary) -> None:
    answer = recommend(summary)
    assert picked(answer) == {"latency": "bf16", "throughput": "bf16", "memory": "nf4"}
    assert answer.limits.max_drop_points == 5.0
    assert answer.sentence.startswith("Of the 4 rungs within 5 points of bf16, deploy bf16 for latency (")
    assert verdict(answer, "fp4").outcome == "out"
    assert verdict(answer, "fp4").reasons == ("-11.43 points [-15.22, -7.65]: a drop of more than 5 points",)
    assert verdict(answer, "nf4").goals == ("memory",)
    assert (
        "nf4: within the margin, -1.43 points [-4.52, +1.64] against bf16 rules out a drop of 5 points"
        in answer.reasons
    )


def test_one_goal_is_one_sentence(summary: Summary) -> None:
    answer = recommend(summary, Limits(optimize="memory"))
    assert answer.sentence == (
        "Deploy nf4 for memory: 515.6 MiB of peak memory at batch 1, 110.6 MiB of it weights, the smallest of the 4 "
        "rungs within 5 points of bf16; requests of 32 prompt and 16 new tokens."
    )
    assert verdict(answer, "int8").reasons == (
        "memory: 560.4 MiB of peak memory at batch 1, 155.4 MiB of it weights, larger than nf4",
    )


def test_memory_is_a_runs_peak_and_not_the_weights(summary: Summary) -> None:
    """LLM.int8's weights are a half of BF16's, and what it takes beside them may be more than they save."""
    int8 = summary.rung("int8")
    assert int8 is not None
    for peak_bytes, picked_rung in ((1031 * MIB, "bf16"), (400 * MIB, "int8")):
        peak = Estimate(value=peak_bytes)
        scenarios = tuple(
            one.model_copy(update={"metrics": one.metrics | {"peak_memory_bytes": peak}})
            if one.scenario == "batch1"
            else one
            for one in int8.scenarios
        )
        two = with_rung(summary, "int8", scenarios=scenarios)
        two = two.model_copy(update={"rungs": tuple(rung for rung in two.rungs if rung.rung in ("bf16", "int8"))})
        assert picked(recommend(two, Limits(optimize="memory"))) == {"memory": picked_rung}


def test_a_peak_within_a_hundredth_is_as_good(summary: Summary) -> None:
    bf16 = summary.rung("bf16")
    assert bf16 is not None
    scenario = bf16.scenario("batch1")
    assert scenario is not None
    bytes_ = scenario.metric("peak_memory_bytes").value
    assert bytes_ is not None
    for share, picked_rung in ((0.995, "bf16"), (0.98, "fp16")):
        peak = Estimate(value=share * bytes_)
        fp16 = summary.rung("fp16")
        assert fp16 is not None
        scenarios = tuple(
            one.model_copy(update={"metrics": one.metrics | {"peak_memory_bytes": peak}})
            if one.scenario == "batch1"
            else one
            for one in fp16.scenarios
        )
        two = with_rung(summary, "fp16", scenarios=scenarios)
        two = two.model_copy(update={"rungs": tuple(rung for rung in two.rungs if rung.rung in ("bf16", "fp16"))})
        assert picked(recommend(two, Limits(optimize="memory"))) == {"memory": picked_rung}


def test_a_limit_of_what_enters_no_aggregate_leaves_nothing_to_ask(directory: Path) -> None:
    def all_asked(limited: str) -> bool:
        results = load_results(directory)
        items = (
            item.model_copy(update={"limit": 3 if item.task == limited else None})
            if isinstance(item, AccuracyTask)
            else item
            for item in results.study.items
        )
        study = results.study.model_copy(update={"items": tuple(items)})
        return summarize(replace(results, study=study)).all_questions_asked

    assert all_asked("bitladder_prose")
    assert not all_asked("bitladder_knowledge")


def test_speeds_are_of_requests_of_one_length(summary: Summary) -> None:
    assert recommend(summary).sentence.endswith("; requests of 32 prompt and 16 new tokens.")

    def at_batch_1(**metrics: Estimate) -> Summary:
        fp16 = next(rung for rung in summary.rungs if rung.rung == "fp16")
        scenarios = (
            one.model_copy(update={"metrics": one.metrics | metrics}) if one.scenario == "batch1" else one
            for one in fp16.scenarios
        )
        return with_rung(summary, "fp16", scenarios=tuple(scenarios))

    def said(summary: Summary) -> list[str]:
        answer = recommend(summary, Limits(optimize="latency"))
        assert picked(answer) == {"latency": "bf16"}
        return [reason for reason in answer.reasons if "longer answers" in reason]

    later, sooner = Estimate(value=60.0, low=59.0, high=61.0), Estimate(value=1e-4, low=0.9e-4, high=1.1e-4)
    assert said(summary) == said(at_batch_1(ttft_s=later)) == []
    (reason,) = said(at_batch_1(ttft_s=later, tpot_s=sooner))
    assert reason.startswith("fp16 may be faster than bf16 for longer answers: 0.10 ms against ")
    assert " a token after the first, which takes 60 s against " in reason
    assert said(at_batch_1(ttft_s=later, tpot_s=sooner.model_copy(update={"high": 10.0}))) == []


def test_memory_limit_is_held_against_the_peak_at_batch_1(summary: Summary) -> None:
    answer = recommend(summary, Limits(max_memory_bytes=600 * MIB, optimize="throughput"))
    assert picked(answer) == {"throughput": "int8"}
    assert verdict(answer, "bf16").reasons == ("661.5 MiB of peak memory at batch 1, more than 600.0 MiB",)
    assert "int8: 560.4 MiB of peak memory at batch 1" in answer.reasons


def test_the_sentence_names_what_was_limited(summary: Summary) -> None:
    one = recommend(summary, Limits(max_memory_bytes=600 * MIB, optimize="memory"))
    assert one.sentence == (
        "Deploy nf4 for memory: 515.6 MiB of peak memory at batch 1, 110.6 MiB of it weights, the smallest of the 2 "
        "rungs within 5 points of bf16 and 600.0 MiB of peak memory at batch 1 (1% to spare); requests of 32 prompt "
        "and 16 new tokens."
    )
    several = recommend(summary, Limits(max_memory_bytes=600 * MIB))
    assert several.sentence.endswith("; peak memory at batch 1: 560.4 MiB (int8) and 515.6 MiB (nf4).")
    alone = recommend(summary, Limits(max_memory_bytes=521 * MIB))
    assert alone.sentence.startswith(
        "Deploy nf4, the only rung shown to be within 5 points of bf16 and 521.0 MiB of peak memory at"
    )


def test_differences_within_the_noise_are_told(summary: Summary) -> None:
    """Of the ratio of the two, whatever their own intervals do."""
    answer = recommend(summary, Limits(optimize="throughput"))
    assert picked(answer) == {"throughput": "bf16"}
    assert "distinguishably" not in " ".join((answer.sentence, *answer.reasons))
    assert verdict(answer, "fp16").reasons[0].endswith("at the largest batch, slower than bf16")
    alike = recommend(with_ratio(summary, "bf16", "fp16", Estimate(value=1.1, low=0.9, high=1.3)), answer.limits)
    assert "; fp16 not distinguishably slower" in alike.sentence
    assert any(reason.startswith("fp16 is not distinguishably slower") for reason in alike.reasons)
    assert not any("int8" in reason for reason in alike.reasons)
    assert verdict(alike, "fp16").reasons[0].endswith("not distinguishably slower than bf16")


def test_the_baseline_stays_where_none_is_distinguishably_better(summary: Summary) -> None:
    """fp16 as the baseline: bf16 is the fastest, and then for all that is known no faster."""
    limits = Limits(optimize="throughput")
    other = summary.model_copy(update={"baseline": "fp16"})
    assert picked(recommend(other, limits)) == {"throughput": "bf16"}
    known = Estimate(value=0.9, low=0.7, high=1.1)
    answer = recommend(with_ratio(other, "fp16", "bf16", known), limits)
    assert picked(answer) == {"throughput": "fp16"}
    assert "none of the 4 rungs within 5 points of fp16 distinguishably faster" in answer.sentence
    assert "; bf16 not distinguishably faster or slower" in answer.sentence
    assert any(reason.startswith("bf16 is not distinguishably faster: ") for reason in answer.reasons)
    assert verdict(answer, "bf16").reasons[0].endswith("not distinguishably faster than fp16")


def test_what_is_surely_better_goes_before_what_may_be(summary: Summary) -> None:
    """int8 as the baseline: bf16 has the best figure, but only fp16 is known to be faster."""
    other = summary.model_copy(update={"baseline": "int8"})
    noisy = with_ratio(other, "int8", "bf16", Estimate(value=0.7, low=0.4, high=1.2))
    noisy = with_ratio(noisy, "fp16", "bf16", Estimate(value=0.9, low=0.5, high=1.5))
    answer = recommend(noisy, Limits(optimize="throughput"))
    assert picked(answer) == {"throughput": "fp16"}
    assert "the first of the 4 rungs within 5 points of int8 that is distinguishably faster than the" in answer.sentence
    assert "bf16 not distinguishably faster" in answer.sentence


def test_equal_memory_is_no_reason_to_leave_the_baseline(summary: Summary) -> None:
    rungs = [one for one in summary.rungs if one.rung in ("bf16", "fp16")]
    fp16 = next(one for one in rungs if one.rung == "fp16")
    ahead = fp16.aggregate.difference_points.model_copy(update={"value": 0.3})
    two = with_rung(summary.model_copy(update={"rungs": tuple(rungs)}), "fp16", aggregate={"difference_points": ahead})
    answer = recommend(two, Limits(optimize="memory"))
    assert picked(answer) == {"memory": "bf16"}
    assert "fp16 is exactly equal in memory; bf16 is the baseline" in answer.reasons


def with_ratio(summary: Summary, rung: str, other: str, ratio: Estimate) -> Summary:
    """The summary, where the largest batch's rates of the two have this ratio."""

    def changed(scenario: ScenarioSummary) -> ScenarioSummary:
        if scenario.scenario != "max-batch":
            return scenario
        assert scenario.ratios[other].value is not None
        ratios = {name: {**getattr(scenario, name), other: ratio} for name in ("ratios", "ratios_together")}
        return scenario.model_copy(update=ratios)

    rungs = [
        one.model_copy(update={"scenarios": tuple(map(changed, one.scenarios))}) if one.rung == rung else one
        for one in summary.rungs
    ]
    return summary.model_copy(update={"rungs": tuple(rungs)})


def test_the_pick_says_what_it_rests_on(summary: Summary) -> None:
    answer = recommend(summary, Limits(optimize="throughput"))
    assert "bf16, max-batch: 2 batches: an interval from so few says little" in answer.reasons


def test_equal_memory_goes_to_the_higher_score(summary: Summary) -> None:
    answer = recommend(summary, Limits(optimize="memory", max_drop_points=20.0))
    assert picked(answer) == {"memory": "nf4"}
    assert "fp4 is exactly equal in memory; nf4 scores higher (-1.43 against -11.43 points)" in answer.reasons


def test_an_undecided_rung_is_not_picked_and_says_what_would_decide(directory: Path) -> None:
    strict = summarize(load_results(directory), margin_points=1.0)
    answer = recommend(strict, Limits(optimize="memory", max_drop_points=1.0))
    assert picked(answer) == {}
    assert verdict(answer, "int8").outcome == "undecided"
    (reason,) = verdict(answer, "int8").reasons
    assert reason.startswith("+0.00 points [-2.83, +2.64], so a drop of 1 point is neither shown nor ruled")
    assert "more questions would decide, and all of this suite were asked" in reason


def test_answers_that_settle_nothing_recommend_nothing(summary: Summary) -> None:
    """All that is known of every other rung is that it may be worse: no reason to deploy the baseline."""
    undecided = {
        "difference_points": Estimate(value=-1.0, low=-6.0, high=4.0),
        "verdict": "undecided",
        "more_questions": 1234,
    }
    for name in ("fp16", "int8", "nf4", "fp4"):
        summary = with_rung(summary, name, aggregate=undecided)
    answer = recommend(summary)
    asked = sum(task.questions for task in summary.rungs[0].tasks if task.name in summary.rungs[0].aggregate.tasks)
    assert not answer.picks
    assert answer.sentence == (
        f"Nothing is settled: {asked} questions cannot settle a drop of 5 points (about 1,700 would); until then stay "
        "with bf16."
    )
    assert {one.outcome for one in answer.verdicts} == {"within", "undecided"}
    out_of_memory = recommend(summary, Limits(max_memory_bytes=1))
    assert "bf16" in out_of_memory.sentence and "until then" not in out_of_memory.sentence


def test_a_copy_of_the_baseline_is_no_open_question(summary: Summary) -> None:
    for name in ("fp16", "int8", "nf4", "fp4"):
        summary = with_rung(summary, name, same_as="bf16")
    assert picked(recommend(summary))["memory"] == "bf16"


def test_accuracy_that_is_not_known_recommends_nothing(summary: Summary) -> None:
    for name in ("fp16", "int8", "nf4", "fp4"):
        unknown = Estimate.unknown(Unknown("int8 has no Language: timeout"))
        summary = with_rung(summary, name, aggregate={"difference_points": unknown})
    answer = recommend(summary)
    assert not answer.picks
    assert answer.sentence == (
        "Nothing is settled: no drop is known: int8 has no Language: timeout; until then stay with bf16."
    )


@pytest.mark.parametrize(
    ("right", "said"),
    [
        (
            0.25,
            "no task can tell precisions apart: Knowledge: the better score, 25.0%, is less than 5 points above",
        ),
        (None, "no task is scored by right and wrong answers; take such tasks; until then stay with bf16."),
    ],
)
def test_only_tasks_that_the_model_fails_are_too_hard(tmp_path: Path, right: float | None, said: str) -> None:
    """Prose has no right answers."""
    prose = [task for task in BUILTIN_TASKS if task.kind == "rolling"]
    others = [] if right is None else [replace(BUILTIN_TASKS[0], right=right)]
    names = {task.name for task in (*others, *prose)}
    groups = tuple(group for group in BUILTIN_GROUPS if group.name in names)
    rungs = {name: RUNGS[name] for name in ("bf16", "fp16")}
    replay = write_replay(tmp_path, tasks=(*others, *prose), groups=groups, rungs=rungs)
    sentence = recommend(summarize(load_results(replay))).sentence
    assert sentence.startswith(f"Nothing is settled: {said}")
    assert "Prose" not in sentence


def test_another_margin_than_the_summarys_has_no_count(summary: Summary) -> None:
    answer = recommend(summary, Limits(max_drop_points=1.0))
    assert "summarized for another margin" in verdict(answer, "int8").reasons[0]


def test_no_number_of_questions_decides_on_the_margin(summary: Summary) -> None:
    aggregate = {
        "difference_points": Estimate(value=-5.0, low=-7.0, high=-3.0),
        "more_questions": None,
        "more_questions_reason": "on the margin",
    }
    answer = recommend(with_rung(summary, "nf4", aggregate=aggregate))
    assert verdict(answer, "nf4").reasons[0].endswith("; on the margin")


@pytest.mark.parametrize(
    ("low", "high", "outcome"), [(-4.99, 1.0, "within"), (-5.0, 1.0, "undecided"), (-9.0, -5.1, "out")]
)
def test_the_limit_is_held_against_the_unfavourable_end(
    summary: Summary, low: float, high: float, outcome: str
) -> None:
    aggregate = {"difference_points": Estimate(value=(low + high) / 2, low=low, high=high)}
    answer = recommend(with_rung(summary, "int8", aggregate=aggregate))
    assert verdict(answer, "int8").outcome == outcome


def test_a_difference_without_interval_is_not_within(summary: Summary) -> None:
    aggregate = {"difference_points": Estimate(value=0.0, reason="all 3 values are equal")}
    answer = recommend(with_rung(summary, "int8", aggregate=aggregate))
    assert verdict(answer, "int8").reasons == ("+0.00 points without an interval: all 3 values are equal",)


def test_memory_is_to_blame(summary: Summary) -> None:
    answer = recommend(summary, Limits(max_memory_bytes=100 * MIB))
    assert answer.picks == ()
    assert answer.blame == "--max-memory 100.0 MiB is to blame, without it bf16, fp16, int8 and nf4 would do."
    assert answer.sentence == f"No rung is left: {answer.blame}"


def test_drop_is_to_blame(summary: Summary) -> None:
    """Not where more questions may tell."""
    lost = {"difference_points": Estimate(value=-8.0, low=-9.0, high=-7.0)}
    worse = with_rung(with_rung(summary, "int8", aggregate=lost), "nf4", aggregate=lost)
    answer = recommend(worse, Limits(max_memory_bytes=600 * MIB))
    assert answer.blame == "--max-drop 5pt is to blame, without it int8, fp4 and nf4 would do."
    answer = recommend(summary, Limits(max_memory_bytes=600 * MIB, max_drop_points=0.5))
    assert answer.sentence == (
        "Nothing is settled: 420 questions cannot settle a drop of 0.5 points for int8 and nf4; fp4 loses more; and "
        "bf16 is out: 661.5 MiB of peak memory at batch 1, more than 600.0 MiB."
    )


def test_a_recovery_is_named_as_it_was_given(summary: Summary) -> None:
    lost = {"difference_points": Estimate(value=-8.0, low=-9.0, high=-7.0)}
    worse = with_rung(with_rung(summary, "int8", aggregate=lost), "nf4", aggregate=lost)
    score = summary.baseline_score.value
    assert score == pytest.approx(70.0)
    answer = recommend(worse, Limits(max_memory_bytes=600 * MIB, min_recovery_percent=95.0))
    assert answer.limits.max_drop_points == 3.5, "5% of 70%"
    assert answer.blame == "--min-recovery 95% is to blame, without it int8, fp4 and nf4 would do."
    nf4 = recommend(summary, Limits(min_recovery_percent=93.0, optimize="memory"))
    assert "rungs within 4.9 points of bf16 (93% of its score)" in nf4.sentence
    assert any(reason.endswith("] of its score is kept") and " rules out a drop of" in reason for reason in nf4.reasons)


@pytest.mark.parametrize(
    ("score", "kept", "points"),
    [(50.0, 99.9, 0.05), (50.0, 99.7, 0.15), (50.0, 99.0, 0.5), (80.0, 99.5, 0.4), (33.33, 99.0, 0.33)],
)
def test_what_a_recovery_leaves_to_lose_is_not_rounded_twice(score: float, kept: float, points: float) -> None:
    assert recovery_margin_points(kept, "bf16", Estimate(value=score)) == points


def test_both_limits_are_to_blame(summary: Summary) -> None:
    only = summary.model_copy(update={"rungs": tuple(rung for rung in summary.rungs if rung.rung == "fp4")})
    answer = recommend(only, Limits(max_memory_bytes=100 * MIB))
    assert answer.blame == (
        "lifting one limit would admit none; --max-memory 100.0 MiB and --max-drop 5pt are both in the way."
    )


def test_a_broken_study_blames_no_limit(tmp_path: Path) -> None:
    answer = recommend(summarize(load_results(write_broken_replay(tmp_path))))
    assert answer.blame == "every rung failed or lacks a measurement that the limits need; run the study again."
    assert verdict(answer, "nf4").reasons == ("refused: the audit found FP4 where NF4 was declared",)
    assert verdict(answer, "fp16").reasons[0].startswith("its drop is unknown: bf16 has no Knowledge")


def test_a_failed_audit_is_out_whatever_the_status_says(tmp_path: Path) -> None:
    store = Store(write_replay(tmp_path, broken_rungs={"nf4": ("refused", "found FP4")}))
    refused = store.read_rung("nf4")
    assert refused is not None
    store.write_rung(RungRecord(**{**dict(refused), "status": "ok", "reason": None}))
    answer = recommend(summarize(store.load()))
    assert verdict(answer, "nf4").reasons == ("failed its audit: found FP4",)


def test_a_rung_without_the_goals_measurement_is_out(tmp_path: Path) -> None:
    ends = {("bf16", "max-batch"): ("does_not_fit", "needs 9 GiB")}
    found = summarize(load_results(write_replay(tmp_path, ends=ends)))  # type: ignore[arg-type]
    one = recommend(found, Limits(optimize="throughput"))
    assert picked(one) == {"throughput": "fp16"}
    assert verdict(one, "bf16").outcome == "out"
    assert verdict(one, "bf16").reasons == ("throughput is unknown: does not fit: needs 9 GiB",)
    assert picked(recommend(found)) == {"latency": "bf16", "throughput": "fp16", "memory": "nf4"}


def test_a_goal_that_nobody_within_the_limits_has(tmp_path: Path) -> None:
    ends = {(rung, "max-batch"): ("failed", "killed") for rung in ("bf16", "fp16", "int8", "fp4", "nf4")}
    found = summarize(load_results(write_replay(tmp_path, ends=ends)))  # type: ignore[arg-type]
    answer = recommend(found, Limits(optimize="throughput"))
    assert answer.blame == "throughput is known of none of the rungs within the limits (bf16, fp16, int8, nf4)."


def test_what_is_unknown_for_one_reason_is_told_once(tmp_path: Path) -> None:
    ends = {("nf4", "batch1"): ("failed", "disturbed: by others"), ("nf4", "max-batch"): ("timeout", "no answer")}
    found = summarize(load_results(write_replay(tmp_path, ends=ends)))  # type: ignore[arg-type]
    assert verdict(recommend(found), "nf4").reasons == (
        "latency and memory are unknown: failed: disturbed: by others",
        "throughput is unknown: timeout: no answer",
    )


def test_unknown_memory_is_not_within_a_limit(tmp_path: Path) -> None:
    ends = {("bf16", "batch1"): ("timeout", "no answer")}
    found = summarize(load_results(write_replay(tmp_path, ends=ends)))  # type: ignore[arg-type]
    answer = recommend(found, Limits(max_memory_bytes=2000 * MIB))
    assert verdict(answer, "bf16").reasons == ("its peak memory at batch 1 is unknown: timeout: no answer",)


def test_an_unfinished_study_says_so_first(tmp_path: Path) -> None:
    directory = write_replay(tmp_path)
    planned = len(load_results(directory).study.items) * len(load_results(directory).study.rungs)
    for path in sorted((directory / "records").iterdir())[:7]:
        path.unlink()
    answer = recommend(summarize(load_results(directory)))
    assert answer.sentence.startswith(f"Unfinished, {planned - 7} of {planned} measurements so far. ")
    for path in (*(directory / "records").iterdir(), *(directory / "rungs").iterdir()):
        path.unlink()
    answer = recommend(summarize(load_results(directory)))
    assert {found.outcome for found in answer.verdicts} == {"unmeasured"}
    assert verdict(answer, "nf4").reasons == ("not made yet; run the study again to go on",)
    assert answer.sentence == (
        f"Unfinished, 0 of {planned} measurements so far. No rung is left: no rung has all that the limits need yet; "
        "run the study again to go on."
    )


def test_what_the_rest_of_the_study_decides_is_unmeasured_and_what_failed_is_out(tmp_path: Path) -> None:
    absent = {("int8", "bitladder_language"), ("fp16", "batch1")}
    ends = {("nf4", "bitladder_language"): ("failed", "killed")}
    found = summarize(load_results(write_replay(tmp_path, absent=absent, ends=ends)))  # type: ignore[arg-type]
    answer = recommend(found, Limits(max_memory_bytes=2000 * MIB))
    outcomes = {rung.rung: rung.outcome for rung in answer.verdicts}
    assert (outcomes["int8"], outcomes["fp16"], outcomes["nf4"]) == ("unmeasured", "unmeasured", "out")
    assert "failed" not in " ".join(verdict(answer, "int8").reasons + verdict(answer, "fp16").reasons)


def test_without_the_baseline_no_drop_is_known(tmp_path: Path) -> None:
    found = summarize(load_results(write_replay(tmp_path, rungs={"nf4": RUNGS["nf4"]})))
    assert found.rungs[0].aggregate.difference_points.reason == "bf16 has no Knowledge: it is not in the study"
    assert found.rungs[0].tasks[0].score.value is not None
    assert recommend(found).blame == "no drop is known without bf16; run the study with bf16 among its rungs."


def test_performance_alone_still_decides_and_says_what_is_missing(tmp_path: Path) -> None:
    found = summarize(load_results(write_replay(tmp_path, only="performance")))
    answer = recommend(found)
    assert picked(answer) == {"latency": "bf16", "throughput": "fp4", "memory": "fp4"}
    assert answer.limits.max_drop_points is None
    assert "accuracy was not measured, so no drop is limited" in answer.reasons
    assert answer.sentence.endswith("; accuracy was not measured.")
    (tie,) = (reason for reason in answer.reasons if reason.startswith("nf4 is exactly equal in memory; "))
    assert tie.startswith("nf4 is exactly equal in memory; fp4 is faster (")
    for absent, pick in ((("fp4",), "nf4"), (("fp4", "nf4"), "int8")):
        replay = write_replay(tmp_path / pick, only="performance", absent={(rung, "batch1") for rung in absent})
        answer = recommend(summarize(load_results(replay)), Limits(optimize="memory"))
        assert picked(answer) == {"memory": pick}
        assert all(verdict(answer, rung).outcome == "unmeasured" for rung in absent)
    found = summarize(load_results(write_replay(tmp_path / "whole", only="performance")))
    with pytest.raises(UserError, match="--max-drop needs accuracy"):
        recommend(found, Limits(max_drop_points=1.0))


def test_accuracy_alone_still_decides_memory(tmp_path: Path) -> None:
    found = summarize(load_results(write_replay(tmp_path, only="accuracy")))
    answer = recommend(found)
    assert picked(answer) == {"memory": "nf4"}
    assert "latency was not measured; run the study with the scenario batch1" in answer.reasons
    with pytest.raises(UserError, match="--optimize latency needs the scenario batch1"):
        recommend(found, Limits(optimize="latency"))
    with pytest.raises(UserError, match="--max-memory needs the scenario batch1"):
        recommend(found, Limits(max_memory_bytes=MIB))


def test_every_rung_has_a_verdict_and_a_reason(summary: Summary) -> None:
    for limits in (Limits(), Limits(optimize="latency"), Limits(max_memory_bytes=1)):
        answer = recommend(summary, limits)
        assert [found.rung for found in answer.verdicts] == [rung.rung for rung in summary.rungs]
        assert all(found.reasons for found in answer.verdicts)


app = typer.Typer()
app.command()(recommend_command)


def test_command_prints_sentence_reasons_and_table(directory: Path) -> None:
    ran = CliRunner().invoke(app, [str(directory), "--max-drop", "5pt", "--optimize", "memory"])
    assert ran.exit_code == 0
    lines = ran.stdout.splitlines()
    assert lines[0] == "Deploy nf4 for memory: 111 instead of 256 MiB of weights, no measurable loss, 62% slower."
    assert any(re.match(r"\| nf4 +\| deploy for memory +\|.* within the margin \|", line) for line in lines)
    sentence = "Deploy nf4 for memory: 515.6 MiB of peak memory at batch 1, 110.6 MiB of it weights"
    (place,) = (index for index, line in enumerate(lines) if line.startswith(sentence))
    assert lines[place + 1].startswith("- nf4: 515.6 MiB")
    assert "[-15.22, -7.65]" in ran.stdout


def test_command_exits_1_where_no_rung_is_left(directory: Path) -> None:
    ran = CliRunner().invoke(app, [str(directory), "--max-memory", "100MiB"])
    assert ran.exit_code == 1
    assert ran.stdout.startswith("No precision can be recommended: none meets the limits.\n")
    assert "\nNo rung is left: --max-memory 100.0 MiB is to blame" in ran.stdout


def test_command_prints_json_and_counts_for_its_own_margin(directory: Path) -> None:
    ran = CliRunner().invoke(app, [str(directory), "--max-drop", "1pt", "--json"])
    answer = json.loads(ran.stdout)
    assert answer["limits"]["max_drop_points"] == 1.0
    assert "about 13,000 would" in (Recommendation.model_validate(answer).blame or "")
    assert "1,200 more questions" in ran.stdout


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--optimize", "memry"], UnknownNameError, "unknown goal 'memry'; nearest: memory"),
        (["--max-drop", "1%"], UserError, "--max-drop: found '1%', expected percentage points such as 1pt or 0.5pt"),
        (["--max-drop", "0"], UserError, "--max-drop: found '0', expected more than 0"),
        (["--max-memory", "two"], UserError, "--max-memory: found 'two', expected a size with its unit such as 2GiB"),
        (["--max-memory", "0GiB"], UserError, "--max-memory: found '0GiB', expected more than 0"),
    ],
)
def test_bad_flags(directory: Path, flags: list[str], error: type[Exception], message: str) -> None:
    ran = CliRunner().invoke(app, [str(directory), *flags])
    assert type(ran.exception) is error
    assert message in str(ran.exception)


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, [str(tmp_path)])
    assert isinstance(ran.exception, UserError) and "no study.json" in str(ran.exception)


def test_divergence_is_in_no_verdict_and_no_recommendation(tmp_path: Path) -> None:
    """Whether it is measured, failed or is still to come."""
    without = recommend(summarize(load_results(write_replay(tmp_path / "without"))))
    for number, changes in enumerate(
        (
            {},
            {"ends": {("fp4", "divergence"): ("failed", "out of memory")}},
            {"absent": {("fp4", "divergence"), ("bf16", "divergence")}},
        )
    ):
        directory = write_replay(tmp_path / str(number), divergence=True, **changes)  # type: ignore[arg-type]
        found = recommend(summarize(load_results(directory)))
        assert (found.verdicts, found.picks, found.reasons) == (without.verdicts, without.picks, without.reasons)
        assert found.sentence.endswith(without.sentence)


def test_before_the_baseline_is_asked_nothing_is_picked(tmp_path: Path) -> None:
    summary = summarize(load_results(write_replay(tmp_path / "study")))
    baseline = summary.rung(summary.baseline)
    assert baseline is not None
    alone = recommend(summary.model_copy(update={"rungs": (baseline,)}))
    assert alone.sentence == (
        "Nothing is settled: nothing was compared with bf16, the only rung of the study; until then stay with bf16."
    )
    unasked = baseline.model_copy(update={"missing_tasks": ("arc_easy",)})
    answer = recommend(summary.model_copy(update={"rungs": (unasked,)}))
    assert answer.picks == ()
    assert [one.outcome for one in answer.verdicts] == ["unmeasured"]


def test_several_rungs_are_ahead_of_the_baseline_only_together(summary: Summary) -> None:
    """Alone a rung's ratio excludes 1, beside all others it doesn't: it is no reason to leave the baseline."""
    for rung in summary.rungs:
        for one in rung.scenarios:
            assert set(one.ratios) == set(one.ratios_together)
            for name, alone in one.ratios.items():
                together = one.ratios_together[name]
                if alone.low is not None and alone.high is not None and len(one.ratios) > 1:
                    assert together.low is not None and together.high is not None
                    assert together.low < alone.low < alone.high < together.high


def test_the_sentence_says_what_is_undecided(summary: Summary) -> None:
    """One of the smaller rungs is within the margin and deployed, the other may be."""
    answer = recommend(with_rung(summary, "nf4", aggregate=UNDECIDED))
    assert picked(answer)["memory"] == "int8"
    assert answer.sentence.endswith("; nf4 undecided.")


UNDECIDED = {
    "difference_points": Estimate(value=-1.0, low=-6.0, high=4.0),
    "verdict": "undecided",
    "more_questions": 1234,
    "more_questions_reason": None,
}
BEYOND = {"difference_points": Estimate(value=-50.0, low=-60.0, high=-40.0), "verdict": "beyond the margin"}
ON_THE_MARGIN = UNDECIDED | {"more_questions": None, "more_questions_reason": "it lies on the margin"}


def with_aggregates(summary: Summary, **aggregates: dict[str, Any]) -> Summary:
    for name, aggregate in aggregates.items():
        summary = with_rung(summary, name, aggregate=aggregate)
    return summary


ENOUGH = "420 questions cannot settle a drop of 5 points"


@pytest.mark.parametrize(
    ("aggregates", "max_memory_bytes", "said"),
    [
        (
            dict.fromkeys(("fp16", "int8", "nf4", "fp4"), UNDECIDED),
            600 * MIB,
            f"{ENOUGH} for int8, fp4 and nf4 (about 1,700 would); and bf16 is out: 661.5 MiB of peak memory at batch "
            "1, more than 600.0 MiB.",
        ),
        (
            {"fp16": UNDECIDED, "int8": UNDECIDED, "nf4": BEYOND},
            None,
            f"{ENOUGH} for fp16 and int8 (about 1,700 would); fp4 and nf4 lose more; until then stay with bf16.",
        ),
        (
            {"fp16": BEYOND, "int8": BEYOND, "nf4": ON_THE_MARGIN},
            None,
            f"{ENOUGH} for nf4 (of nf4 it lies on the margin); fp16, int8 and fp4 lose more; until then "
            "stay with bf16.",
        ),
        (
            {"fp16": BEYOND, "int8": UNDECIDED, "nf4": ON_THE_MARGIN},
            None,
            f"{ENOUGH} for int8 and nf4 (about 1,700 would; of nf4 it lies on the margin); fp16 and fp4 lose more; "
            "until then stay with bf16.",
        ),
    ],
)
def test_what_is_out_settles_nothing_of_the_rest(
    summary: Summary, aggregates: dict[str, dict[str, Any]], max_memory_bytes: int | None, said: str
) -> None:
    """Whether by its memory or by its drop."""
    answer = recommend(with_aggregates(summary, **aggregates), Limits(max_memory_bytes=max_memory_bytes))
    assert answer.sentence == f"Nothing is settled: {said}"
    assert not answer.picks


def test_a_rung_that_memory_alone_keeps_out_is_no_comparison(summary: Summary) -> None:
    """A limit that only excludes FP32, say, made a green recommendation of answers that settle nothing."""
    bf16 = summary.rung("bf16")
    assert bf16 is not None
    undecided = with_aggregates(summary, **dict.fromkeys(("fp16", "int8", "nf4", "fp4"), UNDECIDED))
    large = tuple(
        one.model_copy(update={"metrics": one.metrics | {"peak_memory_bytes": Estimate(value=2000 * MIB)}})
        for one in bf16.scenarios
    )
    found = with_rung(undecided, "fp16", scenarios=large)
    limits = Limits(max_memory_bytes=1000 * MIB)
    assert recommend(found, limits).sentence == (
        f"Nothing is settled: {ENOUGH} for int8, fp4 and nf4 (about 1,700 would); until then stay with bf16."
    )
    lost = with_aggregates(found, int8=BEYOND, nf4=BEYOND, fp4=BEYOND)
    assert set(picked(recommend(lost, limits)).values()) == {"bf16"}, "each of the rest is decided"


def test_the_baseline_stays_for_a_goal_at_which_an_undecided_rung_is_better(summary: Summary) -> None:
    """fp16 is within the margin and no smaller: of memory nothing is settled."""
    found = with_aggregates(summary, int8=UNDECIDED, nf4=UNDECIDED)
    answer = recommend(found)
    assert picked(answer) == {"latency": "bf16", "throughput": "bf16"}
    assert (
        "; for memory stay with bf16 until more questions decide on int8 and nf4, which are smaller; "
        in answer.sentence
    )
    memory = recommend(found, Limits(optimize="memory"))
    assert not memory.picks
    assert memory.sentence == (
        f"Nothing is settled: {ENOUGH} for int8 and nf4 (about 1,700 would); until then stay with bf16."
    )


@pytest.mark.parametrize("only", [None, "performance"])
def test_of_rungs_that_could_not_be_made_nothing_is_settled(
    tmp_path: Path, only: Literal["performance"] | None
) -> None:
    broken: dict[str, tuple[Status, str]] = {name: ("failed", "No space left") for name in RUNGS if name != "bf16"}
    answer = recommend(summarize(load_results(write_replay(tmp_path, broken_rungs=broken, only=only))))
    assert not answer.picks
    assert answer.sentence == (
        "Nothing is settled: nothing was compared with bf16: fp16, int8, fp4 and nf4 could not be made or measured; "
        "until then stay with bf16."
    )


def test_that_the_machine_emulates_16_bits_is_told(summary: Summary) -> None:
    """FP32 may be faster there, and is no rung of the default ladder."""
    bf16 = summary.rung("bf16")
    assert bf16 is not None and bf16.audit is not None
    slow = Finding(
        check="hardware", severity="warning", message="the CPU emulates BF16", data={"type": "BF16", "native": False}
    )
    emulated = with_rung(summary, "bf16", audit=bf16.audit.model_copy(update={"findings": (slow,)}))
    answer = recommend(emulated, Limits(optimize="latency"))
    assert "bf16: the CPU emulates BF16" in answer.reasons
    assert answer.sentence.endswith("; fp32 was not measured and may be faster, since this machine emulates BF16.")
    assert "emulates" not in recommend(emulated, Limits(optimize="memory")).sentence, "which no speed decides"
    assert "emulates" not in recommend(summary).sentence


def test_a_limit_of_memory_is_held_against_each_rungs_own_peak(summary: Summary) -> None:
    """666 MiB were refused beside 671, and 661 admitted, though both differ by less than a hundredth."""

    def needing(rung: RungSummary, peak_bytes: float) -> RungSummary:
        scenarios = tuple(
            one.model_copy(update={"metrics": one.metrics | {"peak_memory_bytes": Estimate(value=peak_bytes)}})
            for one in rung.scenarios
        )
        return rung.model_copy(update={"scenarios": scenarios, "loaded_bytes": int(peak_bytes)})

    peaks = {"bf16": 671 * MIB, "fp16": 666 * MIB, "int8": 661 * MIB, "fp4": 500 * MIB, "nf4": 503 * MIB}
    found = summary.model_copy(update={"rungs": tuple(needing(rung, peaks[rung.rung]) for rung in summary.rungs)})
    for limit_mib in range(480, 690):
        limit = limit_mib * MIB
        verdicts = recommend(found, Limits(max_memory_bytes=limit, max_drop_points=50.0)).verdicts
        assert {one.rung for one in verdicts if one.outcome == "out"} == {
            rung for rung, peak in peaks.items() if 1.01 * peak > limit
        }
    out = {one.rung: one.reasons[0] for one in recommend(found, Limits(max_memory_bytes=667 * MIB)).verdicts}
    assert out["bf16"] == "671.0 MiB of peak memory at batch 1, more than 667.0 MiB"
    assert out["fp16"] == "666.0 MiB of peak memory at batch 1 and the 1% by which runs differ, more than 667.0 MiB"
    pick = recommend(found, Limits(optimize="memory", max_drop_points=50.0)).picks[0]
    assert (pick.rung, pick.alike) == ("fp4", ("nf4",))
