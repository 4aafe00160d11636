"""Whether a rung's types reach as far as the model's weights: what they can't hold becomes infinite or zero."""

from pathlib import Path

import numpy as np

from bitladder.checkpoint.tensors import TensorInfo, read_tensors
from bitladder.checkpoint.values import sample_windows, tensor_values
from bitladder.errors import UserError
from bitladder.methods.kinds import kind_of
from bitladder.methods.types import torch_dtype
from bitladder.records import Scheme
from bitladder.rungs import RUNGS, find_rung, method_of

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
