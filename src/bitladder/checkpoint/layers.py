"""What bitsandbytes' layers can't do on a CPU, done for them: shapes of inputs and of weights that its kernels assert.

Checked against bitsandbytes 0.50.2. On a GPU its kernels take these shapes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_PACKED_OUTPUTS = 32
"""``block_n`` of ``bitsandbytes.functional._convert_weight_packed_for_cpu``"""

_MOST_AXES = 3


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
