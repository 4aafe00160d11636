"""Number types under SafeTensors' names and torch's; imports no torch."""

from dataclasses import dataclass
from typing import Any

_TORCH_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_NAMES = {torch_name: name for name, torch_name in _TORCH_NAMES.items()}


@dataclass(frozen=True)
class Types:
    """Of a checkpoint, as its tensors and its config.json show them."""

    stored: str
    """that most of its matrices have"""
    computed: str
    rest: str
    """that most of what is no matrix has"""


def torch_dtype(name: str) -> Any:
    """torch's type of that SafeTensors name (F64, F32, BF16 or F16)."""
    import torch

    return getattr(torch, _TORCH_NAMES[name])


def type_name(torch_name: str) -> str:
    """SafeTensors' name of torch's ``bfloat16``, ``torch.float32`` and so on; any other name as it is."""
    return _NAMES.get(torch_name.removeprefix("torch."), torch_name)
