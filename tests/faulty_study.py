"""A process that has imported what a study needs, and runs one after the other while faults are injected into them.

It is started by `fault_injection` with the library of ``fault_injection.c`` preloaded. Each study is the whole command
in a fork of this process; its fork server is forked too, where the command itself would start Python anew.
"""

import ctypes
import json
import os
import shutil
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import psutil

from study_state import describe, differences, judge, last_line, torn_files

OPERATIONS = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir", "flock", "close")
"""in the order of their bits"""
KILL = 0
"""instead of an error number"""
TIMEOUT_S = 120
_NOTED = "FAULT_INJECTION_MODULES"
_exit = os._exit
_IMPORTED = (
    *("torch.profiler", "bitsandbytes", "transformers.models.llama.modeling_llama", "transformers.generation.utils"),
    *("bitladder.study.worker", "bitladder.auditing", "bitladder.quantization"),
    *("bitladder.perf.measure", "bitladder.perf.memory", "bitladder.summary.summarize", "bitladder.decide"),
)
"""before the first study; it notes what else there is to import"""
_CONTROL = struct.Struct("7q512s512s512s1024s")
CONTROL_BYTES = _CONTROL.size
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Point:
    """The first of ``operations`` from the ``number``-th call on fails; with ``forever`` all after it do, too."""

    folder: str
    """what the study finds: ``new``, or ``finished`` where the report alone is missing"""
    number: int
    error: int
    forever: bool
    operations: tuple[str, ...]
    part: str = ""
    """of a path: calls of others are neither counted nor fail"""


@dataclass
class Tried:
    hit: str = ""
    """the operation and its path; empty where no call was left to fail"""
    code: int | None = None
    line: str = ""
    disturbed_s: float = 0.0
    again_s: float = 0.0
    """of the same command afterwards"""
    complaints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """How a command ended; None where it had to be stopped."""

    code: int | None
    output: str
    orphans: int
    seconds: float


class Control:
    """The file that the preloaded library reads what to do from, and counts in."""

    def __init__(self, path: Path, root: Path) -> None:
        self._path = path
        self._root = root
        self.trace = path.with_suffix(".trace")

    def arm(self, point: Point | None, *, tracing: bool = False) -> None:
        """Begin to count anew; None: let everything pass."""
        self.trace.unlink(missing_ok=True)
        numbers = (0, 0, 0, 0, 0)
        if point is not None:
            bits = sum(1 << OPERATIONS.index(name) for name in point.operations)
            numbers = (0, point.number, point.error, int(point.forever), bits)
        part = "" if point is None else point.part
        names = (str(name).encode() for name in (self._root, self.trace, part))
        packed = _CONTROL.pack(*numbers, 0, int(tracing), *names, b"")
        with self._path.open("r+b" if self._path.exists() else "w+b") as file:
            file.write(packed)

    def hit(self) -> str:
        hit: bytes = _CONTROL.unpack(self._path.read_bytes())[-1]
        return hit.rstrip(b"\0").decode()


class Studies:
    """Runs a command's study in ``root``, where its cache is too."""

    def __init__(self, root: Path, arguments: list[str]) -> None:
        self._arguments = arguments
        self._root = root
        self._out = root / "out"
        self._kept = root.with_name(f"{root.name}-kept")
        self._control = Control(root.with_name(f"{root.name}.control"), root)
        self._report: dict[str, str | bytes] | None = None
        self._reference: dict[str, Any] = {}
        self._draw = _prepare_process(self._render, with_accuracy="performance" not in arguments)
        self._now = "new"

    def trace(self, folders: list[str]) -> dict[str, list[str]]:
        """Run undisturbed, keep what that leaves, and return all calls for each of these kinds of folder."""
        from bitladder.decide.recommendation import Limits
        from bitladder.results.store import load_results

        self._begin("new")
        noted = self._root.with_name(f"{self._root.name}.modules")
        os.environ[_NOTED] = str(noted)
        os._exit = _end  # type: ignore[assignment]
        traces = {"new": self._undisturbed()}
        os._exit = _exit
        _import_all(noted)
        if "finished" in folders:
            shutil.copytree(self._root, self._kept)
            self._report = self._draw(load_results(self._out), Limits(), None)
            self._begin("finished")
            traces["finished"] = self._undisturbed()
        return {folder: traces[folder] for folder in folders}

    def try_points(self, points: list[Point]) -> list[Tried]:
        """One after the other, in what the one before left, and then the same command undisturbed."""
        self._begin(points[0].folder)
        every = []
        for point in points:
            self._control.arm(point)
            run = self._run()
            tried = Tried(self._control.hit(), run.code, last_line(run.output), run.seconds)
            self._control.arm(None)
            tried.complaints += judge(run.code, run.output, run.orphans, killed=point.error == KILL)
            tried.complaints += torn_files(self._out)
            every.append(tried)
        again = self._run()
        every[-1].again_s = again.seconds
        if again.code != 0:
            every[-1].complaints.append(f"the same command ends with {again.code}: {again.output[-1500:]}")
        else:
            every[-1].complaints += differences(self._reference[points[0].folder], describe(self._root))
        return every

    def _undisturbed(self) -> list[str]:
        self._control.arm(None, tracing=True)
        run = self._run()
        if run.code != 0:
            raise RuntimeError(f"an undisturbed study ends with {run.code}:\n{run.output}")
        self._reference[self._now] = describe(self._root)
        return [line.partition(" ")[2] for line in self._control.trace.read_text().splitlines()]

    def _wipe(self) -> None:
        self._control.arm(None)
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir(parents=True)

    def _begin(self, folder: str) -> None:
        self._wipe()
        self._now = folder
        if folder == "finished":
            shutil.rmtree(self._root)
            shutil.copytree(self._kept, self._root)
            shutil.rmtree(self._out / "report")

    def _render(self, results: Any, limits: Any, machine: None) -> dict[str, str | bytes]:
        """Drawing takes seconds and changes no folder: what was drawn of these records, or else the numbers alone."""
        from bitladder.decide import recommend
        from bitladder.report.output import ResultsFile
        from bitladder.summary.summarize import summarize

        if self._now == "finished":
            assert self._report is not None
            return self._report
        summary = summarize(results)
        numbers = ResultsFile(summary=summary, recommendation=recommend(summary, limits))
        return {"results.json": numbers.model_dump_json()}

    def _run(self) -> Run:
        log = self._root.with_name(f"{self._root.name}.log")
        child = os.fork()
        if not child:
            _be_command([*self._arguments, "--out", str(self._out)], log)
        started = time.monotonic()
        code = _wait(child)
        orphans = _reap_others()
        return Run(code, log.read_text(errors="replace"), orphans, time.monotonic() - started)


