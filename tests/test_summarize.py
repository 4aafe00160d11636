"""A whole study's figures from replayed records, and the published tables from published scores."""

import math
from functools import cache
from pathlib import Path

import pytest

from bitladder.errors import UserError
from bitladder.records import AccuracyOutcome, BatchProbe, DocumentOutcome, MetricInfo, Scenario, TaskGroup
from bitladder.records.base import Unknown
from bitladder.results.store import Store, load_results
from bitladder.stats.paired import PairedCounts
from bitladder.stats.verdict import shared_confidence
from bitladder.summary.accuracy import summarize_aggregates, summarize_tasks
from bitladder.summary.metrics import METRICS, derive_metrics
from bitladder.summary.performance import Timeline, notes_on, speedup
from bitladder.summary.published import published_study
from bitladder.summary.row import Row
from bitladder.summary.summarize import summarize
from bitladder.summary.table import RungSummary, Summary, TaskSummary
from bitladder.units import MIB
from replay import PAPER_GROUPS, RUNGS, machine, scenario_items, write_broken_replay, write_replay
from replay_outcomes import RungReplay, TaskReplay, performance_outcome


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return summarize(load_results(write_replay(tmp_path_factory.mktemp("builtin"))))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return summarize(load_results(write_broken_replay(tmp_path_factory.mktemp("broken"))))


def rung_of(summary: Summary, name: str) -> RungSummary:
    rung = summary.rung(name)
    assert rung is not None
    return rung


def task_of(summary: Summary, rung: str, name: str) -> TaskSummary:
    return next(task for task in rung_of(summary, rung).tasks if task.name == name)


def metric(summary: Summary, rung: str, scenario: str, name: str) -> float:
    found = rung_of(summary, rung).scenario(scenario)
    assert found is not None
    value = found.metric(name).value
    assert value is not None
    return value


PUBLISHED = {row.task: tuple(row.score_percent.values()) for row in published_study().tasks}
PUBLISHED_DROPS = {  # Table 2
    "arc_challenge": (0.00, 0.48, -2.97),
    "arc_easy": (0.06, -0.99, -8.61),
    "gsm8k": (-3.94, 2.40, -53.25),
    "hellaswag": (0.02, -0.65, -7.49),
    "mmlu": (-0.16, -2.60, -26.86),
    "mmlu_humanities": (0.34, -1.50, -21.00),
    "mmlu_other": (-0.14, -2.95, -28.19),
    "mmlu_social_sciences": (-0.10, -2.06, -35.15),
    "mmlu_stem": (-1.05, -4.43, -24.55),
}
MMLU_SIZES = {"mmlu_humanities": 4705, "mmlu_other": 3107, "mmlu_social_sciences": 3077, "mmlu_stem": 3153}
COLUMNS = tuple(published_study().rungs.values())


CHOSEN = ("arc_challenge", "arc_easy", "hellaswag")


@cache
def published_document(task: str, index: int, choices: int | None, value: float) -> DocumentOutcome:
    name = "acc" if choices else "exact_match"
    return DocumentOutcome(
        doc_hash=f"{task} {index}",
        prompt_hash="p",
        loglikelihoods=(-1.0,) * choices if choices else None,
        metrics={f"{name},none": value},
    )


def published_outcome(task: str, percent: float, questions: int, choices: int | None) -> AccuracyOutcome:
    """That share of right answers, to the nearest question."""
    count = round(percent / 100 * questions)
    return AccuracyOutcome(
        documents_hash="d",
        output_type="multiple_choice" if choices else "generate_until",
        metrics=(
            MetricInfo(
                name="acc" if choices else "exact_match", filter="none", aggregation="mean", higher_is_better=True
            ),
        ),
        harness_results={},
        documents=tuple(published_document(task, index, choices, float(index < count)) for index in range(questions)),
    )


