"""A study of a tiny model by real workers: killed, resumed, with measurements that fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from bitladder.accuracy.rescoring import DOCUMENTS
from bitladder.errors import UserError
from bitladder.executors.executor import Executor
from bitladder.executors.forkserver import ForkedBranch, ForkServer
from bitladder.executors.table import EXECUTORS, VARIABLE, open_executor
from bitladder.machine.host import describe_machine
from bitladder.records import (
    AccuracyOutcome,
    Divergence,
    DivergenceOutcome,
    JournalEntry,
    LoadPolicy,
    MeasurementRecord,
    PerformanceOutcome,
    Rescoring,
    RescoringOutcome,
    RungRecord,
    Settings,
    TaskSources,
)
from bitladder.results import item_name
from bitladder.results.store import Store
from bitladder.study.messages import Job, Recipe, Started, StudyProgress, busy_warning
from bitladder.study.plan import Kept, Missing, bind_baseline
from bitladder.study.prepare import prepare
from bitladder.study.run import StudyRun, run_study
from bitladder.study.workers import WORKER, Worker
from test_study_settings import MACHINE, make_task
from tiny_families import save_tiny_family

QUESTIONS = 6


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def write_tasks(folder: Path, questions: int = QUESTIONS) -> Path:
    """A folder with two multiple-choice tasks."""
    for name in ("left", "right"):
        rows = [{"question": f"{name} {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(questions)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {name}.jsonl\n"
            "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
            "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n"
        )
    return folder


def settings_for(model: Path, tasks: Path, **changes: object) -> Settings:
    values: dict[str, object] = {
        "model": str(model),
        "rungs": ("bf16",),
        "tasks": (str(tasks),),
        "scenarios": ("batch1",),
        "requests": 2,
        "prompt_tokens": 8,
        "new_tokens": 4,
        "device": "cpu",
        "datasets": str(tasks),
    }
    return Settings.model_validate(values | changes)


class Counting(StudyProgress):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.made: list[str] = []
        self.measurements: list[str] = []
        self.records: list[MeasurementRecord] = []

    def warn(self, what: str) -> None:
        self.warnings.append(what)

    def rung(self, record: RungRecord) -> None:
        self.made.append(record.rung)

    def measured(self, record: MeasurementRecord) -> None:
        self.measurements.append(record.measurement_id)
        self.records.append(record)


def kill_after(path: Path, process: subprocess.Popen[bytes], count: int, pattern: str) -> None:
    """SIGKILL the whole study as soon as ``path`` has ``count`` files of ``pattern``."""
    deadline = time.monotonic() + 120
    while len(list(path.glob(pattern))) < count:
        assert process.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(WORKER, tmp_path_factory.mktemp("server") / "log", with_gpu=False) as server:
        yield server


@pytest.fixture
def ready_server(server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies of this process take a server that has done its imports."""
    monkeypatch.setattr("bitladder.study.run.open_executor", lambda *_, **__: nullcontext(server))


