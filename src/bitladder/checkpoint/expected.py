"""What a rung's checkpoint will hold, from the model's configuration alone: nothing is loaded or quantized.

transformers builds the model on the meta device and puts bitsandbytes' layers where it would when quantizing; what
those layers store is the layout below (checked against the files they write).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.checkpoint.loading import build_on_meta, load_config, quiet_libraries
from bitladder.records import Scheme
from bitladder.rungs import find_rung

if TYPE_CHECKING:
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedModel

_TORCH_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_WIDTH_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_HEADER_ENTRY_BYTES = 70
"""of one tensor in a SafeTensors header, beside its name"""
_BLOCK = 64
"""weights that share an absmax in bitsandbytes' 4-bit types"""
_NESTED_BLOCK = 256
"""absmax values that share one, with double quantization"""
_QUANT_STATE_BYTES, _NESTED_QUANT_STATE_BYTES = 80, 169


@dataclass(frozen=True)
class Expected:
    """A checkpoint's size. ``parameters`` counts weights, a tied head once."""

    stored_bytes: int
    parameters: int
    largest_weight: int
    """number of weights in the largest tensor"""

    @property
    def quantizing_bytes(self) -> int:
        """Memory that making it takes: the result, and the largest tensor once more in FP32."""
        return self.stored_bytes + 4 * self.largest_weight


def torch_dtype(name: str) -> Any:
    """torch's type of that SafeTensors name (F32, BF16 or F16)."""
    import torch

    return getattr(torch, _TORCH_DTYPES[name])


def quantization_config(scheme: Scheme) -> "BitsAndBytesConfig | None":
    """What transformers has to be told to make the scheme; None where only the type changes."""
    from transformers import BitsAndBytesConfig

    if scheme.method == "llm.int8":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=True, llm_int8_threshold=scheme.int8_threshold
        )
    if scheme.method == "bnb-4bit":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type=scheme.stored_type.lower(),
            bnb_4bit_compute_dtype=torch_dtype(scheme.compute_type),
            bnb_4bit_use_double_quant=scheme.double_quantization,
        )
    if scheme.method == "plain":
        return None
    raise ValueError(f"no quantization is known for the method {scheme.method!r}")


def expected_bytes(directory: Path, rung: str | Scheme, *, trust_remote_code: bool = False) -> int:
    """Bytes of the SafeTensors files that a rung (by name) or scheme of the model in ``directory`` takes.

    Only config.json is read, so that ``directory`` may hold the source or the rung itself. Raises UserError as
    `load_config`.
    """
    scheme = find_rung(rung).scheme if isinstance(rung, str) else rung
    return expect(directory, scheme, trust_remote_code=trust_remote_code).stored_bytes


def expect(directory: Path, scheme: Scheme, *, trust_remote_code: bool = False) -> Expected:
    """Size of the scheme's checkpoint and number of weights of the model in ``directory``."""
    quiet_libraries()  # what bitsandbytes has to tell it tells when it is imported, here at the latest
    model = _skeleton(directory, trust_remote_code)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    parameters, largest = sum(sizes.values()), max(sizes.values())
    config = quantization_config(scheme)
    if config is not None:
        _put_quantized_layers(model, config)
    rest = {name: parameter.numel() for name, parameter in model.named_parameters()}
    stored: dict[str, int] = {}
    for name, module in _quantized_layers(model):
        del rest[f"{name}.weight"]
        stored |= {f"{name}.{key}": size for key, size in _layer_bytes(module, scheme).items()}
    stored |= {name: number * _WIDTH_BYTES[scheme.rest_type] for name, number in rest.items()}
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored |= {
        name: buffer.numel() * buffer.element_size() for name, buffer in model.state_dict().items() if name not in known
    }
    header = sum(len(name) + _HEADER_ENTRY_BYTES for name in stored)
    return Expected(sum(stored.values()) + header, parameters, largest)


def _skeleton(directory: Path, trust_remote_code: bool) -> "PreTrainedModel":
    config = load_config(directory, trust_remote_code=trust_remote_code)
    return build_on_meta(directory, config, trust_remote_code=trust_remote_code)


def _put_quantized_layers(model: "PreTrainedModel", config: "BitsAndBytesConfig") -> None:
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    replace_with_bnb_linear(model, modules_to_not_convert=kept, quantization_config=config)


def _quantized_layers(model: "PreTrainedModel") -> "Iterator[tuple[str, nn.Module]]":
    for name, module in model.named_modules():
        if type(module).__name__ in ("Linear8bitLt", "Linear4bit"):
            yield name, module


def _layer_bytes(module: "nn.Module", scheme: Scheme) -> dict[str, int]:
    number = int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]
    if scheme.method == "llm.int8":
        return {"weight": number, "SCB": 4 * int(module.out_features), "weight_format": 1}  # type: ignore[arg-type]
    blocks = math.ceil(number / _BLOCK)
    common = {"weight": math.ceil(number / 2), "weight.quant_map": 4 * 16}
    state = f"weight.quant_state.bitsandbytes__{scheme.stored_type.lower()}"
    if not scheme.double_quantization:
        return common | {"weight.absmax": 4 * blocks, state: _QUANT_STATE_BYTES}
    return common | {
        "weight.absmax": blocks,
        "weight.nested_absmax": 4 * math.ceil(blocks / _NESTED_BLOCK),
        "weight.nested_quant_map": 4 * 256,
        state: _NESTED_QUANT_STATE_BYTES,
    }
