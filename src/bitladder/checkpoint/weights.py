"""Stored weights as numbers: which are none, how large they get, and what a rung's types cannot hold.

They are read through a memory map, a piece at a time. Weights of 16 bits may have had 4 before: then a loss against
them is not the whole loss.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitladder.checkpoint.tensors import TensorInfo, read_tensors, weight_files
from bitladder.errors import UserError
from bitladder.methods import RUNGS, find_rung, method_of
from bitladder.methods.method import FLOATS, is_packed, kind_of, torch_dtype
from bitladder.records import Scheme
from bitladder.text.words import name_some

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
class TensorValues:
    """What one tensor holds."""

    count: int
    nans: int = 0
    infinities: int = 0
    largest: float | None = None
    """magnitude; None where some are no numbers, of no values, and of types of 8 bits"""

    @property
    def are_finite(self) -> bool:
        return not self.nans and not self.infinities


def tensor_values(directory: Path) -> dict[str, TensorValues]:
    """What each floating tensor holds, scales among them. Codes that are packed in a floating type are no numbers.

    Files that haven't changed since this process last read them are not read again. Raises as `read_tensors`.
    """
    status = [(path.name, path.stat()) for path in weight_files(directory)]
    marks = tuple((name, one.st_ino, one.st_size, one.st_mtime_ns) for name, one in status)
    return _read_values(directory.absolute(), marks)


def describe_not_finite(values: Mapping[str, TensorValues]) -> str | None:
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
def _read_values(directory: Path, marks: object) -> dict[str, TensorValues]:
    tensors = read_tensors(directory)
    return {
        name: _values(directory, tensor)
        for name, tensor in tensors.items()
        if tensor.dtype in (*_INFINITY, *_NAN_BYTES) and not is_packed(name, tensors)
    }


def _values(directory: Path, tensor: TensorInfo) -> TensorValues:
    if tensor.dtype in _NAN_BYTES:
        codes = _NAN_BYTES[tensor.dtype]
        nans = sum(int(np.count_nonzero(piece == code)) for piece in pieces(directory, tensor) for code in codes)
        return TensorValues(tensor.size_bytes, nans)
    largest = -1
    for piece in pieces(directory, tensor):
        # Of the positive ones the largest as signed, of the negative ones as unsigned: no copy without the sign.
        sign = 1 << (8 * piece.itemsize - 1)
        negative = int(piece.max())
        largest = max(largest, int(piece.view(np.dtype(f"<i{piece.itemsize}")).max()), negative - sign)
    count = tensor.size_bytes // bits_of(directory, tensor).itemsize
    if largest >= _INFINITY[tensor.dtype]:
        return _count_not_finite(directory, tensor, count)
    return TensorValues(
        count, largest=_to_float(largest, tensor.dtype) if largest >= 0 and tensor.dtype in FLOATS else None
    )


def _count_not_finite(directory: Path, tensor: TensorInfo, count: int) -> TensorValues:
    infinity = _INFINITY[tensor.dtype]
    nans = infinities = 0
    for piece in pieces(directory, tensor):
        magnitude = piece & piece.dtype.type((1 << (8 * piece.itemsize - 1)) - 1)
        nans += int(np.count_nonzero(magnitude > infinity))
        infinities += int(np.count_nonzero(magnitude == infinity))
    return TensorValues(count, nans, infinities)


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


VANISHED_SHARE = 0.001
"""of all weights that aren't zero; of normal ones with a deviation of 0.02 a millionth is"""
VANISHED_TENSOR_SHARE = 0.1
"""of one tensor's"""

_LAST_VANISHING = {"BF16": 102 << 7, "F32": 102 << 23}
"""bits of 2^-25: half of FP16's least number, and the largest that becomes zero"""


def require_range(directory: Path, rung: str) -> None:
    """Raise UserError where a weight of the model in ``directory`` would become infinite on that rung, naming it."""
    reason = beyond_range(directory, find_rung(rung).scheme)
    if reason is not None:
        others = [name for name, row in RUNGS.items() if beyond_range(directory, row.scheme) is None]
        raise UserError(f"{rung}: {reason}; rungs that hold it: {', '.join(others) or 'none'}")


def beyond_range(directory: Path, scheme: Scheme) -> str | None:
    """Which weight the scheme can't hold; None where it holds all. Values that are none are not looked at."""
    tensors = read_tensors(directory)
    for name, values in tensor_values(directory).items():
        types = _types_passed(scheme, name, tensors[name])
        if values.largest is not None and (end := _end_before(values.largest, types)):
            return f"{name} holds a weight of magnitude {values.largest:,.6g}, and {end}"
    return None