@pytest.mark.slow
def test_killed_study_goes_on_and_a_changed_setting_reruns_what_it_touches(
    tiny_llama: Path,
    tasks: Path,
    tmp_path: Path,
    server: ForkServer,
    ready_server: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    settings = settings_for(tiny_llama, tasks)
    monkeypatch.setattr("bitladder.study.time_left.busy_share", lambda: 0.9)
    code = (
        "import sys; from pathlib import Path; from bitladder import Settings, run_study; "
        "run_study(Settings.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, settings.model_dump_json(), str(out)])
    kill_after(out, process, 1, "records/*.json")
    kept = {path.name: path.read_bytes() for path in (out / "records").glob("*.json")}
    (out / "records" / ".half.json.x1.tmp").write_text("{")
    (out / "checkpoints" / ".bf16.x2.tmp").mkdir()

    resumed = Counting()
    results = run_study(settings, out, resumed)
    assert resumed.made == []
    assert len(resumed.measurements) == 3 - len(kept)
    assert [record.status for record in results.records] == ["ok"] * 3
    assert resumed.warnings == [busy_warning(0.9)]
    outcomes = [record.outcome for record in results.records]
    assert [one.busy_share for one in outcomes if isinstance(one, PerformanceOutcome)] == [0.9]
    for name, content in kept.items():
        assert (out / "records" / name).read_bytes() == content
    assert len(list((out / "documents").iterdir())) == 2, "questions are stored once a task"
    assert not list(out.glob("**/*.tmp")), "what a killed study was writing is removed"
    assert Missing(results.study, Kept(Store(out), results.study)).recorded == 3, "a dry run knows what is done"

    # A finished study asks neither torch nor transformers anything, which take seconds to import.
    with monkeypatch.context() as patch:
        machine = describe_machine().model_copy(update={"gpus": ()})
        for module in ("prepare", "calibration"):
            patch.setattr(f"bitladder.study.{module}.describe_machine", lambda: machine)
        patch.setattr("bitladder.study.calibration.count_cards", None)
        patch.setattr("bitladder.checkpoint.loading.load_config", None)
        prepared = prepare(settings.model_copy(update={"device": "auto"}), Store(out))
    # It sees by size and time that weights changed, and reads no others.
    run = StudyRun(prepared, Store(out), resumed, server)
    (weights,) = (out / "checkpoints" / "bf16").glob("*.safetensors")
    record = run.missing.rungs["bf16"]
    assert record is not None
    with monkeypatch.context() as patch:
        patch.setattr("bitladder.checkpoint.manifest.sha256_file", None)
        assert not run.weights.is_damaged(record, resumed)
    content = weights.read_bytes()
    os.utime(weights)  # as a copy of the folder does
    assert not run.weights.is_damaged(record, resumed)
    for seconds, damaged in enumerate((content[:-1], content[:-1] + b"!", None), 1):
        weights.unlink()  # else the cache's own would be written
        if damaged is not None:
            weights.write_bytes(damaged)
            os.utime(weights, (time.time() + seconds,) * 2)  # in a tick of its own
        assert run.weights.is_damaged(record, resumed)
        assert "changed since its audit (model.safetensors: " in resumed.warnings[-1]
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"free, 2\d\d\.\d KiB needed for bf16; free some"),
    ):
        patch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        run.run(None)
    weights.write_bytes(content)
    assert not run.weights.is_damaged(record, resumed)

    # What can't be is told before anything is timed, fetched or planned.
    with pytest.raises(UserError, match="the model's context has 512"):
        prepare(settings.model_copy(update={"prompt_tokens": 510}), Store(out))
    with pytest.raises(UserError, match="expected --backend bitladder"):
        prepare(settings.model_copy(update={"backend": "hf", "model": "a/b", "batch_dependence": True}), Store(out))

    # No time is left: performance fails, accuracy is not touched.
    changed = Counting()
    results = run_study(settings.model_copy(update={"prompt_tokens": 9, "timeout_s": 1e-3}), out, changed)
    assert len(changed.measurements) == 1
    ends = {record.item.kind: (record.status, record.reason or "") for record in results.records}
    assert Missing(results.study, Kept(Store(out), results.study)).recorded == 2, "what failed is tried again"
    assert ends["accuracy"] == ("ok", "")
    assert ends["performance"][0] == "timeout"

    store = Store(out)
    entry = JournalEntry(key="k", plan="p", batch=0, values="", elapsed_s=1)
    for identity in ("given-up", *changed.measurements):
        store.add_to_journal(identity, entry)
    run = StudyRun(prepare(results.study.settings, store), store, changed, ForkServer("", None, with_gpu=False))
    run.missing.rungs = dict(results.rungs) | {"fp16": None}
    run.remove_given_up_journals()
    assert len(list(store.journals.iterdir())) == 2, "a checkpoint that isn't made may need either"
    run.missing.rungs = dict(results.rungs)
    run.remove_given_up_journals()
    assert [path.stem for path in store.journals.iterdir()] == changed.measurements, "which another run may go on with"