@pytest.fixture(scope="module")
def published_rows() -> list[Row]:
    """The study's rows: ten thousand questions a task, so that two decimals are exact; MMLU's groups in their sizes."""
    leaves: dict[str, dict[str, AccuracyOutcome | Unknown]] = {}
    for column, rung in enumerate(COLUMNS):
        of = {name: row[column] for name, row in PUBLISHED.items()}
        leaves[rung] = {
            **{
                name: published_outcome(name, of[name], 10_000, 4)
                for name in ("arc_challenge", "arc_easy", "hellaswag")
            },
            **{name: published_outcome("gsm8k", of["gsm8k"], 10_000, None) for name in ("gsm8k", "gsm8k_cot")},
            **{name: published_outcome(name, of[name], size, 4) for name, size in MMLU_SIZES.items()},
        }
    groups = [
        group.model_copy(update={"tasks": tuple(MMLU_SIZES) if group.name == "mmlu" else (group.name,)})
        if group.name.startswith("mmlu")
        else group
        for group in PAPER_GROUPS
    ]
    return [Row(group, "fp32", leaves) for group in groups]


def test_pooled_groups_give_the_published_mmlu(published_rows: list[Row]) -> None:
    mmlu = next(row for row in published_rows if row.group.name == "mmlu")
    for column, rung in enumerate(COLUMNS):
        assert 100 * mmlu.score(rung).value == pytest.approx(PUBLISHED["mmlu"][column], abs=0.01)


@pytest.mark.slow
def test_published_table_2_follows_from_table_1(published_rows: list[Row]) -> None:
    for row in published_rows:
        name = row.group.name
        scores = PUBLISHED[name]
        # A score is printed to 0.01, and MMLU's groups here are a whole number of questions.
        half = 0.005 + (50 / MMLU_SIZES[name] if name in MMLU_SIZES else 0)
        found = summarize_tasks(row, 1.0)
        for rung, score, expected in zip(COLUMNS[1:], scores[1:], PUBLISHED_DROPS[name], strict=True):
            rounding = 0.005 + 100 * half * (1 + score / scores[0]) / scores[0]
            assert found[rung].relative_drop_percent.value == pytest.approx(expected, abs=rounding), (name, rung)


def test_published_aggregate(published_rows: list[Row]) -> None:
    found = list(summarize_aggregates(published_rows, COLUMNS, "fp32", 1.0).values())
    assert found[0].tasks == ("arc_challenge", "arc_easy", "gsm8k", "hellaswag", "mmlu")
    of = {name: PUBLISHED[name] for name in found[0].tasks}
    for column, aggregate in enumerate(found):
        better = {name: max(of[name] if column == 0 else (of[name][0], of[name][column])) for name in of}
        weights = {name: min((better[name] - (0 if name == "gsm8k" else 25) - 5) / 5, 1) for name in of}
        weights = {name: max(weight, 0) for name, weight in weights.items()}
        mean = sum(weights[name] * of[name][column] for name in of) / sum(weights.values())
        assert aggregate.score_percent.value == pytest.approx(mean, abs=0.01)
    assert 0 < weights["gsm8k"] < 1


def test_recovery_shows_what_the_relative_drop_hides(published_rows: list[Row]) -> None:
    mmlu = next(row for row in published_rows if row.group.name == "mmlu")
    assert summarize_tasks(mmlu, 1.0)["fp4"].recovery_above_chance_percent.value == pytest.approx(100 - 79.8, abs=0.1)


def test_replayed_answers_come_back(builtin: Summary) -> None:
    task = task_of(builtin, "fp4", "bitladder_knowledge")
    assert (task.questions, task.gained, task.lost, task.changed) == (140, 1, 17, 18)
    assert task.score.value == pytest.approx(100 * (112 + 1 - 17) / 140)
    found = task.difference_points
    assert found.value == pytest.approx(100 * -16 / 140)
    counts = PairedCounts(gained=1, lost=17, n=140)
    assert found.high == pytest.approx(100 * counts.interval(shared_confidence(4)).high)
    assert found.low == pytest.approx(
        100 * counts.interval(shared_confidence(2)).low
    )  # fp16 and int8 are within and left
    assert task.relative_drop_percent.value == pytest.approx(-100 * 16 / 112)
    assert task.recovery_percent.value == pytest.approx(100 * 96 / 112)
    assert task.recovery_above_chance_percent.value == pytest.approx(100 * (96 - 35) / (112 - 35))


