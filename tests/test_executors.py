"""What every executor does alike; the fork server's own is in ``test_forkserver``."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bitladder.executors.executor import RAISED, Executor
from bitladder.executors.table import EXECUTORS, VARIABLE, open_executor
from bitladder.study.workers import Worker
from test_study_run import job_for

TARGET = """\
import os, subprocess, time

def work(job, answers):
    if job == "raise": raise ValueError("of the worker's own")
    if job.startswith("{"): time.sleep(60)
    print(subprocess.Popen(["sleep", "60"]).pid, os.getpgid(0), file=answers, flush=True)
    if job == "sleep": time.sleep(60)
    print("whole\\nhalf", end="", file=answers, flush=True)
    if job == "die": os.kill(os.getpid(), 9)
"""


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    (tmp_path / "working_here.py").write_text(TARGET)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv(VARIABLE, request.param)
    for name in ("PRELOADED", "CPU_PRELOADED"):
        monkeypatch.setattr(f"bitladder.executors.executor.{name}", ())
    with open_executor("working_here", tmp_path / "log", with_gpu=False) as opened:
        yield opened


def gone(process_id: int) -> bool:
    """Soon: what took a signal may have nobody yet who asks how it ended."""
    for _ in range(100):
        if not psutil.pid_exists(process_id) or psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_worker_is_ended_with_all_that_it_started(executor: Executor) -> None:
    with executor.submit("sleep") as running:
        child, group = map(int, (running.receive(60) or b"").split())
        assert group == running.process_id
        with pytest.raises(TimeoutError):
            running.receive(0.01)
        running.end()
        assert running.wait() == -signal.SIGKILL
    assert gone(child)


def test_leaving_a_worker_ends_it(executor: Executor) -> None:
    with pytest.raises(KeyboardInterrupt), executor.submit("sleep") as running:
        child = int((running.receive(60) or b"").split()[0])
        raise KeyboardInterrupt
    assert running.wait() == -signal.SIGKILL and gone(child)
    assert executor.ask("raise")[1] == RAISED, "and the next one is run"


def test_half_a_line_is_no_answer(executor: Executor) -> None:
    with executor.submit("die") as running:
        _, *lines = iter(running.receive, None)
        assert (lines, running.wait()) == ([b"whole"], -signal.SIGKILL)


def test_a_worker_that_raises_says_why_in_its_log(executor: Executor, tmp_path: Path) -> None:
    with (tmp_path / "its.log").open("wb") as log:
        assert executor.ask("raise", log) == (b"", RAISED)
    assert "of the worker's own" in (tmp_path / "its.log").read_text()


def test_a_studys_worker_is_ended_when_its_time_is_up(executor: Executor, tmp_path: Path) -> None:
    worker = Worker(executor, job_for(tmp_path), tmp_path / "its.log", timeout_s=0.5)
    started_s = time.monotonic()
    assert list(worker.messages()) == []
    assert worker.ended is not None and worker.ended.status == "timeout"
    assert time.monotonic() - started_s < 30
