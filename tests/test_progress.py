"""What a study and a dry run tell: plain lines where there is no terminal."""

from pathlib import Path

import pytest

from bitladder.cli.dry_run import show_plan
from bitladder.cli.progress import LINE_INTERVAL_S, TerminalProgress
from bitladder.executors.forkserver import ForkServer
from bitladder.machine.host import BUSY_SHARE
from bitladder.perf.engines import find_engine
from bitladder.perf.memory import OVERHEAD, measure_overhead
from bitladder.records import Finding
from bitladder.results.store import Store
from bitladder.study.estimate import estimate_study
from bitladder.study.prepare import prepare
from bitladder.summary.performance import notes_on
from bitladder.units import MIB
from replay import RUNGS, rung_record, scenario_items, source, write_replay
from replay_outcomes import performance_outcome
from test_study_run import Counting, settings_for, write_tasks


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_long_measurement_has_a_line_every_half_minute_and_each_its_number(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    clock = Clock()
    with TerminalProgress(clock) as progress:
        progress.preparing("reading tasks and prompts")
        progress.planned(12, 1)
        progress.phase("bf16", "accuracy")
        for done in range(1, 8):
            clock.now_s += LINE_INTERVAL_S / 3
            progress.step(done, 7)
        progress.measured(Store(write_replay(tmp_path)).load().records[0])
    assert lines(capsys) == [
        "reading tasks and prompts ...",
        "12 measurements, 1 already done",
        "bf16: accuracy ...",
        "bf16: accuracy: 3 of 7",
        "bf16: accuracy: 6 of 7",
        "bf16: bitladder_knowledge: 42 s (2 of 12)",
    ]


def test_time_left_stands_beside_each_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    clock = Clock()
    record = Store(write_replay(tmp_path)).load().records[0]
    with TerminalProgress(clock) as progress:
        progress.time_left(5400.0)
        progress.planned(12, 0)
        progress.time_left(1234.0)
        progress.measured(record)
        clock.now_s += 1190.0
        progress.measured(record)
        clock.now_s += 60.0  # longer than was expected
        progress.measured(record)
    assert lines(capsys) == [
        "12 measurements, about 1.5 h left",
        "bf16: bitladder_knowledge: 42 s (1 of 12, about 21 min left)",
        "bf16: bitladder_knowledge: 42 s (2 of 12, about 50 s left)",
        "bf16: bitladder_knowledge: 42 s (3 of 12)",
    ]


def test_warnings_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    record = rung_record("nf4", RUNGS["nf4"], source("builtin"))
    assert record.audit is not None
    findings = tuple(Finding(check=name, severity="warning", message="m") for name in ("hardware", "load", "load"))
    with TerminalProgress() as progress:
        progress.rung(record.model_copy(update={"audit": record.audit.model_copy(update={"findings": findings})}))
        progress.warn("it is late")
    assert lines(capsys) == [
        "nf4: 110.6 MiB on disk, audit passed; warnings: hardware, load, see the report",
        "warning: it is late",
    ]


def test_a_busy_machine_is_noted_with_its_figures() -> None:
    (scenario, _) = scenario_items()
    outcome = performance_outcome(scenario, RUNGS["bf16"], gpu=False)  # type: ignore[arg-type]
    quiet = outcome.model_copy(update={"busy_share": BUSY_SHARE})
    busy = outcome.model_copy(update={"busy_share": 0.85})
    assert notes_on(outcome, 12) == notes_on(quiet, 12)
    assert set(notes_on(busy, 12)) - set(notes_on(quiet, 12)) == {
        "other programs kept 85% of the processors busy when it began: times say little"
    }


@pytest.mark.parametrize(
    ("others_bytes", "said"),
    [
        (6 * MIB, None),
        (529 * MIB, "another process took up to 529.0 MiB of the GPU meanwhile, which figures of the device count"),
        (
            -480 * MIB,
            "another process gave up 480.0 MiB of the GPU meanwhile, which figures of the device lack",
        ),
    ],
)
def test_what_others_took_of_the_gpu_is_noted(others_bytes: int, said: str | None) -> None:
    (scenario, _) = scenario_items()
    outcome = performance_outcome(scenario, RUNGS["bf16"], gpu=True)  # type: ignore[arg-type]
    idle = outcome.memory.idle_device_bytes
    assert idle is not None
    *samples, one, last = (
        sample.model_copy(update={"gpu_process_bytes": (sample.gpu_memory_bytes or 0) - idle - 6 * MIB})
        for sample in outcome.resources
    )
    shared = [
        sample.model_copy(update={"gpu_memory_bytes": idle + (sample.gpu_process_bytes or 0) + others_bytes})
        for sample in (one, last)
    ]
    seen = outcome.model_copy(update={"resources": (*samples, *shared)})
    alone = outcome.model_copy(update={"resources": (*samples, shared[0], last)})  # taken between two of its answers
    assert set(notes_on(seen, 12)) - set(notes_on(alone, 12)) == ({said} if said else set())


class Telling(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[str] = []

    def preparing(self, what: str) -> None:
        self.prepared.append(what)


def test_a_plan_without_the_baseline_is_warned_of_and_its_times_may_be_the_most(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks").mkdir()
    settings = settings_for(
        tiny_llama, write_tasks(tmp_path / "tasks"), rungs=("fp16",), time_limit_s=1e-6, requests=200
    )
    told = Telling()
    prepared = prepare(settings, Store(tmp_path / "out"), told)
    (warning,) = told.warnings
    assert warning.startswith("without bf16 among the rungs there is no drop and no speed-up")
    assert warning.endswith("add it, as --rungs bf16,fp16")
    assert "reading tasks and prompts" in told.prepared
    (estimate,) = estimate_study(prepared, overhead_bytes={"plain": 300 * MIB})
    assert estimate.at_most
    assert estimate.peak_memory_bytes is not None and 300 * MIB < estimate.peak_memory_bytes < 302 * MIB
    show_plan(prepared.study, [estimate], {"plain": 300 * MIB})
    shown = capsys.readouterr().out
    assert shown.startswith("1 rung x 3 measurements on cpu:")
    assert "at most 3 s" in shown
    assert "what --max-memory limits; without any model 300.0 MiB (plain), as measured" in shown


@pytest.mark.slow
def test_overhead_is_what_a_measuring_process_holds(tmp_path: Path) -> None:
    with ForkServer(OVERHEAD, tmp_path / "log", with_gpu=False) as server:
        found = measure_overhead(server, "cpu", ("bf16", "fp16", "int8", "nf4"), find_engine(None).name)
    assert list(found) == ["plain", "llm.int8", "bnb-4bit"]
    assert all(200 * MIB < size < 2000 * MIB for size in found.values())


@pytest.mark.gpu
def test_overhead_on_a_gpu_is_its_context(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    with ForkServer(OVERHEAD, tmp_path / "log", with_gpu=True) as server:
        found = measure_overhead(server, "cuda:0", ("bf16", "int8", "nf4"), find_engine(None).name)
    assert all(100 * MIB < size < 4000 * MIB for size in found.values())
    assert found["llm.int8"] > found["plain"], "it loads cuBLASLt's kernels for INT8 beside those for 16 bits"
