"""16-bit products where the processor has no instructions for them: as exact as hardware's, plain and 4-bit."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from bitladder.accuracy.backend import compiling
from bitladder.accuracy.backend.compiling import widened_products
from bitladder.checkpoint import memory
from bitladder.checkpoint.memory import Hardware

CPU = torch.device("cpu")
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "find_hardware", lambda device: Hardware("a CPU", "cpu", flags=frozenset({"avx2"})))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.dtype]]:
    """The types that linear layers are really multiplied in, one a product."""
    types: list[torch.dtype] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, given: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.overloadpacket in (torch.ops.aten.linear, torch.ops.aten.mm, torch.ops.aten.addmm):
                types.append(args[1].dtype)
            return function(*args, **(kwargs or {}))

    with Watch():  # type: ignore[no-untyped-call]
        yield types


def make(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, rows, 256), (64, 256), (64,))
    inputs, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return inputs, weight, bias


@pytest.mark.parametrize("dtype", HALF)
def test_products_are_the_exact_ones_rounded_once(dtype: torch.dtype, seen: list[torch.dtype]) -> None:
    inputs, weight, bias = make(32, dtype)
    with torch.inference_mode(), widened_products(CPU):
        product = linear(inputs, weight, bias=bias)
    exact = linear(inputs.double(), weight.double(), bias.double())
    assert product.dtype == dtype
    assert seen[0] == torch.float32
    # half a unit in the last place, and the rounding of the sum itself where numbers cancel
    torch.testing.assert_close(product.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-4)


def test_few_rows_and_fp32_stay_as_they_are(seen: list[torch.dtype]) -> None:
    few, wide = make(compiling._LEAST_ROWS - 1, torch.bfloat16), make(32, torch.float32)
    with torch.inference_mode(), widened_products(CPU):
        assert torch.equal(linear(*few), linear(*few))
        linear(*wide)
    assert seen == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_weights_that_know_their_own_product_keep_it(seen: list[torch.dtype]) -> None:
    """torchao's weights are tensors of classes of their own, which quantize the inputs, too."""

    class Own(torch.Tensor):
        pass

    inputs, weight, bias = make(32, torch.bfloat16)
    with torch.inference_mode(), widened_products(CPU):
        product = linear(inputs, weight.as_subclass(Own), bias)
    assert type(product) is Own
    assert seen == [torch.bfloat16]


def test_a_cpu_with_instructions_uses_them(monkeypatch: pytest.MonkeyPatch, seen: list[torch.dtype]) -> None:
    flags = frozenset({"avx512_bf16"})
    monkeypatch.setattr(memory, "find_hardware", lambda device: Hardware("a CPU", "cpu", flags=flags))
    with torch.inference_mode(), widened_products(CPU):
        linear(*make(32, torch.bfloat16))
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("double", [False, True])
def test_4bit_layers_answer_as_bitsandbytes_does(compute: torch.dtype, double: bool) -> None:
    import bitsandbytes

    inputs, weight, bias = make(32, torch.bfloat16)
    layer = bitsandbytes.nn.Linear4bit(256, 64, compute_dtype=compute, quant_type="nf4", compress_statistics=double)
    layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=double)
    layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    layer = layer.to("cpu")
    own_product = bitsandbytes.matmul_4bit
    with torch.inference_mode():
        own = layer(inputs)
        with widened_products(CPU):
            ours = layer(inputs)
    assert bitsandbytes.matmul_4bit is own_product
    assert ours.dtype == own.dtype
    if compute == torch.float32:
        assert torch.equal(ours, own)
    torch.testing.assert_close(ours, own, rtol=torch.finfo(torch.bfloat16).eps, atol=1e-4)
