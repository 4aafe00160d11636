"""Checks on the weights' values."""

from pathlib import Path

import numpy as np

from bitladder.checkpoint.checks.subject import Subject
from bitladder.checkpoint.forward import Loaded
from bitladder.checkpoint.four_bits import find_dequantized
from bitladder.checkpoint.tensors import TensorInfo
from bitladder.checkpoint.values import describe_not_finite, pieces, tensor_values
from bitladder.records import Finding
from bitladder.rungs import method_of


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
    if method_of(subject.declared).quantizes or subject.found.stored_type != "F32":
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
    found = find_dequantized(subject.directory, subject.tensors)
    if found is None:
        return []
    message = f"{found.text}; what is measured against them is not measured against the original"
    data = {"block_by_tensor": dict(found.block_by_tensor), "share": found.share}
    return [Finding(check="was-4-bit", severity="warning", message=message, data=data)]


def equal_values(directory: Path, first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two stored tensors of one type and shape hold the same bits."""
    pairs = zip(pieces(directory, first), pieces(directory, second), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)
