"""What is left of a study in time, and when a study on a CPU has to be meant."""

from pathlib import Path

import pytest

from bitladder.errors import UserError
from bitladder.records import AccuracyTask, Calibration, Divergence, Item, Order, Settings, Source, StudyRecord
from bitladder.study.estimate import PROCESS_START_S, RungEstimate
from bitladder.study.plan import plan_study
from bitladder.study.run import run_study
from bitladder.study.time_left import TimeLeft, advise
from test_study_run import settings_for, write_tasks
from test_study_settings import MACHINE, make_scenario, make_task

DIVERGENCE = Divergence(baseline_hash=None, texts_hash="t", windows=2, window_tokens=8, device="cpu")
SCENARIO = make_scenario()


def plan(*tasks: AccuracyTask, device: str = "cpu") -> StudyRecord:
    return plan_study(
        Settings(model="m", rungs=("bf16", "nf4")),
        "custom",
        Source(model="m", kind="directory", revision=None, content_hash="s"),
        Calibration(device=device, threads=2, max_batch_cap=8, machine=MACHINE),
        (),
        tasks,
        (SCENARIO,),
        DIVERGENCE,
    )


def estimate(rung: str, *item_s: float | None) -> RungEstimate:
    return RungEstimate(rung, 1, None, 6.0, None, None, item_s)


def left_of(study: StudyRecord, missing: dict[str, tuple[Item, ...]], *estimates: RungEstimate) -> TimeLeft:
    return TimeLeft(study, estimates, {name: missing.get(name, ()) for name in (one.rung for one in estimates)})


def test_what_is_done_counts_no_more_and_sets_the_pace() -> None:
    study, task = plan(make_task("a")), make_task("a")
    everything = dict.fromkeys(study.rungs, study.items)
    left = left_of(study, everything, estimate("bf16", 1.0, 10.0, 20.0), estimate("nf4", 2.0, 20.0, 40.0))
    assert left.seconds == 93.0
    left.to_make(["nf4"])
    assert left.seconds == 93.0 + 2 * PROCESS_START_S
    left.made("nf4")
    left.measured("bf16", DIVERGENCE.model_copy(update={"baseline_hash": "known by now"}), 2.0)
    assert left.seconds == 2 * 92.0, "it took twice as long as expected"
    left.measured("bf16", task, 9.0)
    assert left.seconds == 82.0
    resumed = left_of(study, {"nf4": (SCENARIO,)}, estimate("bf16", 1.0, 10.0, 20.0), estimate("nf4", 2.0, 20.0, 40.0))
    assert resumed.seconds == 40.0


def test_a_format_that_is_not_timed_counts_as_the_baseline() -> None:
    study = plan(make_task("a"))
    everything = dict.fromkeys(("bf16", "fp8"), study.items)
    left = left_of(study, everything, estimate("bf16", 1.0, 10.0, 20.0), estimate("fp8", None, None, None))
    assert left.seconds == 62.0


def test_stages_count_by_their_documents_and_not_once_all_is_decided() -> None:
    order = Order(seed=1, stops=(100, 400))
    task = make_task("a").model_copy(update={"order": order})
    study = plan(task)
    first = make_task("a").model_copy(update={"order": Order(seed=1, chunk=(0, 100))})
    last = make_task("a").model_copy(update={"order": Order(seed=1, chunk=(100, 400))})
    left = left_of(study, {"bf16": (DIVERGENCE, first, last)}, estimate("bf16", 1.0, 40.0, 20.0))
    assert left.seconds == 41.0
    left.measured("bf16", first, 10.0)
    assert left.seconds == 31.0
    left.decided()
    assert left.seconds == 1.0


def test_only_a_cpu_is_asked_about_and_the_half_that_takes_long_is_named() -> None:
    everything = {"bf16": plan().items}
    for device, asked in (("cpu", True), ("cuda:0", False)):
        study = plan(device=device)
        left = left_of(study, everything, estimate("bf16", 1.0, 4000.0))
        said = advise(study, left, 1800.0)
        assert (said is not None) == asked
        assert advise(study, left, None) is None
    study = plan()
    left = left_of(study, everything, estimate("bf16", 1.0, 4000.0))
    assert advise(study, left, 1800.0) == (
        "about 67 min of work on this CPU, and more than 30 min has to be meant; give --requests 20 to measure less, "
        "or --yes to go on"
    )


@pytest.mark.slow
def test_a_study_that_takes_long_ends_before_any_work_and_a_finished_one_does_not(
    tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "tasks").mkdir()
    settings = settings_for(tiny_llama, write_tasks(tmp_path / "tasks"))
    with pytest.raises(UserError, match=r"give --limit 1 and --requests 1 to measure less, or --yes to go on"):
        run_study(settings, tmp_path / "out", asked_from_s=1e-6)
    assert not (tmp_path / "out" / "checkpoints").exists()
    results = run_study(settings, tmp_path / "out")
    assert run_study(settings, tmp_path / "out", asked_from_s=1e-6).records == results.records, "nothing is left"