def vanishing(directory: Path, scheme: Scheme) -> str | None:
    """What share of the weights becomes zero in FP16, where it is a large one; None where it is not, or where another
    type is stored. From a sample of each tensor."""
    worst, name_of_worst, lost, kept = 0.0, "", 0.0, 0.0
    for name, tensor in read_tensors(directory).items():
        if "F16" not in _types_passed(scheme, name, tensor) or tensor.dtype not in _LAST_VANISHING:
            continue
        bits = sample_windows(directory, tensor)
        magnitude = bits & bits.dtype.type((1 << (8 * bits.itemsize - 1)) - 1)
        vanished = int(np.count_nonzero(magnitude <= _LAST_VANISHING[tensor.dtype]) - np.count_nonzero(magnitude == 0))
        share = vanished / max(1, int(np.count_nonzero(magnitude)))
        lost, kept = lost + share * tensor.size_bytes, kept + tensor.size_bytes
        if share > worst:
            worst, name_of_worst = share, name
    total = lost / kept if kept else 0.0
    if total <= VANISHED_SHARE and worst <= VANISHED_TENSOR_SHARE:
        return None
    return f"{total:.1%} of the weights become zero in FP16, which ends at 6e-08, and of {name_of_worst} {worst:.0%}"


def _types_passed(scheme: Scheme, name: str, tensor: TensorInfo) -> tuple[str, ...]:
    """The types that a weight is cast to on its way."""
    is_matrix = kind_of(name, tensor) == "linear" and len(tensor.shape) == 2
    return method_of(scheme).passed_types(scheme, is_matrix=is_matrix)


def _end_before(magnitude: float, types: tuple[str, ...]) -> str | None:
    """Where the first of the types ends in which the magnitude is infinite."""
    import torch

    value = torch.tensor(magnitude, dtype=torch.float64)
    for dtype in types:
        value = value.to(torch_dtype(dtype))
        if not torch.isfinite(value):
            return f"{dtype} ends at {torch.finfo(torch_dtype(dtype)).max:,.6g}"
    return None


FOUR_BIT_BLOCKS = (32, 64, WINDOW)
FOUR_BIT_VALUES = 16
FOUR_BIT_SHARE = 0.99
EXAMINED_TYPES = frozenset({"F32", "BF16", "F16"})


@dataclass(frozen=True)
class Dequantized:
    """Matrices whose blocks of neighbouring weights hold no more values than 4 bits have."""

    block_by_tensor: Mapping[str, int]
    share: float
    """of the bytes of all matrices"""

    @property
    def text(self) -> str:
        sizes = "/".join(str(size) for size in sorted(set(self.block_by_tensor.values())))
        return (
            f"{len(self.block_by_tensor):,} matrices ({self.share:.0%} of the bytes of all) were 4-bit: at most "
            f"{FOUR_BIT_VALUES} different values in blocks of {sizes} ({name_some(list(self.block_by_tensor))})"
        )


def find_dequantized(directory: Path, tensors: Mapping[str, TensorInfo]) -> Dequantized | None:
    """From a sample of each of the ``directory``'s matrices; None where none was 4-bit."""
    blocks: dict[str, int] = {}
    examined_bytes = 0
    for name, tensor in tensors.items():
        if tensor.dtype in EXAMINED_TYPES and len(tensor.shape) == 2 and not is_packed(name, tensors):
            examined_bytes += tensor.size_bytes
            block = four_bit_block(sample_windows(directory, tensor))
            if block is not None:
                blocks[name] = block
    if not blocks:
        return None
    return Dequantized(blocks, sum(tensors[name].size_bytes for name in blocks) / examined_bytes)


def four_bit_block(windows: Bits) -> int | None:
    """The largest block size (32, 64 or 128) at which the weights look dequantized from 4 bits; None where at none.

    ``windows``: bit patterns (n, 128). At least 99% of the blocks must hold at most 16 different ones; blocks of a
    single value tell nothing and don't count.
    """
    largest = None
    for block in FOUR_BIT_BLOCKS:
        ordered = np.sort(windows.reshape(-1, block), axis=1)  # (n * 128 / block, block)
        different = 1 + np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1)
        telling = different[different > 1]
        share = np.mean(telling <= FOUR_BIT_VALUES) if len(telling) else 0.0
        if share >= FOUR_BIT_SHARE:
            largest = block
        elif share < 2 * FOUR_BIT_SHARE - 1:  # each larger block holds these, so it can only be worse
            break
    return largest