@pytest.mark.slow
def test_what_goes_with_accuracy_is_kept_and_made_again_for_a_new_rung(
    tiny_llama: Path, tasks: Path, tmp_path: Path, ready_server: None
) -> None:
    """Divergence, whose reference is the baseline's to leave, and what is scored again."""
    out = tmp_path / "out"
    settings = settings_for(
        tiny_llama,
        tasks / "left.yaml",
        backend="bitladder",
        batch_dependence=True,
        datasets=str(tasks),
        rungs=("fp16", "bf16"),
        only="accuracy",
        divergence_windows=3,
    )
    first = Counting()
    results = run_study(settings, out, first)
    assert [(one.rung, one.item.kind) for one in first.records][:2] == [("bf16", "divergence"), ("fp16", "divergence")]
    assert {record.status for record in results.records} == {"ok"}
    bf16, fp16 = (
        [one for one in results.of(rung) if isinstance(one.outcome, DivergenceOutcome)] for rung in ("bf16", "fp16")
    )
    assert bf16[0].item == fp16[0].item
    assert bf16[0].item.baseline_hash == results.rungs["bf16"].content_hash  # type: ignore[union-attr]
    assert {value for window in bf16[0].outcome.windows for value in window.kl} == {0.0}  # type: ignore[union-attr]
    assert max(value for window in fp16[0].outcome.windows for value in window.kl) > 0  # type: ignore[union-attr]

    other = prepare(settings.model_copy(update={"token_budget": 128, "seed": 7, "limit": 2}), Store(out)).study
    again = bind_baseline(other, results.rungs["bf16"].content_hash).items
    same = [item.kind for item in again if item in results.study.items]
    assert same == ["divergence"], "which no setting of the questions touches"

    (reference,) = (out / "references").iterdir()
    content = reference.read_bytes()
    reference.unlink()
    (lost,) = (one for one in results.of("bf16") if isinstance(one.item, Rescoring) and one.item.way == "batch 1")
    (out / "records" / f"{lost.measurement_id}.json").unlink()
    added = Counting()
    run_study(settings.model_copy(update={"rungs": ("fp16", "bf16", "fp32")}), out, added)
    measured = [(one.item.kind, one.rung) for one in added.records if one.item.kind != "accuracy"]
    assert measured == [("divergence", "bf16"), ("divergence", "fp32"), ("rescoring", "bf16")] + [
        ("rescoring", "fp32")
    ] * len(DOCUMENTS)
    assert Store(out).read_measurement(lost.measurement_id).outcome == lost.outcome  # type: ignore[union-attr]
    assert reference.read_bytes() == content


def test_divergence_is_only_where_there_is_something_to_hold_against_a_baseline(
    tiny_llama: Path, tasks: Path, tmp_path: Path
) -> None:
    def planned(**changes: object) -> int:
        study = prepare(settings_for(tiny_llama, tasks, **changes), Store(tmp_path)).study
        return sum(isinstance(item, Divergence) for item in study.items)

    assert planned(rungs=("bf16", "nf4")) == 1
    assert planned(rungs=("bf16",)) == planned(rungs=("fp16", "nf4")) == 0
    assert planned(rungs=("bf16", "nf4"), divergence=False) == 0
    assert planned(rungs=("bf16", "nf4"), only="performance") == 0


class StoppedAtWarning(Counting):
    """Ends the study at its first warning."""

    def warn(self, what: str) -> None:
        super().warn(what)
        raise KeyboardInterrupt