def test_aggregate_is_the_mean_of_the_tasks_with_its_own_interval(builtin: Summary) -> None:
    aggregate = rung_of(builtin, "fp4").aggregate
    assert aggregate.tasks == ("bitladder_knowledge", "bitladder_language", "bitladder_arithmetic")
    assert (aggregate.gained, aggregate.lost, aggregate.verdict) == (3, 51, "beyond the margin")
    one = PairedCounts(gained=1, lost=17, n=140).interval()  # the other three are within and left
    difference = aggregate.difference_points
    assert difference.value is not None and difference.low is not None
    assert difference.value == pytest.approx(100 * one.value)
    assert difference.value - difference.low == pytest.approx(100 * (one.value - one.low) / math.sqrt(3))


def test_prose_is_shown_and_in_no_aggregate(builtin: Summary) -> None:
    prose = task_of(builtin, "nf4", "bitladder_prose")
    assert (prose.unit, prose.metric, prose.weight) == ("raw", "bits_per_byte", None)
    assert prose.score.value == pytest.approx(1.09, abs=0.01)
    assert prose.difference_points.value is None


def test_more_questions_belong_to_the_margin_in_force(tmp_path: Path) -> None:
    results = load_results(write_replay(tmp_path, only="accuracy"))
    default, strict = summarize(results), summarize(results, margin_points=1.0)
    assert (default.margin_points, default.default_margin_points, strict.margin_points) == (5.0, 5.0, 1.0)
    assert rung_of(default, "nf4").aggregate.more_questions == 0
    more = rung_of(strict, "nf4").aggregate.more_questions
    assert more is not None and more > 1000
    with pytest.raises(ValueError, match="margin"):
        summarize(results, margin_points=0.0)


def test_paper_suite_has_its_rows_and_gpu_figures(tmp_path: Path) -> None:
    summary = summarize(load_results(write_replay(tmp_path, suite="paper", gpu=True, batches=60)))
    assert summary.default_margin_points == 1.0
    rows = [task.name for task in rung_of(summary, "int8").tasks]
    assert rows == [group.name for group in PAPER_GROUPS]
    gsm8k, mmlu = task_of(summary, "fp4", "gsm8k"), task_of(summary, "fp4", "mmlu")
    assert (gsm8k.questions, gsm8k.chance_percent, mmlu.questions) == (100, None, 280)
    assert gsm8k.gained == 2 and gsm8k.lost == 24
    arc = task_of(summary, "fp4", "arc_easy")
    assert arc.score_norm.value is not None and arc.score.value is not None
    assert arc.score_norm.value > arc.score.value
    scenario = rung_of(summary, "bf16").scenario("max-batch")
    assert scenario is not None
    assert {name for name, value in scenario.metrics.items() if value.value is None} == set()
    energy = scenario.metric("gpu_energy_j").value
    assert energy == pytest.approx(61.0 * (metric(summary, "bf16", "max-batch", "total_time_s")), rel=0.01)


def test_tasks_without_signal_leave_the_aggregate_of_every_rung(tmp_path: Path) -> None:
    tasks = (
        TaskReplay("good", "choice", 100, 0.8),
        TaskReplay("guessed", "choice", 100, 0.27),
        TaskReplay("written", "generation", 100, 0.04),
    )
    groups = tuple(
        TaskGroup(name=task.name, title=task.name, tasks=(task.name,), pooling="documents", in_aggregate=True)
        for task in tasks
    )
    summary = summarize(load_results(write_replay(tmp_path, tasks=tasks, groups=groups, only="accuracy")))
    assert {rung.aggregate.tasks for rung in summary.rungs} == {("good",)}
    guessed, written = task_of(summary, "nf4", "guessed"), task_of(summary, "nf4", "written")
    assert guessed.score.value is not None and not guessed.signal and guessed.weight == 0
    assert (guessed.difference_points.value, guessed.gained, guessed.recovery_percent.value) == (None, None, None)
    assert written.no_signal_reason == "the better score, 4.0%, is less than 5%"
    assert any(note.startswith("guessed is in no aggregate: the better score, 27.0%") for note in summary.notes)


