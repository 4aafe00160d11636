"""What a stored tensor is for, told from its name and shape; imports no torch."""

import re
from collections.abc import Mapping, Sized
from typing import Literal, Protocol

from bitladder.units import format_bytes

Kind = Literal["embedding", "linear", "norm", "head", "quantization state", "other"]


class Shaped(Protocol):
    """A stored tensor, or a parameter of a network."""

    @property
    def shape(self) -> Sized: ...


FLOATS = frozenset({"F64", "F32", "BF16", "F16"})

# bitsandbytes writes SCB, weight_format, absmax, maps and quant_state; the rest is what GPTQ, AWQ, compressed-tensors,
# auto-round, FP8 and torchao checkpoints hold beside their packed weights.
_STATE = re.compile(
    r"\.(SCB|weight_format)$"
    r"|\.weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)$"
    r"|[._:](scales?|scale_inv|zeros|zero_point|qzeros|g_idx|perm|global_scale|weight_shape)$"
)
_EMBEDDING = re.compile(r"(^|[._])(wte|wpe|\w*embed\w*)$")
_HEAD = re.compile(r"(^|\.)(\w*head|embed_out)$|^output$")
_NORM = re.compile(r"norm|(^|\.)ln_?\w*$", re.IGNORECASE)


def is_state(name: str) -> bool:
    """Whether the tensor serves to decode a quantized weight: scales, zero points, maps, shapes."""
    return _STATE.search(name) is not None


def is_packed(name: str, tensors: Mapping[str, object]) -> bool:
    """Whether the tensor holds bitsandbytes' 4-bit codes. Their type is chosen by whoever packs them
    (``bnb_4bit_quant_storage``) and says nothing: a BF16 holds four codes."""
    return f"{name}.absmax" in tensors


def module_of(name: str) -> str:
    """``model.layers.0.mlp.up_proj`` of any tensor that belongs to that layer."""
    module = name.rpartition(".")[0]
    return module.removesuffix(".weight") if is_state(name) else module


def describe_kept(bytes_by_kind: Mapping[str, int]) -> str:
    """``embedding 320.0 MiB, norm 0.1 MiB``, the largest first."""
    kinds = sorted(bytes_by_kind.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {format_bytes(size)}" for kind, size in kinds)


def kind_of(name: str, tensor: Shaped) -> Kind:
    """The kind of module that a stored tensor belongs to."""
    if is_state(name):
        return "quantization state"
    module = module_of(name)
    if len(tensor.shape) < 2:
        return "norm" if _NORM.search(module) else "other"
    if _HEAD.search(module):
        return "head"
    return "embedding" if _EMBEDDING.search(module) else "linear"