def test_the_other_half_that_is_in_the_plan_is_told(
    tiny_llama: Path, tasks: Path, tmp_path: Path, ready_server: None
) -> None:
    settings = settings_for(tiny_llama, tasks, rungs=("bf16", "fp16"), only="accuracy", divergence=False)
    store, seen = Store(tmp_path / "out"), StoppedAtWarning()
    store.write_study(prepare(settings, store).study)
    with pytest.raises(KeyboardInterrupt):
        run_study(settings.model_copy(update={"only": "performance"}), store.directory, seen)
    assert seen.warnings == [
        f"--only performance: {store.directory} has accuracy in its plan too, which is measured where it is missing; "
        "take another --out for performance alone"
    ]


def test_a_baseline_that_cannot_be_run_ends_the_study_before_the_other_rungs(
    tasks: Path, tmp_path: Path, ready_server: None
) -> None:
    source = save_tiny_family("reformer", tmp_path / "source")  # its code adds FP32 to 16 bits
    settings = settings_for(source, tasks, rungs=("fp16", "bf16", "nf4"))
    for made in (["bf16"], []):
        seen = Counting()
        with pytest.raises(UserError, match=r"its own forward fails: RuntimeError: .*, already as bf16, which the"):
            run_study(settings, tmp_path / "out", seen)
        assert seen.made == made


