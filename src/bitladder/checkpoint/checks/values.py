"""Checks on the weights' values."""

from pathlib import Path

import numpy as np

from bitladder.checkpoint.checks.subject import Subject
from bitladder.checkpoint.forward import Loaded
from bitladder.checkpoint.kinds import is_packed
from bitladder.checkpoint.tensors import TensorInfo
from bitladder.checkpoint.values import WINDOW, Bits, describe_not_finite, pieces, sample_windows, tensor_values
from bitladder.records import Finding
from bitladder.wording import name_some

FOUR_BIT_BLOCKS = (32, 64, WINDOW)
FOUR_BIT_VALUES = 16
FOUR_BIT_SHARE = 0.99
EXAMINED_TYPES = frozenset({"F32", "BF16", "F16"})


def check_numbers(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Weights and scales that are NaN or infinite: nothing that is measured of them means anything."""
    values = tensor_values(subject.directory)
    message = describe_not_finite(values)
    if message is None:
        return []
    data = {
        "nans": {name: one.nans for name, one in values.items() if one.nans},
        "infinities": {name: one.infinities for name, one in values.items() if one.infinities},
    }
    return [Finding(check="numbers", severity="error", message=message, data=data)]


def check_float32_values(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """FP32 whose every value is a BF16 value: the low 16 bits are zero, so half the bytes say nothing."""
    stored = {name: tensor for name, tensor in subject.tensors.items() if tensor.dtype == "F32" and tensor.shape}
    if subject.declared.method != "plain" or subject.found.stored_type != "F32":
        return []
    total_bytes = sum(tensor.size_bytes for tensor in stored.values())
    for tensor in sorted(stored.values(), key=lambda tensor: -tensor.size_bytes):
        for piece in pieces(subject.directory, tensor):
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
        if tensor.dtype in EXAMINED_TYPES and len(tensor.shape) == 2 and not is_packed(name, subject.tensors):
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


def equal_values(directory: Path, first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two stored tensors of one type and shape hold the same bits."""
    pairs = zip(pieces(directory, first), pieces(directory, second), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)
