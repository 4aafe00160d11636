"""Checkpoints to tamper with: a plain one of the tiny model, and one on each rung."""

import shutil
from pathlib import Path

import pytest

from audit_checkpoints import CopyRung


@pytest.fixture
def tiny_copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BF16 model, without a manifest, to tamper with."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def made_rungs(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> CopyRung:
    """The tiny model's checkpoint on a rung, made once a session; not to be written to."""
    from bitladder.quantization import quantize

    directory = tmp_path_factory.mktemp("rungs")

    def make(rung: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BITLADDER_CACHE", str(directory / "cache"))
            return quantize(str(tiny_llama), rung, directory / rung).directory

    return make


@pytest.fixture
def copy_rung(made_rungs: CopyRung, tmp_path: Path) -> CopyRung:
    return lambda rung: Path(shutil.copytree(made_rungs(rung), tmp_path / rung))
