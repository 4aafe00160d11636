"""Kernels of the Hub are remote code: no process of ours finds the package that fetches them, unless allowed."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from bitladder.checkpoint.loading import load_config
from bitladder.cli.main import app
from bitladder.executors.forkserver import ForkServer
from bitladder.records import LoadPolicy


@pytest.mark.parametrize("trusted", [False, True])
def test_workers_find_them_only_with_leave(trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked for as bitsandbytes does at its import, which the server may do before any worker."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__): ...\n")
    (tmp_path / "asking.py").write_text(
        "try:\n    from kernels import get_kernel\nexcept Exception as error:\n    found = str(error)\n"
        "else:\n    found = 'fetched'\n\n"
        "def work(job, answers):\n    print(found, file=answers)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    monkeypatch.setattr("bitladder.executors.executor.PRELOADED", ("asking",))
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
    load_config(tiny_llama, LoadPolicy(trust_remote_code=trusted))
    assert sys.modules["kernels"] is (fake if trusted else None)
    flags = ["--trust-remote-code"] if trusted else []
    for command in (["audit", "none"], ["publish", "none", "--repo", "a/b"], ["study", "none", "--out", __file__]):
        monkeypatch.setitem(sys.modules, "kernels", fake)
        assert CliRunner().invoke(app, [*command, *flags]).exit_code
        assert sys.modules["kernels"] is (fake if trusted else None), command


FETCHING = """
import os, pathlib, socket
pathlib.Path(os.environ["KERNELS_SEEN"]).touch()
def get_kernel(*_, **__):
    socket.create_connection(("192.0.2.1", 443), timeout=1)
class _Anything:
    def __init__(self, *_, **__): pass
def _decorator(*_, **__):
    return lambda decorated: decorated
def __getattr__(name):
    if name.startswith("__"): raise AttributeError(name)
    return _decorator if name.islower() else _Anything
"""
WITHOUT_NETWORK = """
import socket
def _refuse(self, address):
    if self.family != socket.AF_UNIX: raise OSError(101, "Network is unreachable")
    return _connect(self, address)
_connect = socket.socket.connect
socket.socket.connect = _refuse
"""
WORKING = """
import os
def work(job, answers):
    import bitsandbytes, torch, transformers.integrations.hub_kernels
    try:
        from kernels import get_kernel
        get_kernel("some/kernel")  # as bitsandbytes does at its import where the CPU has BF16
    except Exception as error:
        assert isinstance(error, (ImportError, OSError)), error
    layer = bitsandbytes.nn.LinearNF4(32, 32, bias=False, compute_dtype=torch.bfloat16).to("cpu")
    out = layer(torch.ones(1, 32, dtype=torch.bfloat16))
    print(tuple(out.shape), file=answers)
"""


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [False, True])
def test_no_import_and_no_fork_needs_what_a_package_fetches(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the server imports, beside a ``kernels`` that fetches, where there is no network and nobody said so."""
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    for name, source in (("kernels", FETCHING), ("sitecustomize", WITHOUT_NETWORK), ("working", WORKING)):
        (tmp_path / f"{name}.py").write_text(source)
    metadata = tmp_path / f"kernels-{KERNELS_MIN_VERSION}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    seen = tmp_path / "seen"
    monkeypatch.setenv("KERNELS_SEEN", str(seen))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "USE_HUB_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    with ForkServer("working", tmp_path / "log", with_gpu=False, trust_remote_code=trusted) as server:
        answer, code = server.ask("{}", (tmp_path / "log").open("ab"))
    assert (answer, code) == (b"(1, 32)", 0), (tmp_path / "log").read_text()
    assert seen.exists() == trusted
