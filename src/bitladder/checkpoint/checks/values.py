"""Checks on the weights' values, read through a memory map a piece at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitladder.checkpoint.checks.subject import Subject
from bitladder.checkpoint.forward import Loaded
from bitladder.checkpoint.tensors import TensorInfo
from bitladder.records import Finding
from bitladder.wording import name_some

Bits = npt.NDArray[Any]

FOUR_BIT_BLOCKS = (32, 64, 128)
FOUR_BIT_VALUES = 16
FOUR_BIT_SHARE = 0.99
SAMPLED_WINDOWS = 1024
"""stretches of 128 neighbouring weights looked at a tensor: 4,096 blocks of 32"""

_BIT_TYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<u4"), "BF16": np.dtype("<u2"), "F16": np.dtype("<u2")}
_PIECE = 1 << 22
"""elements read at once"""


def check_float32_values(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """FP32 whose every value is a BF16 value: the low 16 bits are zero, so half the bytes say nothing."""
    stored = {name: tensor for name, tensor in subject.tensors.items() if tensor.dtype == "F32" and tensor.shape}
    if subject.declared.method != "plain" or subject.found.stored_type != "F32":
        return []
    total_bytes = sum(tensor.size_bytes for tensor in stored.values())
    for tensor in sorted(stored.values(), key=lambda tensor: -tensor.size_bytes):
        for piece in _pieces(subject.directory, tensor):
            if np.any(piece & np.uint32(0xFFFF)):
                return []
    message = (
        "every FP32 value is a BF16 value: the weights were BF16 before, and half of each is zero; "
        "as BF16 they are the same in half the bytes"
    )
    data = {"tensors": len(stored), "bytes": total_bytes}
    return [Finding(check="float32-values", severity="warning", message=message, data=data)]


def check_four_bit_values(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Matrices that were dequantized from 4 bits: a block of neighbouring weights has at most 16 different values."""
    blocks: dict[str, int] = {}
    examined_bytes = 0
    for name, tensor in subject.tensors.items():
        if tensor.dtype in _BIT_TYPES and len(tensor.shape) == 2:
            examined_bytes += tensor.size_bytes
            block = four_bit_block(sample_windows(subject.directory, tensor))
            if block is not None:
                blocks[name] = block
    if not blocks:
        return []
    share = sum(subject.tensors[name].size_bytes for name in blocks) / examined_bytes
    sizes = "/".join(str(size) for size in sorted(set(blocks.values())))
    message = (
        f"{len(blocks):,} matrices ({share:.0%} of the bytes of all) were 4-bit: at most {FOUR_BIT_VALUES} different "
        f"values in blocks of {sizes} ({name_some(list(blocks))}); what is measured against them is not measured "
        "against the original"
    )
    data = {"block_by_tensor": blocks, "share": share}
    return [Finding(check="was-4-bit", severity="warning", message=message, data=data)]


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


def sample_windows(directory: Path, tensor: TensorInfo) -> Bits:
    """Bit patterns of up to 1,024 stretches of 128 neighbouring weights, evenly spread: (n, 128)."""
    width = max(FOUR_BIT_BLOCKS)
    bits = _map(directory, tensor)
    windows = bits[: len(bits) // width * width].reshape(-1, width)
    chosen = np.linspace(0, len(windows) - 1, min(len(windows), SAMPLED_WINDOWS)).astype(np.int64)
    return windows[chosen]


def equal_values(directory: Path, first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two stored tensors of one type and shape hold the same bits."""
    pieces = zip(_pieces(directory, first), _pieces(directory, second), strict=True)
    return all(np.array_equal(one, other) for one, other in pieces)


def _pieces(directory: Path, tensor: TensorInfo) -> Iterator[Bits]:
    bits = _map(directory, tensor)
    for start in range(0, len(bits), _PIECE):
        yield bits[start : start + _PIECE]


def _map(directory: Path, tensor: TensorInfo) -> Bits:
    """A tensor's bit patterns, flat, without reading the file; bytes where its type has no pattern here."""
    file = np.memmap(directory / tensor.file, dtype=np.uint8, mode="r")
    data = file[tensor.offset : tensor.offset + tensor.size_bytes]
    bits: Bits = data.view(_BIT_TYPES.get(tensor.dtype, data.dtype))
    return bits
