"""What SafeTensors files hold, read from their headers, without torch.

Format: 8 bytes little-endian header length, the header as JSON ``{name: {dtype, shape, data_offsets}}``, then the data.
"""

import hashlib
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from bitladder.checkpoint.config import read_config
from bitladder.errors import BrokenFileError, UserError
from bitladder.files import parse_json_object, read_json_object

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_RANK_FILE = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors$")
_CHUNK_BYTES = 1 << 20
_LARGEST_SIZE = (1 << 63) - 1
_SHOWN_CHARACTERS = 60
_FETCH = "fetch or make it again"


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor. ``dtype`` is SafeTensors' name, ``offset`` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    size_bytes: int


def weight_files(directory: Path) -> list[Path]:
    """The SafeTensors files that transformers would load: the single one, else the index's shards.

    Raises UserError where there are none (pickle weights are not read) and where transformers would load those of a
    distributed training instead, BrokenFileError for a bad index.
    """
    if ranks := sorted(path.name for path in directory.glob("*.safetensors") if _RANK_FILE.match(path.name)):
        raise UserError(
            f"{directory}: {ranks[0]} of a distributed training, which transformers loads in place of {WEIGHTS}; "
            "load it with transformers, and save the model with save_pretrained"
        )
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / WEIGHTS_INDEX
    if index.is_file():
        shards = _read_index(index)
        missing = sorted(shard for shard in shards if not (directory / shard).is_file())
        if missing:
            raise BrokenFileError(f"{directory / missing[0]}: missing, but {WEIGHTS_INDEX} names it; fetch it again")
        return [directory / shard for shard in sorted(shards)]
    pickled = sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt")) + sorted(directory.glob("*.pth"))
    if pickled:
        raise UserError(
            f"{directory}: only pickle weights ({pickled[0].name}), which can run code and are refused; "
            f"expected {WEIGHTS}; save the model again with save_pretrained"
        )
    raise UserError(f"{directory}: no weights; expected {WEIGHTS} or {WEIGHTS_INDEX}")


def _read_index(path: Path) -> set[str]:
    """The shards' names: of files beside the index, whoever wrote it."""
    index = read_json_object(path, _FETCH)
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise BrokenFileError(f"{path}: no weight_map in it that names a file for each tensor; {_FETCH}")
    if not isinstance(index.get("metadata"), dict):  # transformers fails without
        raise BrokenFileError(f"{path}: no metadata in it, expected an object; {_FETCH}")
    for tensor, shard in shards.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise BrokenFileError(
                f"{path}: {tensor} is in {shard!r}, expected the name of a SafeTensors file beside it; {_FETCH}"
            )
    return set(shards.values())


def read_tensors(directory: Path) -> dict[str, TensorInfo]:
    """All tensors of a checkpoint by name, over all shards; only the headers are read.

    Raises BrokenFileError naming the file that is truncated or can't be parsed, and UserError as `weight_files`.
    """
    tensors: dict[str, TensorInfo] = {}
    for path in weight_files(directory):
        stored = _read_header(path)
        for name in tensors.keys() & stored.keys():
            raise BrokenFileError(f"{path}: {name} is in {tensors[name].file}, too; {_FETCH}")
        tensors |= stored
    if not tensors:
        raise BrokenFileError(f"{directory}: its weight files hold no tensor; {_FETCH}")
    return tensors


def _read_header(path: Path) -> dict[str, TensorInfo]:
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= file_bytes - 8:
            raise _broken(path, f"{file_bytes} bytes, not enough for its header")
        text = file.read(length)
    header = parse_json_object(text, f"{path}: its header", _FETCH)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _broken(path, "its header's __metadata__ isn't text by name")
    tensors = {name: _read_entry(name, entry, path, 8 + length) for name, entry in header.items()}
    position = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size_bytes)):
        if math.prod(tensor.shape) * _BITS[tensor.dtype] != tensor.size_bytes * 8:
            raise _broken(path, f"{name} has {tensor.size_bytes} bytes, not those of {tensor.dtype} {tensor.shape}")
        if tensor.offset != position:
            raise _broken(path, f"{name} starts at byte {tensor.offset}, not at {position}")
        position += tensor.size_bytes
    if position != file_bytes:
        raise _broken(path, f"{file_bytes} bytes, its header says {position}")
    return tensors


def _read_entry(name: str, entry: Any, path: Path, data_start: int) -> TensorInfo:
    stated = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = stated.get("dtype"), stated.get("shape"), stated.get("data_offsets")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2 or not isinstance(dtype, str):
        raise _broken(path, f"its header says {str(entry)[:_SHOWN_CHARACTERS]} of {name}, not type, shape and place")
    if dtype not in _BITS:
        raise BrokenFileError(
            f"{path}: {name} has the type {dtype[:_SHOWN_CHARACTERS]!r}, none of SafeTensors'; {_FETCH}"
        )
    start, end = offsets
    return TensorInfo(dtype, tuple(shape), path.name, data_start + start, end - start)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size <= _LARGEST_SIZE for size in value)


def _broken(path: Path, found: str) -> BrokenFileError:
    return BrokenFileError(f"{path}: {found}; truncated or altered: {_FETCH}")


def content_hash(directory: Path) -> str:
    """SHA-256 over the tensors sorted by name: name, dtype, shape and bytes; the same however they are sharded.

    A quantized checkpoint's settings (config.json's ``quantization_config``) come first: two that differ only in
    LLM.int8's threshold or in the compute type hold equal tensors, and answer differently.
    """
    total = hashlib.sha256()
    settings = read_config(directory).get("quantization_config")
    if settings:
        total.update(json.dumps(settings, sort_keys=True).encode())
    for _, chunk in _content(directory):
        total.update(chunk)
    return total.hexdigest()


def tensor_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of each tensor by name: name, dtype, shape and bytes."""
    hashes: dict[str, hashlib._Hash] = {}
    for name, chunk in _content(directory):
        hashes.setdefault(name, hashlib.sha256()).update(chunk)
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def _content(directory: Path) -> Iterator[tuple[str, bytes | memoryview]]:
    """(tensor, piece) over the tensors sorted by name: name, dtype and shape as JSON first, then the bytes."""
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    files = {path.name: path.open("rb", buffering=0) for path in weight_files(directory)}
    try:
        for name, tensor in sorted(read_tensors(directory).items()):
            yield name, json.dumps([name, tensor.dtype, tensor.shape]).encode()
            file = files[tensor.file]
            file.seek(tensor.offset)
            left = tensor.size_bytes
            while left:
                count = file.readinto(buffer[: min(left, _CHUNK_BYTES)])
                if not count:
                    raise _broken(directory / tensor.file, "ends while it is read")
                yield name, buffer[:count]
                left -= count
    finally:
        for file in files.values():
            file.close()


def bytes_by_dtype(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Stored bytes of each type, largest first; the file's header is not counted."""
    totals: Counter[str] = Counter()
    for tensor in tensors.values():
        totals[tensor.dtype] += tensor.size_bytes
    return dict(totals.most_common())
