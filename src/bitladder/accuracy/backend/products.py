"""16-bit matrix products on a processor without instructions for them, as wide as hardware that has them makes them.

There, 16-bit values are multiplied exactly, summed in FP32, and the sum is rounded to 16 bits once. FP32 products of
the widened values are that, up to the order of the sum, and several times as fast as torch's loop over 16-bit values.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from bitladder.patches import patched

if TYPE_CHECKING:
    from torch import Tensor, device, dtype
    from torch.overrides import TorchFunctionMode
    from transformers import PreTrainedModel

WIDENED = (
    "products of 16-bit values were computed in FP32 and rounded once, as hardware for them does, since the CPU that "
    "answered has no instructions for them"
)
"""what a reader of the results has to know where `widens_products`"""
_LEAST_ROWS = 16
"""below, widening the weights takes longer than it saves"""


@contextmanager
def widened_products(device: "device", types: "Iterable[dtype] | None" = None) -> Iterator[None]:
    """Inside the block, layers of those 16-bit types that a CPU doesn't multiply, plain or 4-bit, run in FP32.

    ``types``: those that occur there; None: any. To look at every product takes time of its own.
    """
    emulated = _emulated(device)
    if types is not None:
        emulated &= frozenset(types)
    with ExitStack() as stack:
        if emulated:
            stack.enter_context(_linear_mode(emulated))
            stack.enter_context(patched("bitsandbytes:matmul_4bit", _multiply_4bit(emulated)))
        yield


def widened_in(model: "PreTrainedModel", *others: "dtype") -> AbstractContextManager[None]:
    """`widened_products` of this model and other types alone: nothing is looked at where none of them is widened."""
    return widened_products(model.device, _product_types(model).union(others))


def _product_types(model: "PreTrainedModel") -> "set[dtype]":
    """Of a model's parameters, and those that its quantized layers compute in."""
    computed = {getattr(module, "compute_dtype", None) for module in model.modules()}
    return {parameter.dtype for parameter in model.parameters()} | {one for one in computed if one is not None}


def widens_products(model: "PreTrainedModel") -> bool:
    """Whether any of the model's layers run in FP32 inside `widened_in`."""
    return not _emulated(model.device).isdisjoint(_product_types(model))


def widens(device: "device", dtype: "dtype", rows: int) -> bool:
    """Whether products of so many rows of that type run in FP32 inside `widened_products`."""
    return rows >= _LEAST_ROWS and dtype in _emulated(device)


def _emulated(device: "device") -> "frozenset[dtype]":
    import torch

    from bitladder.checkpoint.hardware import find_hardware

    if device.type != "cpu":
        return frozenset()
    hardware = find_hardware("cpu")
    types = {"BF16": torch.bfloat16, "F16": torch.float16}
    return frozenset(types[name] for name in types if hardware.multiplies(name) is False)


def _linear_mode(emulated: "frozenset[dtype]") -> "TorchFunctionMode":
    from torch import Tensor
    from torch.nn import Parameter
    from torch.nn.functional import linear
    from torch.overrides import TorchFunctionMode

    plain = (Tensor, Parameter)

    class Widened(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if function is not linear or any(type(part) not in plain for part in args[1:2]):  # torchao's know how
                return function(*args, **kwargs)
            if args[0].dtype not in emulated or args[0].shape[:-1].numel() < _LEAST_ROWS:
                return function(*args, **kwargs)
            wide = [part if part is None else part.float() for part in (*args, *kwargs.values())]
            return linear(*wide).to(args[0].dtype)

    return Widened()


def _multiply_4bit(emulated: "frozenset[dtype]") -> "Callable[..., Tensor]":
    """bitsandbytes' own 4-bit product, with a linear layer that the mode sees where that is emulated."""
    import bitsandbytes
    from bitsandbytes.functional import dequantize_4bit
    from torch.nn.functional import linear

    own: Callable[..., Tensor] = bitsandbytes.matmul_4bit

    def multiply(
        inputs: "Tensor", weight: "Tensor", quant_state: Any, out: None = None, bias: "Tensor | None" = None
    ) -> "Tensor":
        # Where the CPU has BF16 instructions, weights may be packed for them and can't be dequantized.
        packed = getattr(quant_state, "packing_format_for_cpu", False)
        # bitsandbytes dequantizes to the type of the inputs; `dequantize_4bit` to the one that was quantized.
        if packed or inputs.dtype not in emulated or inputs.dtype != quant_state.dtype:
            return own(inputs, weight, quant_state=quant_state, out=out, bias=bias)
        return linear(inputs, dequantize_4bit(weight.reshape(-1, 1), quant_state), bias)

    return multiply
