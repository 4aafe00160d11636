"""Which kernels scored: bitsandbytes' own rule, for the rows of the forwards that were."""

import ast
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch

from bitladder.accuracy.backend.compiling import widens
from bitladder.accuracy.forwards import Forwards, product_kernels, products_seen, record_scoring
from bitladder.checkpoint import memory
from bitladder.checkpoint.memory import Hardware
from bitladder.methods.bitsandbytes_kernels import (
    CPU,
    CUBLAS,
    FUSED,
    HUB,
    PLAIN,
    VECTOR,
    WIDE,
    GpuTraits,
    Layer4Bit,
    rule_4bit,
    takes_vector_kernel,
)
from bitladder.methods.method import UnknownKernelError
from bitladder.records import ProductKernel, Scoring, join_scorings
from test_backend import make_model

CARD = torch.device("cuda", 0)
H100, T4, L4 = GpuTraits(132, 9, 0), GpuTraits(40, 7, 5), GpuTraits(58, 8, 9)


def vendor_rule(gpu: GpuTraits) -> Callable[..., bool]:
    """What the installed bitsandbytes asks in Python, whose module can't be imported without a GPU."""
    spec = find_spec("bitsandbytes")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "backends" / "cuda" / "ops.py"
    wanted = "_gemm_4bit_use_custom_cuda"
    tree = ast.parse(path.read_text())
    tree.body = [one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == wanted]
    tree.body[0].decorator_list = []  # type: ignore[attr-defined]
    names: dict[str, Any] = {
        "torch": torch,
        "_GEMM_4BIT_CUSTOM_FLOOR_M": 4,
        "_gpu_dispatch_props": lambda _: (gpu.processors, gpu.major, gpu.minor),
    }
    exec(compile(tree, str(path), "exec"), names)
    return names[wanted]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("gpu", "computed", "inputs", "expected"),
    [
        (H100, torch.bfloat16, 2048, {1: VECTOR, 3: VECTOR, 12: FUSED, 16: FUSED, 17: CUBLAS, 4096: CUBLAS}),
        (H100, torch.float32, 2048, {1: VECTOR, 7: VECTOR, 8: CUBLAS}),
        (T4, torch.float16, 2048, {1: VECTOR, 33: FUSED, 128: FUSED, 129: CUBLAS}),
        (T4, torch.bfloat16, 2048, {1: VECTOR, 7: VECTOR, 8: CUBLAS}),
        (H100, torch.bfloat16, 2080, {1: CUBLAS}),
    ],
)
def test_a_gpu_s_kernel_goes_by_rows(
    gpu: GpuTraits, computed: torch.dtype, inputs: int, expected: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    operators = SimpleNamespace(_gemm_4bit_use_custom_fn=vendor_rule(gpu), _gemm_4bit_custom_max_m=1536)
    monkeypatch.setitem(sys.modules, "bitsandbytes.backends.cuda.ops", operators)
    properties = SimpleNamespace(multi_processor_count=gpu.processors, major=gpu.major, minor=gpu.minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    layer = Layer4Bit(CARD, 8192, inputs, computed, torch.bfloat16, block=64, packed=False)
    rule = rule_4bit(layer, widens)
    assert {rows: rule(rows) for rows in expected} == expected


def test_the_library_s_part_of_the_rule() -> None:
    """Of a narrow layer few blocks are in flight, for which the library keeps to vectors longer."""
    assert [takes_vector_kernel(H100, rows, 512, 2048) for rows in (8, 16, 32, 33)] == [True, True, True, False]
    assert [takes_vector_kernel(L4, rows, 1024, 4096) for rows in (4, 17, 18)] == [True, True, False]
    assert takes_vector_kernel(H100, 64, 8192, 2080)
    with pytest.raises(UnknownKernelError, match=r"differ on this GPU \(compute capability 12\.1\)"):
        takes_vector_kernel(GpuTraits(48, 12, 1), 8, 8192, 2048)


def quantized_model() -> Any:
    """Of four layers one is 4-bit and one LLM.int8."""
    model: Any = make_model("llama")
    own = [model.model.layers[number].mlp.up_proj for number in range(2)]
    four = bitsandbytes.nn.Linear4bit(64, 96, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    four.weight = bitsandbytes.nn.Params4bit(own[0].weight.data, requires_grad=False, quant_type="nf4")
    eight = bitsandbytes.nn.Linear8bitLt(64, 96, bias=False, has_fp16_weights=False, threshold=6.0)
    eight.weight = bitsandbytes.nn.Int8Params(own[1].weight.data, requires_grad=False)
    model.model.layers[0].mlp.up_proj, model.model.layers[1].mlp.up_proj = four.to("cpu"), eight.to("cpu")
    model.eval()  # else LLM.int8 is dequantized on a CPU
    return model


def test_what_is_recorded_is_what_a_profiler_sees() -> None:
    model, forwards = quantized_model(), Forwards()
    ids = torch.arange(40).view(2, 20)
    with torch.inference_mode(), products_seen(model, 1) as seen, forwards.seen(model):
        model(input_ids=ids)
        model(ids[:, :1])
    found = record_scoring(model, forwards)
    assert (found.forwards, found.least_rows, found.most_rows) == (2, 2, 40)
    assert found.attention == (f"the model's own, {model.config._attn_implementation}",)
    assert found.kernels is not None
    (four,) = (one for one in found.kernels if "INT8" not in one.kernel)
    (eight,) = (one for one in found.kernels if "INT8" in one.kernel)
    assert [(one.least_rows, one.most_rows, one.products) for one in (four, eight)] == [(2, 40, 2)] * 2
    assert (four.kernel == CPU) == ("bitsandbytes::gemv_4bit" in seen[0])
    assert (four.kernel == PLAIN) == ("bitsandbytes::dequantize_4bit" in seen[0])
    assert ("_int_mm" in eight.kernel) == ("_int_mm" in seen[0])
    model(ids)
    assert forwards.rows.total() == 2, "the hook is gone"


def test_our_own_products_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "find_hardware", lambda device: Hardware("a CPU", "cpu", flags=frozenset({"avx2"})))
    layer = Layer4Bit(torch.device("cpu"), 64, 96, torch.bfloat16, torch.bfloat16, block=64, packed=False)
    ours, theirs = (rule_4bit(layer, wide) for wide in (widens, lambda *_: False))
    assert [ours(1), ours(64), theirs(64)] == [PLAIN, WIDE, PLAIN]


def test_what_is_not_known_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized_model()
    monkeypatch.setattr(bitsandbytes, "__version__", "0.49.2")
    found = record_scoring(model, Forwards())
    assert found.kernels is None
    assert found.no_kernels_reason == "the rule of bitsandbytes 0.49.2 is not known, of 0.50.x it is"
    assert product_kernels(make_model("llama"), {1: 1}, widens) == ()
    quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="torchao"))
    other: Any = SimpleNamespace(modules=list, hf_quantizer=quantizer)
    with pytest.raises(UnknownKernelError, match="nobody has said which kernels torchao's layers take"):
        product_kernels(other, {1: 1}, widens)


