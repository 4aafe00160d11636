"""Layers of each scheme; and what bitsandbytes' can't do on a CPU, done for them: shapes of inputs and of weights that
its kernels assert.

Checked against bitsandbytes 0.50.2. On a GPU its kernels take these shapes.
"""

import logging
from typing import TYPE_CHECKING, Any

from bitladder.records import Scheme

if TYPE_CHECKING:
    from torch import Tensor, nn

_PACKED_OUTPUTS = 32
"""``block_n`` of ``bitsandbytes.functional._convert_weight_packed_for_cpu``"""

_MOST_AXES = 3


def make_layer(scheme: Scheme, in_features: int, out_features: int) -> "nn.Linear":
    """A linear layer of random weights; one of bitsandbytes' quantizes them when it comes to its device."""
    import torch
    from torch import nn

    types = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    if scheme.method == "plain":
        return nn.Linear(in_features, out_features, bias=False, dtype=types[scheme.stored_type])
    # on some CPUs it asks for a kernel that it can do without
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes

    layer: nn.Linear
    if scheme.method == "llm.int8":
        layer = bitsandbytes.nn.Linear8bitLt(
            in_features, out_features, bias=False, has_fp16_weights=False, threshold=scheme.int8_threshold
        )
    else:
        layer = bitsandbytes.nn.Linear4bit(
            in_features,
            out_features,
            bias=False,
            compute_dtype=types[scheme.compute_type],
            quant_type=scheme.stored_type.lower(),
            compress_statistics=bool(scheme.double_quantization),
        )
    return layer


def prepare_layers(model: "nn.Module") -> None:
    """Let the model's INT8 and 4-bit layers, all on a CPU, take every shape that the plain ones took."""
    for module in model.modules():
        name = type(module).__name__
        if name == "Linear4bit":
            _leave_unpacked(module)
            _take_any_strides(module)
        elif name == "Linear8bitLt":
            _take_any_axes(module)


def _leave_unpacked(layer: Any) -> None:
    """Where the CPU multiplies BF16, a 4-bit weight is packed anew at its first forward, which wants a multiple of 32
    outputs and one of the block of inputs. Others are decoded at every call, as on other CPUs."""
    if layer.out_features % _PACKED_OUTPUTS or layer.in_features % layer.weight.quant_state.blocksize:
        layer.support_avx512bf16_for_cpu = False


def _take_any_strides(layer: Any) -> None:
    """The product of packed weights reads each row of its input as if it lay in one piece: of a transposed one, such as
    Mamba's, it gives other numbers without a word."""
    plain = layer.forward

    def forward(inputs: "Tensor") -> "Tensor":
        return plain(inputs.contiguous())  # type: ignore[no-any-return]

    layer.forward = forward


def _take_any_axes(layer: Any) -> None:
    """``int8_vectorwise_quant`` takes the second axis for the features, of an input of four axes too, as DeepSeek V3's
    attention has them."""
    plain = layer.forward

    def forward(inputs: "Tensor") -> "Tensor":
        if inputs.ndim <= _MOST_AXES:
            return plain(inputs)  # type: ignore[no-any-return]
        output: Tensor = plain(inputs.flatten(0, -2))
        return output.view(*inputs.shape[:-1], output.shape[-1])

    layer.forward = forward
