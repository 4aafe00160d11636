"""What is left of a study in time, and when a study on a CPU has to be meant."""

from pathlib import Path

import pytest

from bitladder.errors import UserError
from bitladder.records import (
    AccuracyTask,
    Calibration,
    Divergence,
    Item,
    Order,
    Scenario,
    Settings,
    Source,
    StudyRecord,
    TaskGroup,
    TaskSources,
)
from bitladder.study.estimate import PROCESS_START_S, RungEstimate
from bitladder.study.run import run_study
from bitladder.study.time_left import TimeLeft, advise
from test_study_run import settings_for, write_tasks
from test_study_settings import MACHINE, make_scenario, make_task

DIVERGENCE = Divergence(baseline_hash=None, texts_hash="t", windows=2, window_tokens=8, device="cpu")
SCENARIO = make_scenario()
SOURCES = TaskSources(seed=1)


def plan(*tasks: AccuracyTask, device: str = "cpu", scenarios: tuple[Scenario, ...] = (SCENARIO,)) -> StudyRecord:
    return StudyRecord(
        settings=Settings(model="m", rungs=("bf16", "nf4")),
        suite="custom",
        baseline="bf16",
        source=Source(model="m", kind="directory", revision=None, content_hash="s"),
        calibration=Calibration(device=device, threads=2, max_batch_cap=8, machine=MACHINE),
        groups=(),
        items=(DIVERGENCE, *tasks, *scenarios),
    )


def estimate(rung: str, *item_s: float | None) -> RungEstimate:
    return RungEstimate(rung, 1, None, 6.0, None, None, item_s)


def left_of(study: StudyRecord, missing: dict[str, tuple[Item, ...]], *estimates: RungEstimate) -> TimeLeft:
    return TimeLeft(study, estimates, {name: missing.get(name, ()) for name in (one.rung for one in estimates)})


def test_what_is_done_counts_no_more_and_sets_the_pace_of_its_kind() -> None:
    study, task = plan(make_task("a")), make_task("a")
    everything = dict.fromkeys(study.rungs, study.items)
    left = left_of(study, everything, estimate("bf16", 1.0, 9.0, 20.0), estimate("nf4", 2.0, 19.0, 40.0))
    assert left.seconds == 1.0 + 10.0 + 20.0 + 2.0 + 20.0 + 40.0, "a task takes a while to begin, too"
    left.to_make(["nf4"])
    assert left.seconds == 93.0 + 2 * PROCESS_START_S
    left.made("nf4")
    left.measured("bf16", DIVERGENCE.model_copy(update={"baseline_hash": "known by now"}), 4.3)
    assert left.seconds == pytest.approx(60.0 + 32.0 * (4.3 + 3.3) / (1.0 + 3.3)), "scenarios may go as planned"
    left.measured("bf16", task, 30.0)
    assert left.seconds == pytest.approx(60.0 + 22.0 * (34.3 + 3.3) / (11.0 + 3.3))
    left.measured("bf16", SCENARIO, 20.0)
    assert left.seconds == pytest.approx(40.0 + 22.0 * (34.3 + 3.3) / (11.0 + 3.3))
    resumed = left_of(study, {"nf4": (SCENARIO,)}, estimate("bf16", 1.0, 9.0, 20.0), estimate("nf4", 2.0, 19.0, 40.0))
    assert resumed.seconds == 40.0


RECORDED = {
    "a model of 70 thousand weights, 4 questions, on a busy machine": (
        "0/2.78 0/0.43 0/0.32 0.008/7.61 0.001/5.25 0.001/3.49 0.001/3.04 0.018/12.27",
        "3.181/6.51 3.079/8.1 3.158/8.7 3.076/6.25",
    ),
    "stages on a machine that was busy at first": (
        "27.7/95.6 13.1/38.1 23.8/47.2 69/83.3 32.6/31.4 59.2/54.4 75/78.8 34/55.3 64.1/41.1 55/49.5 26/27.1 47.2/36.5 "
        "137.1/64.1 64.7/31.8 117.8/76 149.1/82 67.4/37.2 127.5/85.4 101.1/172 47.8/84.6",
        "",
    ),
    "a machine that is faster than it was timed": (
        "83.9/47.2 84.1/81.6 6.6/4.4 3.6/1 5.2/1.7 125.3/59 6.6/10.2 3.6/1.1 5.2/1.9 125.7/31.3",
        "7.4/4 42.4/8.7 45.9/22.6 64.9/44.3",
    ),
}
"""of real studies, of tasks and of scenarios in the order they were measured in: seconds that were planned/taken"""


