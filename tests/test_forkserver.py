"""The process that workers are forked from, when it ends before its time."""

import signal
from pathlib import Path

import pytest

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
