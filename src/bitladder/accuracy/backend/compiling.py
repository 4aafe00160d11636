"""How single parts of a forward run faster: compiled, recorded as a CUDA graph, or multiplied in FP32.

A processor without instructions for 16-bit products multiplies in FP32 and rounds the sum once: that is what hardware
for them does, up to the order of the sum, and several times as fast as torch's loop over 16-bit values.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from bitladder.machine.libraries import patched

if TYPE_CHECKING:
    from torch import Tensor, device, dtype
    from torch.cuda import Stream
    from torch.nn import Module
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

    from bitladder.checkpoint.memory import find_hardware

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


@dataclass(frozen=True)
class Replay:
    """What was recorded."""

    run: Callable[[], None]
    answer: "Tensor"
    """where each run leaves what the function returned"""


Recorder = Callable[[Callable[[], "Tensor"]], Replay]
"""Records what a function does on the device, without doing it."""

_failed: list[Any] = []
"""Graphs that could not be recorded. The allocator goes on asking them, and another would be recorded into theirs: they
are kept, and nothing is recorded any more in this process."""


def recorder(model: "PreTrainedModel") -> Recorder | None:
    """Graphs on the model's device, which share their memory: only the last one's answer stands. None where recording
    failed before."""
    import torch

    if _failed:
        return None
    pool: Any = torch.cuda.graph_pool_handle()
    where = model.device

    def record(function: Callable[[], "Tensor"]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        random = torch.cuda.default_generators[where.index]
        before = random.clone_state()
        # torch leaves the stream that it records on only where recording succeeds.
        with torch.cuda.device(where), torch.cuda.stream(torch.cuda.current_stream()):
            try:
                with torch.cuda.graph(graph, pool=pool, stream=_stream(where), capture_error_mode="thread_local"):
                    answer = function()
            except RuntimeError:
                _failed.append(graph)
                random.graphsafe_set_state(before)  # the state at hand waits for the recording's end
                with suppress(RuntimeError):  # where torch has done so itself
                    torch._C._cuda_endAllocateToPool(where.index, pool)
                raise
        return Replay(graph.replay, answer)

    return record


@lru_cache
def _stream(where: "device") -> "Stream":
    """One a device: each has a workspace of cuBLAS's."""
    import torch

    return torch.cuda.Stream(where)  # type: ignore[no-untyped-call]


_KINDS = ("Norm", "MLP")
"""ends of the names of classes whose forward takes nothing but hidden states"""
_ROTARY = "apply_rotary_pos_emb"
_OPTIONS: dict[str, Any] = {"emulate_precision_casts": True}


@contextmanager
def compiled(model: "PreTrainedModel", wanted: bool = True) -> Iterator[None]:
    """Inside the block the model's elementwise parts are compiled; nothing changes where it isn't ``wanted``."""
    with ExitStack() as stack:
        if wanted:
            for module in filter(_is_ours_to_compile, model.modules()):
                function = _compiled(type(module).forward, 1)
                stack.enter_context(patched("torch.nn:Module.forward", partial(function, module), module))
            for name in {type(module).__module__ for module in model.modules()}:
                rotary = getattr(sys.modules[name], _ROTARY, None)
                if name.startswith("transformers.") and rotary is not None:
                    own = patched(
                        f"transformers.models.llama.modeling_llama:{_ROTARY}", _compiled(rotary, -2), sys.modules[name]
                    )
                    stack.enter_context(own)
        yield


def compile_errors(wanted: bool) -> tuple[type[Exception], ...]:
    """What torch raises where it can't compile; none where nothing is compiled, so that its compiler isn't loaded."""
    if not wanted:
        return ()
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)


def _is_ours_to_compile(module: "Module") -> bool:
    kind = type(module)
    if "forward" in vars(module):  # another library has put its own there, which must go on being called
        return False
    return kind.__module__.startswith("transformers.") and kind.__name__.endswith(_KINDS)


@lru_cache
def _compiled(function: Callable[..., Any], tokens_axis: int) -> Callable[..., Any]:
    """The function, compiled once for any number of tokens."""
    import torch

    fast = torch.compile(function, options=_OPTIONS)

    def call(*arguments: Any, **options: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, torch.Tensor) and argument.dim() > 2:
                torch._dynamo.maybe_mark_dynamic(argument, tokens_axis % argument.dim())
        return fast(*arguments, **options)

    return call