def test_a_rung_that_lacks_a_task_has_no_aggregate(tmp_path: Path) -> None:
    ends = {("int8", "bitladder_language"): ("timeout", "no answer after 5 s")}
    summary = summarize(load_results(write_replay(tmp_path, ends=ends, only="accuracy")))  # type: ignore[arg-type]
    aggregate = rung_of(summary, "int8").aggregate
    assert aggregate.score_percent.value is None
    assert aggregate.difference_points.reason == "int8 has no Language: timeout: no answer after 5 s"
    assert rung_of(summary, "nf4").aggregate.difference_points.value is not None
    assert task_of(summary, "int8", "bitladder_language").score.reason == "timeout: no answer after 5 s"
    assert rung_of(summary, "int8").failures == ("int8, bitladder_language: timeout: no answer after 5 s",)


def test_other_questions_than_the_baselines_are_not_compared(tmp_path: Path) -> None:
    store = Store(write_replay(tmp_path, only="accuracy"))
    record = next(record for record in store.load().of("nf4") if record.item.kind == "accuracy")
    assert isinstance(record.outcome, AccuracyOutcome)
    cut = record.outcome.model_copy(update={"documents": record.outcome.documents[1:]})
    store.write_measurement(record.model_copy(update={"outcome": cut}))
    summary = summarize(store.load())
    task = task_of(summary, "nf4", "bitladder_knowledge")
    assert task.score.value is not None and task.difference_points.value is None
    assert "1 of 140 are the baseline's alone, 0 are this rung's alone" in (task.difference_points.reason or "")
    aggregate = rung_of(summary, "nf4").aggregate
    assert aggregate.score_percent.value is not None and aggregate.difference_points.value is None
    assert any("nf4, bitladder_knowledge: lm-eval says acc" in note for note in summary.notes)


def test_without_baseline_nothing_is_compared(broken: Summary) -> None:
    assert rung_of(broken, "bf16").status == "failed"
    task = task_of(broken, "fp4", "bitladder_knowledge")
    assert task.score.value is not None and task.signal and task.verdict is None
    assert task.difference_points.reason == "bf16 has no result to compare with: failed: No space left on device"
    reason = rung_of(broken, "fp4").aggregate.difference_points.reason
    assert reason == "bf16 has no Knowledge: failed: No space left on device"
    scenario = rung_of(broken, "int8").scenario("batch1")
    assert scenario is not None
    assert scenario.metric("speedup").reason == "bf16 has no batch1: failed: No space left on device"


def test_what_did_not_end_well_is_told(broken: Summary) -> None:
    assert rung_of(broken, "nf4").failures == ("nf4: refused: the audit found FP4 where NF4 was declared",)
    fits_not = rung_of(broken, "fp4").scenario("max-batch")
    absent = rung_of(broken, "fp16").scenario("max-batch")
    assert fits_not is not None and absent is not None
    assert (fits_not.status, fits_not.reason) == ("does_not_fit", "needs 9.1 GiB, 6.0 GiB free")
    assert absent.reason == "not measured yet; run the study again to go on"
    assert absent.metrics == {} and absent.metric("latency_s").value is None


def scenario_item(name: str, batch1_requests: int = 12, batches: int = 3) -> Scenario:
    items = scenario_items(batch1_requests=batch1_requests, batches=batches)
    return next(item for item in items if isinstance(item, Scenario) and item.scenario == name)


def test_every_metric_is_derived(builtin: Summary) -> None:
    for rung in builtin.rungs:
        for scenario in rung.scenarios:
            assert set(scenario.metrics) == set(METRICS)
            for name, estimate in scenario.metrics.items():
                assert estimate.value is not None or estimate.reason, name
                if estimate.low is not None and estimate.high is not None and estimate.value is not None:
                    assert 0 <= estimate.low <= estimate.value <= estimate.high, name
                else:
                    assert estimate.reason, name


