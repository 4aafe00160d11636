"""What held a measurement up, told from its samples: a cell that was disturbed is failed and decides nothing."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest

from bitladder.decide import recommend
from bitladder.perf import batches as disturbance
from bitladder.perf.batches import ProcessorTimes, find_disturbance
from bitladder.records import BatchSample, PerformanceOutcome, Record, Scenario
from bitladder.results.store import Store, load_results
from bitladder.study import worker
from bitladder.study.messages import Measured
from bitladder.summary.summarize import summarize
from replay import RUNGS, scenario_items, write_replay
from replay_outcomes import performance_outcome
from test_h100_records import ARCHIVES, unpacked
from test_study_run import job_for


def run_of(
    *batches: Sequence[float],
    prefills_s: Sequence[float] = (),
    waited_s: float | None = 0.0,
    **fields: object,
) -> PerformanceOutcome:
    """A run whose batches' steps took these times, each after a prefill, of one second where nothing is said."""
    item = scenario_items(batches=3)[1]
    assert isinstance(item, Scenario)
    outcome = performance_outcome(item, RUNGS["int8"])
    samples, now_s = [], 0.0
    for steps_s, prefill_s in zip(batches, prefills_s or [1.0] * len(batches), strict=True):
        ends_s = tuple(accumulate(steps_s, initial=now_s + prefill_s))
        samples.append(BatchSample(batch_size=outcome.batch_size, started_s=now_s, step_end_s=ends_s))
        now_s = ends_s[-1]
    return outcome.model_copy(update={"batches": tuple(samples), "waited_s": waited_s, **fields})


CLEAN = [0.05] * 40


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_held_up_run_is_told_however_long_it_lasted(share: float) -> None:
    """22 times as slow for more than half of a run was no spread between its median and its slow end."""
    slow = round(share * 120)
    steps = [1.1] * slow + [0.05] * (120 - slow)
    found = find_disturbance(run_of(steps[:40], steps[40:80], steps[80:]), "cpu")
    assert found is not None
    assert "one in twenty 22.0 times as long" in found


@pytest.mark.parametrize("growth", [1.0, 1.5, 3.0, 9.0])
def test_steps_that_grow_with_the_context_are_undisturbed(growth: float) -> None:
    """Of 1,000 tokens after a prompt of 128 the last reads nine times as much as the first."""
    steps = [0.01 * (1 + (growth - 1) * step / 1000) for step in range(1000)]
    outcome = run_of(steps, steps)
    requests = tuple(one.model_copy(update={"prompt_tokens": 128}) for one in outcome.requests)
    assert find_disturbance(outcome.model_copy(update={"requests": requests}), "cpu") is None


def test_a_short_last_batch_is_no_fast_end() -> None:
    outcome = run_of(CLEAN, CLEAN, [0.01] * 40)
    last = outcome.batches[-1].model_copy(update={"batch_size": 1})
    assert find_disturbance(outcome.model_copy(update={"batches": (*outcome.batches[:-1], last)}), "cpu") is None


@pytest.mark.parametrize(
    ("waited_s", "processor_s", "device", "told"),
    [
        (0.2, None, "cpu", None),
        (3.0, None, "cpu", "waited for a processor, which other programs had, for 33% of the time"),
        (3.0, None, "cuda:0", "for 33% of the time"),
        (None, 6.0, "cpu", "for 33% of the time"),
        (None, 8.9, "cpu", None),
        (None, 6.0, "cuda:0", None),  # it waits for the card
        (None, None, "cpu", None),
    ],
)
def test_a_processor_that_others_had_is_told(
    waited_s: float | None, processor_s: float | None, device: str, told: str | None
) -> None:
    """Even where every step was as slow as the others."""
    found = find_disturbance(run_of(CLEAN, CLEAN, CLEAN, waited_s=waited_s, processor_s=processor_s), device)
    assert (found is None) == (told is None)
    assert told is None or told in (found or "")


def test_short_runs_are_judged() -> None:
    """3.3 s of 3.9 that it waited made a speed-up of 1.9 of one."""
    short = run_of([0.3] * 3, [0.3] * 3, prefills_s=[0.5, 0.5], waited_s=2.3)
    assert short.batches[-1].step_end_s[-1] < 3
    for device in ("cpu", "cuda:0"):
        assert "for 82% of the time" in (find_disturbance(short, device) or "")
    assert "took 4.2 times" in (
        find_disturbance(run_of(*[[0.02] * 10 + [0.2] * 6] * 3, prefills_s=[0.1] * 3), "cpu") or ""
    )


@pytest.mark.parametrize(
    "outcome",
    [
        run_of([0.02] * 20, prefills_s=[0.1], waited_s=0.45),
        run_of([0.02] * 3, [0.2] * 3, [0.02] * 3, prefills_s=[0.1, 0.5, 0.1]),
    ],
)
def test_a_few_turns_of_the_scheduler_are_no_disturbance(outcome: PerformanceOutcome) -> None:
    """Of a run of half a second they are most of it."""
    assert find_disturbance(outcome, "cpu") is None


