"""The process that workers are forked from: its branches, and when it ends before its time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitladder.errors import UserError, describe_machine_error
from bitladder.executors.forkserver import ForkServer


def test_a_server_that_was_killed_is_one_line(tmp_path: Path) -> None:
    with ForkServer("bitladder.perf.maxbatch", tmp_path / "log", with_gpu=False) as server:
        server.start()
        assert server._process is not None
        server._process.send_signal(signal.SIGKILL)
        with pytest.raises(UserError, match=r"was killed \(signal 9\).*run the same command again"):
            server.ask("{}")


def test_a_server_that_ends_by_itself_is_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ForkServer("bitladder.perf.maxbatch", tmp_path / "log", with_gpu=False) as server:
        monkeypatch.setattr(server, "_modules", ("no_such_module",))
        with pytest.raises(ConnectionError, match="has ended; log: "):
            server.ask("{}")
    assert "no_such_module" in (tmp_path / "log").read_text()


def test_a_fork_that_the_machine_refuses_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refusing.py").write_text(
        "import os\nfork = os.fork\n\n\ndef refuse():\n    os.fork = fork\n    raise BlockingIOError(11, 'no')\n\n\n"
        "os.fork = refuse\n\n\ndef work(job, answers):\n    print('done', file=answers)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with ForkServer("refusing", tmp_path / "log", with_gpu=False) as server:
        monkeypatch.setattr(server, "_modules", ("refusing",))
        with pytest.raises(BlockingIOError) as refused:
            server.ask("{}")
        assert "ulimit -u" in str(describe_machine_error(refused.value))
        assert server.ask("{}")[0] == b"done", "the next time"


def test_a_log_that_cannot_be_closed_ends_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refusing.py").write_text(
        "import os\nclose = os.close\n\n\ndef refuse(descriptor):\n    close(descriptor)\n    raise OSError(5)\n\n\n"
        "def work(job, answers):\n    print('done', file=answers)\n\n\nos.close = refuse\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with ForkServer("refusing", tmp_path / "log", with_gpu=False) as server:
        monkeypatch.setattr(server, "_modules", ("refusing",))
        assert [server.ask("{}") for _ in range(2)] == [(b"done", 0)] * 2


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module whose workers tell what was prepared, and by which process."""
    (tmp_path / "telling.py").write_text(
        "import os, time\n\nprepared = None\n\n\ndef prepare(text):\n    global prepared\n"
        "    if text == 'fail': raise ValueError('nothing to prepare')\n    if text == 'sleep': time.sleep(60)\n"
        "    prepared = f'{os.getpid()} {text}'\n\n\ndef try_out():\n    assert prepared.split()[1] != 'unfit'\n\n\n"
        "def work(job, answers):\n    print(os.getppid(), prepared, file=answers)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name in ("PRELOADED", "CPU_PRELOADED"):
        monkeypatch.setattr(f"bitladder.executors.executor.{name}", ())
    return "telling"


def test_a_branchs_workers_begin_where_its_preparation_ended(target: str, tmp_path: Path) -> None:
    text = "x" * 300_000
    with ForkServer(target, tmp_path / "log", with_gpu=False) as server:
        with server.branch(text) as branch:
            assert branch.wait_until_ready(60) is None
            answers = [branch.ask("{}")[0].decode() for _ in range(2)]
            elsewhere = server.ask("{}")[0].decode()
        (parent, prepared, found), again = answers[0].split(), answers[1].split()
        assert parent == prepared and found == text and again == answers[0].split()
        assert elsewhere.split()[1] == "None" and elsewhere.split()[0] != parent
        with pytest.raises(ProcessLookupError):  # it ends when it is closed, and is reaped
            os.kill(int(parent), 0)
        assert server.ask("{}")[1] == 0


def test_why_a_branch_forks_no_workers_is_told(target: str, tmp_path: Path) -> None:
    with ForkServer(target, tmp_path / "log", with_gpu=False) as server:
        with server.branch("fail") as branch:
            for _ in range(2):
                assert branch.wait_until_ready(60) == f"failed; log: {tmp_path / 'log'}"
        assert "nothing to prepare" in (tmp_path / "log").read_text()
        with server.branch("unfit") as branch:
            assert "that a fork of the process can't use" in (branch.wait_until_ready(60) or "")
        with server.branch("sleep") as branch:
            assert branch.wait_until_ready(0.1) == "took longer than 0.1 s"
            os.kill(branch._process_id, signal.SIGKILL)
            assert branch.wait_until_ready(60) == "ended by a signal, for lack of memory if not by hand"
        with server.branch("it") as branch:
            assert branch.wait_until_ready(60) is None
            process_id = int(branch.ask("{}")[0].split()[0])
            os.kill(process_id, signal.SIGKILL)
            with pytest.raises(UserError, match=r"was killed \(signal 9\)"):
                branch.ask("{}")
        assert server.ask("{}")[1] == 0


@pytest.mark.slow
def test_threads_that_a_fork_loses_are_found(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own, of an operation as a task is built."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("bitladder.executors.executor.PRELOADED", ("torch",))
    telling = tmp_path / "telling.py"
    telling.write_text(
        "import torch\nfrom bitladder.study.worker import try_out as fork\n\n\ndef prepare(text):\n"
        "    if text == 'multiply': float((torch.ones(512, 512) @ torch.ones(512, 512) + 1).sum())\n\n\n"
        "def try_out():\n    import signal\n    signal.alarm(2)\n    fork()\n"
    )
    with ForkServer(target, tmp_path / "log", with_gpu=False) as server:
        for text, fit in (("nothing", True), ("multiply", False)):
            with server.branch(text) as branch:
                assert (branch.wait_until_ready(60) is None) == fit


@pytest.mark.parametrize("preparation", ["it", "sleep"])
def test_a_branch_ends_with_its_owner(target: str, tmp_path: Path, preparation: str) -> None:
    owner = (
        "import os; from bitladder.executors import executor, forkserver\n"
        "executor.PRELOADED = executor.CPU_PRELOADED = ()\n"
        f"branch = forkserver.ForkServer({target!r}, None, with_gpu=False).branch({preparation!r})\n"
        "branch.wait_until_ready(0.5)\nprint(branch._process_id, flush=True)\nos.kill(os.getpid(), 9)"
    )
    ran = subprocess.run([sys.executable, "-c", owner], capture_output=True, text=True, timeout=60, check=False)
    process_id = int(ran.stdout)
    for _ in range(100):
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the branch is still there")
