"""Which kernels bitsandbytes takes for the products of quantized layers: it decides by the number of rows.

What of its rule is Python is asked; what its compiled part decides is repeated here, as its source says for the
versions that are named below.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitladder.methods.method import UnknownKernelError, Widens

if TYPE_CHECKING:
    from torch import device, dtype

VERSIONS = "0.50."
"""beginning of those whose rule is known"""
VECTOR = "matrix-vector (gemm_4bit_simt)"
FUSED = "fused product on tensor cores (gemm_4bit)"
CPU = "fused product of bitsandbytes' CPU library, in BF16"
HUB = "fused product of the Hub's CPU kernel, in BF16"
CUBLAS = "dequantized, then cuBLAS"
PLAIN = "dequantized, then PyTorch's product"
WIDE = "dequantized, then FP32 products rounded once"

_ASKED = ("_gemm_4bit_custom_max_m", "_gemm_4bit_use_custom_fn")
"""the Python part of its rule on a GPU"""

Rule = Callable[[int], str]
"""the kernel for so many rows"""


@dataclass(frozen=True)
class GpuTraits:
    """What the rule asks of a GPU."""

    processors: int
    major: int
    minor: int


@dataclass(frozen=True)
class Layer4Bit:
    """What the rule asks of a layer."""

    device: "device"
    outputs: int
    inputs: int
    computed: "dtype"
    stored: "dtype"
    block: int
    """weights that share a scale"""
    packed: bool
    """anew, for this CPU"""


@dataclass(frozen=True)
class Layer8Bit:
    device: "device"
    inputs: int
    outliers: bool


def kernel_rule(layer: Any, widens: Widens) -> Rule:
    """Of a layer of bitsandbytes'. Raises UnknownKernelError."""
    import bitsandbytes

    if not bitsandbytes.__version__.startswith(VERSIONS):
        raise UnknownKernelError(
            f"the rule of bitsandbytes {bitsandbytes.__version__} is not known, of {VERSIONS}x it is"
        )
    key = _key(layer)
    return rule_4bit(key, widens) if isinstance(key, Layer4Bit) else _rule_8bit(key)


def _key(layer: Any) -> Layer4Bit | Layer8Bit:
    device = layer.weight.device
    if type(layer).__name__ == "Linear8bitLt":
        return Layer8Bit(device, layer.in_features, layer.state.threshold > 0)
    state = layer.weight.quant_state
    return Layer4Bit(
        device,
        layer.out_features,
        layer.in_features,
        computed=layer.compute_dtype or state.dtype,
        stored=state.dtype,
        block=state.blocksize,
        packed=bool(getattr(state, "packing_format_for_cpu", False)),
    )


def _rule_8bit(layer: Layer8Bit) -> Rule:
    import torch

    if layer.device.type == "cuda":
        name = "INT8 by cuBLASLt" if layer.inputs % 4 == 0 else "INT8 by FP32 products"
    else:
        has = torch._C._dispatch_has_kernel_for_dispatch_key("bitsandbytes::int8_linear_matmul", "CPU")
        name = "INT8 by torch._int_mm" if has else "INT8 by FP32 products"
    return lambda _: f"{name}, outlier columns apart" if layer.outliers else name


def rule_4bit(layer: Layer4Bit, widens: Widens) -> Rule:
    if layer.device.type == "cuda":
        return _cuda_rule(layer)
    if layer.packed:
        fetched = getattr(sys.modules["bitsandbytes.backends.cpu.ops"], "gemm_4bit_forward_kernel", None)
        return lambda _: CPU if fetched is None else HUB
    same = layer.computed == layer.stored
    return lambda rows: WIDE if same and widens(layer.device, layer.computed, rows) else PLAIN


def _cuda_rule(layer: Layer4Bit) -> Rule:
    import torch

    properties = torch.cuda.get_device_properties(layer.device)
    gpu = GpuTraits(properties.multi_processor_count, properties.major, properties.minor)
    operators: Any = sys.modules.get("bitsandbytes.backends.cuda.ops")
    if not all(hasattr(operators, name) for name in _ASKED):
        raise UnknownKernelError("this bitsandbytes names its rule otherwise than the releases that are known")
    has_cores = gpu.major >= 8 or ((gpu.major, gpu.minor) == (7, 5) and layer.computed == torch.float16)
    always_vector = not has_cores or layer.computed == torch.float32 or torch.version.hip is not None

    def rule(rows: int) -> str:
        shape = rows, layer.outputs, layer.inputs
        if rows > operators._gemm_4bit_custom_max_m or layer.inputs % layer.block:
            return CUBLAS
        if not operators._gemm_4bit_use_custom_fn(layer.device.index, layer.computed, *shape):
            return CUBLAS
        return VECTOR if always_vector or takes_vector_kernel(gpu, *shape) else FUSED

    return rule


def takes_vector_kernel(gpu: GpuTraits, rows: int, outputs: int, inputs: int) -> bool:
    """Which of the two kernels bitsandbytes' library takes for 16-bit rows, where Python left the choice to it.

    As its csrc/gemm_4bit.cu says. Raises UnknownKernelError where its versions differ.
    """
    kind = gpu.major, gpu.minor
    if kind == (12, 1):
        raise UnknownKernelError("releases of bitsandbytes 0.50 differ on this GPU (compute capability 12.1)")
    if rows <= 3 or inputs % 64:
        return True
    blocks = -(-rows // 32) * -(-outputs // 64)
    hbm = kind == (8, 0) or gpu.major in (9, 10)
    fast_gddr = kind in ((8, 6), (8, 9), (12, 0)) and gpu.processors >= 48
    wide = gpu.processors >= {(8, 9): 60, (12, 0): 48}.get(kind, gpu.processors + 1)
    return (
        (rows == 4 and fast_gddr)
        or (rows <= 8 and blocks * 3 <= gpu.processors * 2)
        or (rows == 4 and hbm and blocks <= gpu.processors)
        or (rows <= 6 and wide and blocks >= gpu.processors)
        or (rows <= 17 and not hbm and gpu.major >= 8 and inputs > outputs and blocks * 3 < gpu.processors)
        or (rows <= 16 and blocks * 4 <= gpu.processors)
        or (rows <= 32 and blocks * 8 <= gpu.processors)
    )