def test_of_two_times_nobody_knows_the_usual_one() -> None:
    assert find_disturbance(run_of([0.5, 9.0]), "cpu") is None
    assert find_disturbance(run_of(CLEAN, CLEAN, prefills_s=[0.5, 9.0]), "cpu") is None


@pytest.mark.parametrize(
    ("batches", "prefills_s", "told"),
    [
        ([CLEAN] * 12, [3.0, 0.3] * 6, "a prefill took 5.5 times as long"),
        ([[]] * 20, [3.0, 0.3] * 10, "a prefill took 5.5 times as long"),
        ([[0.05]] * 5 + [[2.5]] * 14, [0.3] * 19, "a step took 37.1 times as long"),
        ([[0.14] * 16] * 6 + [[0.05] * 16] * 6, [0.3] * 12, "a step took 1.9 times as long"),
        ([[1.0] * 16] * 31 + [[0.05] * 16], [0.3] * 32, "one in twenty 20.0 times as long"),
    ],
)
def test_whatever_part_of_a_run_is_held_up_is_told(
    batches: list[list[float]], prefills_s: list[float], told: str
) -> None:
    """Where nobody counts what it waited."""
    outcome = run_of(*batches, prefills_s=prefills_s, waited_s=None)
    assert told in (find_disturbance(outcome, "cpu") or "")


def test_a_gpus_host_may_be_late() -> None:
    outcome = run_of(*[[0.14] * 16] * 6, *[[0.05] * 16] * 6)
    assert find_disturbance(outcome, "cpu") is not None
    assert find_disturbance(outcome, "cuda:0") is None


@pytest.mark.slow
def test_undisturbed_runs_of_a_gpu_pass(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of three models and studies, at batch 1 and at the largest."""
    outcomes = [
        record.outcome
        for archive in sorted(ARCHIVES.glob("*.tar.gz"))
        for record in unpacked(archive.name.removesuffix(".tar.gz"), tmp_path_factory).records
        if isinstance(record.outcome, PerformanceOutcome)
    ]
    assert len(outcomes) > 40
    assert [reason for one in outcomes if (reason := find_disturbance(one, "cuda:0"))] == []


def test_waiting_is_counted_by_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(**waits_ns: int) -> None:
        for thread, wait_ns in waits_ns.items():
            (tmp_path / thread).mkdir(exist_ok=True)
            (tmp_path / thread / "schedstat").write_text(f"123 {wait_ns} 4\n")

    monkeypatch.setattr(disturbance, "_TASKS", tmp_path)
    assert ProcessorTimes().read()[1] is None, "a system that doesn't count it"
    count(t1=10**9, t2=7 * 10**9)
    times = ProcessorTimes()
    count(t1=int(1.5e9), t2=7 * 10**9, t3=10**8)
    processor_s, waited_s = times.read()
    assert waited_s == pytest.approx(0.5)
    assert 0 <= processor_s < 10


def test_a_disturbed_cell_is_failed_keeps_its_samples_and_decides_nothing(tmp_path: Path) -> None:
    out = write_replay(tmp_path / "out", only="performance")
    before = load_results(out)
    record = next(
        one for one in before.of("int8") if isinstance(one.item, Scenario) and one.item.scenario == "max-batch"
    )
    outcome = run_of([1.1] * 40, [1.1] * 40, CLEAN)
    sent: list[Record] = []
    job = job_for(tmp_path, rung="int8", phase="performance").model_copy(update={"content_hash": record.content_hash})

    class Kept:
        send = staticmethod(sent.append)

    worker._measure(job, record.item, Kept(), lambda: outcome)  # type: ignore[arg-type]
    (measured,) = (message for message in sent if isinstance(message, Measured))
    found = measured.record
    assert (found.status, found.disturbed, found.outcome) == ("failed", True, outcome)
    assert (found.reason or "").startswith("disturbed: a step took ")
    Store(out).write_measurement(found.model_copy(update={"machine": record.machine}))

    summary = summarize(load_results(out))
    rung = summary.rung("int8")
    assert rung is not None
    scenario = rung.scenario("max-batch")
    assert scenario is not None
    assert (scenario.status, scenario.metrics) == ("failed", {})
    assert rung.failures == (f"int8, max-batch: failed: {found.reason}",)
    for other in summary.rungs:
        theirs = other.scenario("max-batch")
        assert theirs is not None and "int8" not in theirs.ratios
    verdict = next(one for one in recommend(summary).verdicts if one.rung == "int8")
    assert any("throughput is unknown: failed: disturbed" in reason for reason in verdict.reasons)