def _prepare_process(render: Any, *, with_accuracy: bool) -> Any:
    """Take out of a study what makes it slow. Returns what draws a report."""
    for name in _IMPORTED:
        import_module(name)
    import bitladder.accuracy.samples
    import bitladder.report.output
    import bitladder.study.time_left
    from bitladder.executors.forkserver import ForkServer
    from bitladder.study import calibration
    from bitladder.tasks import registry

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # so that orphans are seen
    draw = bitladder.report.output._render
    bitladder.report.output._render = render
    bitladder.accuracy.samples.INTERVAL_S = 0.0  # else a tiny study writes no journal
    bitladder.study.time_left.busy_share = lambda: 0.0  # type: ignore[attr-defined]  # which takes a second
    if with_accuracy:
        scan, folder = registry.scan, registry.harness_tasks()
        names = scan(folder)
        registry.scan = lambda asked: names if asked == folder else scan(asked)  # type: ignore[assignment]
        registry._read_names = lambda path, _: names if path.is_file() else None  # type: ignore[assignment]
    calibration._REPEATS = 1
    ForkServer._start = _fork_server  # type: ignore[assignment, method-assign]
    return draw


def _import_all(path: Path) -> None:
    """What the processes of a study noted that they had imported."""
    for name in dict.fromkeys(path.read_text().split()):
        with suppress(ImportError):
            import_module(name)


def _end(code: int) -> NoReturn:
    """Of a process of the first study: note what it imported."""
    with Path(os.environ[_NOTED]).open("a") as file:
        file.write("".join(f"{name}\n" for name in list(sys.modules) if name != "__main__"))
    _exit(code)


class _Forked:
    """What `ForkServer` uses of a subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def wait(self) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code


def _fork_server(self: Any) -> _Forked:
    from bitladder.executors.serving import _serve

    with self._theirs, self._open_log() as log:
        child = os.fork()
        if child:
            return _Forked(child)
        os.setsid()
        for source, standard in ((os.open(os.devnull, os.O_RDONLY), 0), (log.fileno(), 1), (log.fileno(), 2)):
            os.dup2(source, standard)
        channel = os.dup2(self._theirs.fileno(), 3)
        os.closerange(4, 1024)
        code = 1
        try:
            _serve(socket.socket(fileno=channel), self._target)
            code = 0
        finally:
            os._exit(code)


def _be_command(arguments: list[str], log: Path) -> None:
    from bitladder.cli import main

    code = 99
    try:
        os.setsid()
        for standard in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), standard)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["bitladder", "study", *arguments]
        main.run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int | None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _reap_others(patience_s: float = 15) -> int:
    """Wait until all that the command started is gone; how many it took a signal to end."""
    deadline, killed = time.monotonic() + patience_s, 0
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return killed
        if time.monotonic() > deadline:
            for process in psutil.Process().children(recursive=True):
                process.kill()
                killed += 1
            deadline += patience_s
        time.sleep(0.005)


def serve(root: Path, arguments: list[str]) -> None:
    """Answer each line, points or the kinds of folders to trace, with one."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print
    studies = Studies(root, arguments)
    for line in sys.stdin:
        asked = json.loads(line)
        if "trace" in asked:
            answer: Any = studies.trace(asked["trace"])
        else:
            answer = [asdict(tried) for tried in studies.try_points([Point(**one) for one in asked["points"]])]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2:])