def seconds_of(recorded: str) -> list[tuple[float, float]]:
    pairs = (pair.split("/") for pair in recorded.split())
    return [(float(planned), float(taken)) for planned, taken in pairs]


@pytest.mark.parametrize("study", RECORDED)
def test_what_is_told_of_real_studies_is_of_the_right_size(study: str) -> None:
    """A first task of 2.8 s where next to none was planned left 39.5 h of a minute."""
    tasks, scenarios = map(seconds_of, RECORDED[study])
    planned = plan(
        *(make_task(f"task {number}") for number in range(len(tasks))),
        scenarios=tuple(SCENARIO.model_copy(update={"requests": 1 + number}) for number in range(len(scenarios))),
    )
    items = [item for item in planned.items if item != DIVERGENCE]
    rows = tasks + scenarios
    left = left_of(planned, {"bf16": tuple(items)}, estimate("bf16", 0.0, *(planned_s for planned_s, _ in rows)))
    rest_s = sum(taken_s for _, taken_s in rows)
    for item, (_, taken_s) in zip(items, rows, strict=True):
        assert rest_s / 4 < left.seconds < 2.6 * rest_s
        left.measured("bf16", item, taken_s)
        rest_s -= taken_s
    assert left.seconds == 0.0


def test_a_format_that_is_not_timed_counts_as_the_baseline() -> None:
    study = plan(make_task("a"))
    everything = dict.fromkeys(("bf16", "fp8"), study.items)
    left = left_of(study, everything, estimate("bf16", 1.0, 10.0, 20.0), estimate("fp8", None, None, None))
    assert left.seconds == 64.0


def test_stages_count_by_their_documents_and_not_once_all_is_decided() -> None:
    order = Order(seed=1, stops=(100, 400))
    task = make_task("a").model_copy(update={"order": order})
    study = plan(task)
    first = make_task("a").model_copy(update={"order": Order(seed=1, chunk=(0, 100))})
    last = make_task("a").model_copy(update={"order": Order(seed=1, chunk=(100, 400))})
    left = left_of(study, {"bf16": (DIVERGENCE, first, last)}, estimate("bf16", 1.0, 40.0, 20.0))
    assert left.seconds == 43.0
    left.measured("bf16", first, 11.0)
    assert left.seconds == 32.0
    left.decided()
    assert left.seconds == 1.0


def test_only_a_cpu_is_asked_about_and_the_half_that_takes_long_is_named() -> None:
    everything = {"bf16": plan().items}
    for device, asked in (("cpu", True), ("cuda:0", False)):
        study = plan(device=device)
        left = left_of(study, everything, estimate("bf16", 1.0, 4000.0))
        said = advise(study, SOURCES, left, 1800.0)
        assert (said is not None) == asked
        assert advise(study, SOURCES, left, None) is None
    study = plan()
    left = left_of(study, everything, estimate("bf16", 1.0, 4000.0))
    assert advise(study, SOURCES, left, 1800.0) == (
        "about 67 min of work on this CPU, and more than 30 min has to be meant; give --requests 20 to measure less, "
        "or --yes to go on"
    )


@pytest.mark.parametrize(
    ("documents", "max_drop", "said"),
    [
        (
            60,
            1.0,
            "give fewer --rungs and --requests 1 to measure less (fewer questions would settle nothing), or --yes",
        ),
        (
            10_000,
            1.0,
            "give --limit 100 and --requests 1 to measure less (so few questions settle no drop of 1 point), or",
        ),
        (10_000, 20.0, "give --limit 100 and --requests 1 to measure less, or --yes to go on"),
    ],
)
def test_no_plan_is_told_to_ask_more_and_less_at_once(
    documents: int, max_drop: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Library:
        def count(self, task: str, limit: int | None) -> int:
            return min(documents, limit or documents)

    monkeypatch.setattr("bitladder.tasks.library.task_library", lambda _: Library())
    study = plan(make_task("a"))
    group = TaskGroup(name="a", title="A", tasks=("a",), pooling="documents", in_aggregate=True)
    settings = study.settings.model_copy(update={"max_drop": max_drop})
    study = study.model_copy(update={"groups": (group,), "settings": settings})
    everything = dict.fromkeys(study.rungs, study.items)
    seconds = (0.0, 50_000.0, 200_000.0)
    left = left_of(study, everything, estimate("bf16", *seconds), estimate("nf4", *seconds))
    assert said in (advise(study, SOURCES, left, 3600.0) or "")


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
