"""Kernels of the Hub are remote code: no process of ours finds the package that fetches them, unless allowed."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from bitladder import forkserver
from bitladder.checkpoint.loading import load_config
from bitladder.cli.main import app
from bitladder.forkserver import ForkServer


@pytest.mark.parametrize("trusted", [False, True])
def test_workers_find_them_only_with_leave(trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked for as bitsandbytes does at its import, which the server may do before any worker."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__): ...\n")
    (tmp_path / "asking.py").write_text(
        "import os\n"
        "try:\n    from kernels import get_kernel\nexcept Exception as error:\n    found = str(error)\n"
        "else:\n    found = 'fetched'\n\n"
        "def work(descriptor):\n    os.write(descriptor, found.encode())\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    monkeypatch.setattr(forkserver, "PRELOADED", ("asking",))
    with ForkServer("asking", None, with_gpu=True, trust_remote_code=trusted) as server:
        answer = server.ask("{}")[0].decode()
    assert (answer == "fetched") == trusted
    assert trusted or "import of kernels halted" in answer


@pytest.mark.parametrize("trusted", [False, True])
def test_this_process_finds_them_only_with_leave(
    trusted: bool, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = ModuleType("kernels")
    monkeypatch.setitem(sys.modules, "kernels", fake)
    load_config(tiny_llama, trust_remote_code=trusted)
    assert sys.modules["kernels"] is (fake if trusted else None)
    flags = ["--trust-remote-code"] if trusted else []
    for command in (["audit", "none"], ["publish", "none", "--repo", "a/b"], ["study", "none", "--limit", "0"]):
        monkeypatch.setitem(sys.modules, "kernels", fake)
        assert CliRunner().invoke(app, [*command, *flags]).exit_code
        assert sys.modules["kernels"] is (fake if trusted else None), command
