"""Stored weights as numbers, read through a memory map a piece at a time: which are none, and how large they get."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitladder.checkpoint.tensors import TensorInfo, read_tensors, weight_files
from bitladder.methods.kinds import FLOATS, is_packed

Bits = npt.NDArray[Any]

WINDOW = 128
"""neighbouring weights of a sample"""
SAMPLED_WINDOWS = 1024
"""stretches looked at a tensor: 4,096 blocks of 32"""

_PIECE = 1 << 18
"""elements read at once: as many as stay in a processor's cache"""
_BIT_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<u8"),
    "F32": np.dtype("<u4"),
    "C64": np.dtype("<u4"),
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<u2"),
}
_INFINITY = {
    "F64": 0x7FF0_0000_0000_0000,
    "F32": 0x7F80_0000,
    "C64": 0x7F80_0000,
    "BF16": 0x7F80,
    "F16": 0x7C00,
    "F8_E5M2": 0x7C,
}
"""its bits; those of NaN are larger, those of finite numbers smaller"""
_NAN_BYTES = {"F8_E4M3": (0x7F, 0xFF), "F8_E8M0": (0xFF,), "F8_E4M3FNUZ": (0x80,), "F8_E5M2FNUZ": (0x80,)}
"""all bits that are NaN, in types without infinity"""


@dataclass(frozen=True)
class Values:
    """What one tensor holds."""

    count: int
    nans: int = 0
    infinities: int = 0
    largest: float | None = None
    """magnitude; None where some are no numbers, of no values, and of types of 8 bits"""

    @property
    def are_finite(self) -> bool:
        return not self.nans and not self.infinities


def tensor_values(directory: Path) -> dict[str, Values]:
    """What each floating tensor holds, scales among them. Codes that are packed in a floating type are no numbers.

    Files that haven't changed since this process last read them are not read again. Raises as `read_tensors`.
    """
    status = [(path.name, path.stat()) for path in weight_files(directory)]
    marks = tuple((name, one.st_ino, one.st_size, one.st_mtime_ns) for name, one in status)
    return _read_values(directory.absolute(), marks)


def describe_not_finite(values: Mapping[str, Values]) -> str | None:
    """Which tensors hold something else than numbers, in a few words; None where all are numbers."""
    found = {name: one for name, one in values.items() if not one.are_finite}
    if not found:
        return None
    name, first = next(iter(found.items()))
    kinds = ((first.nans, "NaN"), (first.infinities, "infinite"))
    told = " and ".join(f"{count:,} {kind}" for count, kind in kinds if count)
    more = f"; so do {len(found) - 1:,} more tensors" if len(found) > 1 else ""
    return f"{name} holds {told} among {first.count:,} values{more}"


@functools.lru_cache(maxsize=16)
def _read_values(directory: Path, marks: object) -> dict[str, Values]:
    tensors = read_tensors(directory)
    return {
        name: _values(directory, tensor)
        for name, tensor in tensors.items()
        if tensor.dtype in (*_INFINITY, *_NAN_BYTES) and not is_packed(name, tensors)
    }


def _values(directory: Path, tensor: TensorInfo) -> Values:
    if tensor.dtype in _NAN_BYTES:
        codes = _NAN_BYTES[tensor.dtype]
        nans = sum(int(np.count_nonzero(piece == code)) for piece in pieces(directory, tensor) for code in codes)
        return Values(tensor.size_bytes, nans)
    largest = -1
    for piece in pieces(directory, tensor):
        # Of the positive ones the largest as signed, of the negative ones as unsigned: no copy without the sign.
        sign = 1 << (8 * piece.itemsize - 1)
        negative = int(piece.max())
        largest = max(largest, int(piece.view(np.dtype(f"<i{piece.itemsize}")).max()), negative - sign)
    count = tensor.size_bytes // bits_of(directory, tensor).itemsize
    if largest >= _INFINITY[tensor.dtype]:
        return _count_not_finite(directory, tensor, count)
    return Values(count, largest=_to_float(largest, tensor.dtype) if largest >= 0 and tensor.dtype in FLOATS else None)


def _count_not_finite(directory: Path, tensor: TensorInfo, count: int) -> Values:
    infinity = _INFINITY[tensor.dtype]
    nans = infinities = 0
    for piece in pieces(directory, tensor):
        magnitude = piece & piece.dtype.type((1 << (8 * piece.itemsize - 1)) - 1)
        nans += int(np.count_nonzero(magnitude > infinity))
        infinities += int(np.count_nonzero(magnitude == infinity))
    return Values(count, nans, infinities)


def _to_float(bits: int, dtype: str) -> float:
    if dtype == "BF16":
        bits, dtype = bits << 16, "F32"
    width = {"F64": 8, "F32": 4, "F16": 2}[dtype]
    return float(np.frombuffer(bits.to_bytes(width, "little"), f"<f{width}")[0])


def sample_windows(directory: Path, tensor: TensorInfo) -> Bits:
    """Bit patterns of up to 1,024 stretches of 128 neighbouring weights, evenly spread: (n, 128)."""
    bits = bits_of(directory, tensor)
    windows = bits[: len(bits) // WINDOW * WINDOW].reshape(-1, WINDOW)
    chosen = np.linspace(0, len(windows) - 1, min(len(windows), SAMPLED_WINDOWS)).astype(np.int64)
    return windows[chosen]


def pieces(directory: Path, tensor: TensorInfo) -> Iterator[Bits]:
    """All bit patterns of a tensor, flat, as many at a time as a cache holds."""
    bits = bits_of(directory, tensor)
    for start in range(0, len(bits), _PIECE):
        yield bits[start : start + _PIECE]


def bits_of(directory: Path, tensor: TensorInfo) -> Bits:
    """A tensor's bit patterns, flat, without reading the file; bytes where its type has no pattern here."""
    file = np.memmap(directory / tensor.file, dtype=np.uint8, mode="r")
    data = file[tensor.offset : tensor.offset + tensor.size_bytes]
    bits: Bits = data.view(_BIT_TYPES.get(tensor.dtype, data.dtype))
    return bits