def test_another_release_s_rule_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.backends.cuda.ops", SimpleNamespace(_gemm_4bit_custom_max_m=1536))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132, major=9, minor=0)
    )
    layer = Layer4Bit(CARD, 8192, 2048, torch.bfloat16, torch.bfloat16, block=64, packed=False)
    with pytest.raises(UnknownKernelError, match="names its rule otherwise"):
        rule_4bit(layer, widens)


def test_a_kernel_of_the_hub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsandbytes.backends.cpu import ops

    layer = Layer4Bit(torch.device("cpu"), 64, 96, torch.bfloat16, torch.bfloat16, block=64, packed=True)
    monkeypatch.setattr(ops, "gemm_4bit_forward_kernel", print, raising=False)
    assert rule_4bit(layer, widens)(1) == HUB


def test_measurements_are_joined() -> None:
    def make(kernels: tuple[ProductKernel, ...] | None, rows: int | None) -> Scoring:
        return Scoring(
            attention=("a",) if rows else (),
            shared=True,
            compiled=False,
            widened=False,
            row_kernel=False,
            forwards=1,
            least_rows=rows,
            most_rows=rows,
            kernels=kernels,
            no_kernels_reason=None if kernels is not None else "unknown",
        )

    one, two, none = (ProductKernel(kernel=VECTOR, least_rows=n, most_rows=n, products=n) for n in (1, 2, 3))
    joined = join_scorings([make((one,), 1), make((two, none), 3), make((), None)])
    assert joined is not None and joined.kernels is not None
    assert joined.kernels == (ProductKernel(kernel=VECTOR, least_rows=1, most_rows=3, products=6),)
    assert (joined.attention, joined.forwards, joined.least_rows, joined.most_rows) == (("a",), 3, 1, 3)
    unknown = join_scorings([make((one,), 1), make(None, 3)])
    assert unknown is not None and unknown.kernels is None and unknown.no_kernels_reason == "unknown"
    assert join_scorings([make((one,), 1), None]) is None