def test_times_follow_from_the_steps() -> None:
    replay = RungReplay(0, 0, prefill_s=0.2, step_s=0.05, batch_slowdown=4, loaded_bytes=100 * MIB, bits_per_byte=1)
    outcome = performance_outcome(scenario_item("max-batch"), replay)
    found = {name: estimate.value for name, estimate in derive_metrics(outcome, "cpu").items()}
    first = outcome.batches[0]
    duration = first.step_end_s[-1] - first.started_s
    total = outcome.batches[-1].step_end_s[-1]
    assert found["total_time_s"] == pytest.approx(total)
    assert found["requests_per_s"] == pytest.approx(24 / total)
    assert found["tokens_per_s"] == pytest.approx(24 * 16 / total)
    assert found["inverse_throughput_s"] == pytest.approx(total / 24)
    assert found["total_time_2000_requests_s"] == pytest.approx(2000 * total / 24)
    assert found["latency_s"] == pytest.approx(duration, rel=0.02)
    assert found["prefill_s"] == pytest.approx(1.0, rel=0.02)
    assert found["tpot_s"] == pytest.approx(0.2, rel=0.02)
    assert found["tpot_s"] == pytest.approx(found["inter_token_s"])
    assert found["queue_s"] == pytest.approx(duration, rel=0.05)
    assert found["ttft_s"] == pytest.approx((found["queue_s"] or 0) + (found["prefill_s"] or 0))
    assert found["latency_from_submission_s"] == pytest.approx((found["queue_s"] or 0) + (found["latency_s"] or 0))
    assert found["load_time_s"] == outcome.load_time_s
    assert found["peak_memory_bytes"] == outcome.memory.peak_process_bytes


def test_a_short_last_batch_counts_in_the_whole_run_only() -> None:
    item = scenario_item("max-batch").model_copy(update={"requests": 17})
    outcome = performance_outcome(item, RUNGS["bf16"])
    found = derive_metrics(outcome, "cpu")
    whole, full = found["requests_per_s"].value, found["requests_per_s_full_batches"].value
    assert whole is not None and full is not None and full > 1.3 * whole
    few = "3 batches: an interval from so few says little"
    assert notes_on(outcome, 17) == (few, "the last batch had 1 of 8 rows")


def probe(batch_size: int) -> BatchProbe:
    return BatchProbe(batch_size=batch_size, fits=True, how="predicted", needed_bytes=1, available_bytes=2)


def test_one_batch_has_figures_without_interval() -> None:
    outcome = performance_outcome(scenario_item("max-batch", batches=1), RUNGS["bf16"])
    found = derive_metrics(outcome, "cpu")["requests_per_s"]
    assert found.value is not None and found.low is None
    assert found.reason == "an interval needs at least 2 samples, there is 1"
    assert notes_on(outcome, 8) == ("1 batch: no interval", "8 requests, fewer than 10: the intervals are wide")
    capped = outcome.model_copy(update={"batch_search": (probe(4), probe(8))})
    assert notes_on(capped, 8, cap=8)[0] == "the batch was capped at 8, more would fit"
    assert "capped" not in "".join(notes_on(capped, 8, cap=16))


def test_how_a_run_ended_is_noted() -> None:
    outcome = performance_outcome(scenario_item("batch1"), RUNGS["bf16"])
    assert notes_on(outcome, 200) == ()
    late = outcome.model_copy(update={"stopped_by": "time_limit"})
    assert notes_on(late, 200) == ("ended by the time limit after 12 of 200 requests",)
    drifting = [
        batch.model_copy(
            update={
                "started_s": batch.started_s + index**2 / 4,
                "step_end_s": tuple(end + (index + 1) ** 2 / 4 for end in batch.step_end_s),
            }
        )
        for index, batch in enumerate(outcome.batches)
    ]
    (note,) = notes_on(outcome.model_copy(update={"batches": tuple(drifting)}), 200)
    assert note.startswith("a batch's time resembles the one before")
    failed = outcome.requests[0].model_copy(update={"status": "failed"})
    partly = outcome.model_copy(update={"requests": (failed, *outcome.requests[1:])})
    assert notes_on(partly, 12) == ("1 of 12 requests did not end well",)


