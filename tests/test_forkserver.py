"""The process that workers are forked from: its branches, and when it ends before its time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitladder import forkserver
from bitladder.errors import UserError
from bitladder.forkserver import ForkServer


def test_a_server_that_was_killed_is_one_line(tmp_path: Path) -> None:
    with ForkServer("bitladder.perf.probe", tmp_path / "log", with_gpu=False) as server:
        server.start()
        assert server._process is not None
        server._process.send_signal(signal.SIGKILL)
        with pytest.raises(UserError, match=r"was killed \(signal 9\).*run the same command again"):
            server.ask("{}")


def test_a_server_that_ends_by_itself_is_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ForkServer("bitladder.perf.probe", tmp_path / "log", with_gpu=False) as server:
        monkeypatch.setattr(server, "_modules", ("no_such_module",))
        with pytest.raises(ConnectionError, match="has ended; log: "):
            server.ask("{}")
    assert "no_such_module" in (tmp_path / "log").read_text()


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module whose workers tell what was prepared, and by which process."""
    (tmp_path / "telling.py").write_text(
        "import os\n\nprepared = None\n\n\ndef prepare(text):\n    global prepared\n"
        "    if text == 'fail': raise ValueError('nothing to prepare')\n    prepared = f'{os.getpid()} {text}'\n\n\n"
        "def work(messages):\n    os.write(messages, f'{os.getppid()} {prepared}'.encode())\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name in ("PRELOADED", "CPU_PRELOADED"):
        monkeypatch.setattr(forkserver, name, ())
    return "telling"


def test_a_branchs_workers_begin_where_its_preparation_ended(target: str, tmp_path: Path) -> None:
    text = "x" * 300_000
    with ForkServer(target, tmp_path / "log", with_gpu=False) as server:
        with server.branch(text) as branch:
            answers = [branch.ask("{}")[0].decode() for _ in range(2)]
            elsewhere = server.ask("{}")[0].decode()
        (parent, prepared, found), again = answers[0].split(), answers[1].split()
        assert parent == prepared and found == text and again == answers[0].split()
        assert elsewhere.split()[1] == "None" and elsewhere.split()[0] != parent
        with pytest.raises(ProcessLookupError):  # it ends when it is closed, and is reaped
            os.kill(int(parent), 0)
        assert server.ask("{}")[1] == 0


def test_how_a_branch_ended_is_told(target: str, tmp_path: Path) -> None:
    with ForkServer(target, tmp_path / "log", with_gpu=False) as server:
        with server.branch("fail") as branch:
            for _ in range(2):
                with pytest.raises(ConnectionError, match="has ended; log: "):
                    branch.ask("{}")
        assert "nothing to prepare" in (tmp_path / "log").read_text()
        with server.branch("it") as branch:
            process_id = int(branch.ask("{}")[0].split()[0])
            os.kill(process_id, signal.SIGKILL)
            with pytest.raises(UserError, match=r"was killed \(signal 9\)"):
                branch.ask("{}")
        assert server.ask("{}")[1] == 0


def test_a_branch_ends_with_its_owner(target: str, tmp_path: Path) -> None:
    owner = (
        "import os; from bitladder import forkserver; forkserver.PRELOADED = forkserver.CPU_PRELOADED = ()\n"
        f"server = forkserver.ForkServer({target!r}, None, with_gpu=False)\n"
        "print(server.branch('it').ask('{}')[0].split()[0].decode(), flush=True)\nos.kill(os.getpid(), 9)"
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