@pytest.mark.slow
def test_tasks_are_built_for_each_rung_where_they_cannot_be_built_once(
    tiny_llama: Path, tasks: Path, tmp_path: Path, ready_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def late(_: ForkedBranch, timeout_s: float) -> str:
        asked.append(timeout_s)
        return "took too long"

    monkeypatch.setattr(ForkedBranch, "wait_until_ready", late)
    seen = Counting()
    settings = settings_for(tiny_llama, tasks, rungs=("bf16", "fp16"), only="accuracy", divergence=False)
    results = run_study(settings, tmp_path / "out", seen)
    assert [record.status for record in results.records] == ["ok"] * 4
    (warning,) = (one for one in seen.warnings if "tasks are built" in one)
    assert warning == "tasks are built for each rung anew, since building them once took too long"
    assert asked == [settings.timeout_s], "not for each rung again"


@pytest.mark.slow
def test_plain_processes_leave_the_same_records(
    tiny_llama: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As forks do, but for times and memory; that workers are slower to begin is told once."""

    def measured(executor: str) -> tuple[list[str], list[object]]:
        monkeypatch.setenv(VARIABLE, executor)
        seen = Counting()
        settings = settings_for(tiny_llama, tasks)
        results = run_study(settings, tmp_path / executor, seen)
        assert [record.status for record in results.records] == ["ok"] * len(seen.records)
        told = [one for one in seen.warnings if "Python of its own" in one]
        launches = [one.outcome.launch for one in results.records if isinstance(one.outcome, PerformanceOutcome)]
        assert {launch["executor"] for launch in launches} == {executor}
        return told, [_without_times(record) for record in results.records]

    forked_told, forked = measured("forkserver")
    plain_told, plain = measured("subprocess")
    assert plain == forked and len(plain) == 3
    assert (len(forked_told), len(plain_told)) == (0, 1)
    monkeypatch.setenv(VARIABLE, "thread")
    with pytest.raises(UserError, match=r"unknown executor in BITLADDER_EXECUTOR 'thread'; known: forkserver, sub"):
        measured("thread")


def _without_times(record: MeasurementRecord) -> object:
    outcome = record.outcome
    if isinstance(outcome, PerformanceOutcome):  # all but a few figures of it are times
        left = (outcome.engine, outcome.batch_size, outcome.memory.loaded_bytes, len(outcome.requests))
        launch = {name: value for name, value in outcome.launch.items() if not name.endswith("_s_per_step")}
        del launch["executor"]
        return record.measurement_id, left, launch
    return record.model_copy(update={"started_at": "", "duration_s": 0.0})


def job_for(directory: Path, **changes: object) -> Job:
    values: dict[str, object] = {
        "phase": "accuracy",
        "rung": "bf16",
        "directory": str(directory),
        "policy": LoadPolicy(),
        "recipe": Recipe(model="m", revision=None, allow_partial=False),
        "sources": TaskSources(seed=1),
        "threads": 1,
        "machine": MACHINE,
        "content_hash": "c",
        "items": (make_task("arc_easy"),),
    }
    return Job.model_validate(values | changes)


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest, server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> Executor:
    monkeypatch.setenv(VARIABLE, request.param)
    return server if request.param == "forkserver" else open_executor(WORKER, None, with_gpu=False)


def test_worker_that_takes_too_long_is_ended(executor: Executor, tmp_path: Path) -> None:
    worker = Worker(executor, job_for(tmp_path), tmp_path / "log", timeout_s=1e-3)
    assert list(worker.messages()) == []
    assert worker.ended is not None
    assert (worker.ended.status, worker.ended.in_flight) == ("timeout", None)
    assert worker.process_id is not None and not psutil.pid_exists(worker.process_id)


def test_worker_names_what_it_can_name(executor: Executor, tmp_path: Path) -> None:
    worker = Worker(executor, job_for(tmp_path), tmp_path / "log", timeout_s=60)
    list(worker.messages())
    assert worker.ended is not None
    assert worker.ended.status == "failed"
    assert "no weights" in worker.ended.reason


def test_a_worker_that_the_machine_refuses_something_ends_the_study(executor: Executor, tmp_path: Path) -> None:
    """In one line, and it leaves no record of what can be measured another time."""
    worker = Worker(executor, job_for(tmp_path / ("x" * 300)), tmp_path / "log", timeout_s=60)
    with pytest.raises(UserError, match=r"^bf16, accuracy: .*xxx.*: file name too long; expected a place"):
        list(worker.messages())
    assert worker.ended is None
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_killed_worker_is_said_to_be_killed(executor: Executor, tiny_llama: Path, tmp_path: Path) -> None:
    job = job_for(tiny_llama, sources=TaskSources(seed=1, datasets=str(tmp_path)))
    worker = Worker(executor, job, tmp_path / "log", 60)
    for message in worker.messages():
        if isinstance(message, Started):
            assert worker.process_id is not None
            os.kill(worker.process_id, signal.SIGKILL)
    assert worker.ended is not None
    assert worker.ended.status == "failed"
    assert "SIGKILL" in worker.ended.reason
    assert worker.ended.in_flight is not None


@pytest.mark.parametrize("name", EXECUTORS)
def test_workers_end_with_the_process_that_started_them(name: str, tmp_path: Path) -> None:
    """The server and its worker, in the middle of a job, are gone soon after the owner was killed."""
    (tmp_path / "sleeper.py").write_text(
        "import time\n"
        "from bitladder.study.messages import Started\n\n"
        "def work(job, answers):\n"
        "    print(Started(measurement_id='m').model_dump_json(), file=answers, flush=True)\n"
        "    time.sleep(60)\n"
    )
    code = (
        "import sys; from pathlib import Path; from bitladder.executors import executor as base, table\n"
        "from bitladder.study.messages import Job; from bitladder.study.workers import Worker\n"
        "base.PRELOADED = base.CPU_PRELOADED = ()\n"
        "executor = table.open_executor('sleeper', Path(sys.argv[2]) / 'server', with_gpu=False)\n"
        "worker = Worker(executor, Job.model_validate_json(sys.argv[1]), Path(sys.argv[2]) / 'worker', 60)\n"
        "for message in worker.messages():\n"
        "    print(worker.process_id, executor._process.pid, flush=True); import time; time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, job_for(tmp_path).model_dump_json(), str(tmp_path)]
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, VARIABLE: name}
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert owner.stdout is not None
    process_ids = [int(number) for number in owner.stdout.readline().split()]
    assert len(process_ids) == 2
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(process_id) for process_id in process_ids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_folder_of_something_else_and_a_file_are_refused(tiny_llama: Path, tasks: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt and no study"):
        run_study(settings_for(tiny_llama, tasks), tmp_path)
    with pytest.raises(UserError, match="a file; expected a new folder"):
        run_study(settings_for(tiny_llama, tasks), tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_two_studies_do_not_write_to_one_folder(tiny_llama: Path, tasks: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another study is writing here"):
            run_study(settings_for(tiny_llama, tasks), tmp_path / "out")
    assert not Store(tmp_path / "out").has_study()


@pytest.mark.gpu
def test_study_on_a_gpu(tiny_llama: Path, tasks: Path, tmp_path: Path) -> None:
    """A rung of each kind of layer, by workers that were forked beside a GPU."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rungs = ("bf16", "int8", "int8-t0", "nf4", "int8-torchao")
    settings = settings_for(
        tiny_llama,
        tasks,
        rungs=rungs,
        device="cuda:0",
        scenarios=("batch1", "max-batch"),
        max_batch_cap=4,
        memory_limit="4GiB",
        backend="bitladder",
        batch_dependence=True,
    )
    results = run_study(settings, tmp_path / "out")
    assert {record.reason for record in results.rungs.values()} == {None}
    assert {(record.status, record.reason) for record in results.records} == {("ok", None)}
    assert len(results.records) == 11 * len(rungs)
    outcomes = {rung: [record.outcome for record in results.of(rung)] for rung in rungs}
    (itself,) = (one for one in outcomes["bf16"] if isinstance(one, DivergenceOutcome))
    assert {value for window in itself.windows for value in window.kl} == {0.0}
    products = [one.products for one in outcomes["nf4"] if isinstance(one, RescoringOutcome)]
    assert all("none seen" not in text for texts in products for text in texts), products


class StoppedAt(Counting):
    """Ends the study as it comes to a stage, as a power cut would."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        self._stage = stage
        self.asked: list[tuple[str, ...]] = []

    def stage(self, number: int, stages: int, rungs: Collection[str]) -> None:
        self.asked.append(tuple(rungs))
        if number == self._stage:
            raise KeyboardInterrupt


class StoppedAtPhase(Counting):
    """Ends the study as it comes to its first worker."""

    def phase(self, rung: str, what: str) -> None:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_study_in_stages_goes_on_with_the_stage_that_it_came_to(
    tiny_llama: Path, tmp_path: Path, ready_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model has no signal, so that no rung is decided and all is asked."""
    (tmp_path / "tasks").mkdir()
    tasks = write_tasks(tmp_path / "tasks", 200)
    settings = settings_for(tiny_llama, tasks, rungs=("bf16", "int8"), only="accuracy", divergence=False).model_copy(
        update={"until_decided": True, "tasks": (str(tasks / "left.yaml"),)}
    )
    with pytest.raises(KeyboardInterrupt):
        run_study(settings, tmp_path / "out", StoppedAt(2))
    given_up = JournalEntry(key="k", plan="p", batch=0, values="", elapsed_s=1)
    Store(tmp_path / "out").add_to_journal("given-up", given_up)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out" / "records").glob("*.json")}
    assert len(kept) == 2
    resumed = StoppedAt(0)
    results = run_study(settings, tmp_path / "out", resumed)
    assert resumed.asked == [("bf16", "int8")] * 2 and resumed.made == []
    later = ["left, documents 31 to 90"] * 2 + ["left, documents 91 to 200"] * 2
    assert [item_name(record.item) for record in resumed.records] == later
    now = {path.name: path.read_bytes() for path in (tmp_path / "out" / "records").glob("*.json")}
    assert now.items() >= kept.items() and len(now) == 6
    assert not list(Store(tmp_path / "out").journals.iterdir())
    outcomes = [record.outcome for record in results.records]
    assert [len(one.documents) for one in outcomes if isinstance(one, AccuracyOutcome)] == [200, 200]

    timed = StoppedAtPhase()
    with pytest.raises(KeyboardInterrupt):
        changes = {"only": "performance", "until_decided": False}
        run_study(settings.model_copy(update=changes), tmp_path / "out", timed)
    assert timed.warnings == [], "nothing of the other half is left"