def test_no_request_that_ended_well_is_no_rate() -> None:
    outcome = performance_outcome(scenario_item("batch1"), RUNGS["bf16"])
    failed = tuple(request.model_copy(update={"status": "failed"}) for request in outcome.requests)
    found = derive_metrics(outcome.model_copy(update={"requests": failed}), "cpu")
    assert found["requests_per_s"].reason == "no request ended well"
    assert found["loaded_bytes"].value == RUNGS["bf16"].loaded_bytes


def test_speedup_is_the_ratio_of_request_rates(builtin: Summary) -> None:
    ratio = metric(builtin, "int8", "batch1", "requests_per_s") / metric(builtin, "bf16", "batch1", "requests_per_s")
    assert metric(builtin, "int8", "batch1", "speedup") == pytest.approx(ratio)
    assert metric(builtin, "bf16", "batch1", "speedup") == 1.0
    single = performance_outcome(scenario_item("max-batch", batches=1), RUNGS["int8"])
    baseline = performance_outcome(scenario_item("max-batch"), RUNGS["bf16"])
    found = speedup(Timeline(single), Timeline(baseline))
    assert found.value is not None and found.low is None and found.reason


def test_two_machines_make_no_speedup(tmp_path: Path) -> None:
    store = Store(write_replay(tmp_path, only="performance"))
    record = next(record for record in store.load().of("nf4"))
    store.write_measurement(record.model_copy(update={"machine": machine(gpu=True)}))
    with pytest.raises(UserError, match="measured on 2 machines; choose one with --machine"):
        summarize(store.load())
    scenario = rung_of(summarize(store.load(), machine="T4"), "nf4").scenario("batch1")
    assert scenario is not None
    assert scenario.metric("latency_s").value is not None
    assert scenario.metric("speedup").reason == "bf16 has no batch1: not measured on this machine"


def test_short_gpu_measurements_have_no_utilisation_and_no_energy() -> None:
    outcome = performance_outcome(scenario_item("batch1"), RUNGS["bf16"], gpu=True)
    found = derive_metrics(outcome, "cuda:0")
    assert (found["gpu_utilisation_percent"].value, found["gpu_energy_j"].value) == (None, None)
    assert "utilisation needs 5 s" in (found["gpu_utilisation_percent"].reason or "")
    assert "energy needs 10 s" in (found["energy_per_token_j"].reason or "")
    peak = found["peak_memory_bytes"].value
    assert peak == pytest.approx(RUNGS["bf16"].loaded_bytes + 40 * MIB)
    average = found["study_vram_bytes"].value
    assert average is not None and peak is not None and average < peak


def test_a_cpu_says_why_it_has_no_gpu_figures(builtin: Summary) -> None:
    scenario = rung_of(builtin, "bf16").scenario("batch1")
    assert scenario is not None
    assert scenario.metric("gpu_utilisation_percent").reason == "no GPU"
    assert scenario.metric("allocated_peak_bytes").reason == "no GPU"


def test_percentiles_have_order_statistic_intervals_where_samples_allow() -> None:
    few = derive_metrics(performance_outcome(scenario_item("batch1"), RUNGS["bf16"]), "cpu")
    many = derive_metrics(performance_outcome(scenario_item("batch1", batch1_requests=150), RUNGS["bf16"]), "cpu")
    assert few["latency_p95_s"].reason == "12 batches are too few for an interval of p95"
    assert few["latency_p50_s"].low is not None
    assert many["latency_p95_s"].low is not None and many["latency_p95_s"].high is not None


def test_unfinished_study(tmp_path: Path) -> None:
    store = Store(write_replay(tmp_path))
    (tmp_path / "rungs" / "nf4.json").unlink()
    nf4 = rung_of(summarize(store.load()), "nf4")
    assert nf4.status == "missing" and nf4.reason == "not made yet; run the study again to go on"
    assert nf4.failures == ()
    assert "batch1" in nf4.missing
