"""bitsandbytes' 4-bit codebooks, FP4 and NF4: blocks of 64 weights share a scale (Dettmers and others 2023, QLoRA)."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitladder.errors import BrokenFileError
from bitladder.files import parse_json_object
from bitladder.machine.libraries import patch_for_good
from bitladder.methods.bitsandbytes import BitsAndBytes
from bitladder.methods.method import (
    FormatSettings,
    ReadBytes,
    Stored,
    Tensors,
    Types,
    is_packed,
    torch_dtype,
    type_name,
    unlike,
)
from bitladder.records import Scheme
from bitladder.text.words import describe_mismatch

_STATE = ".quant_state.bitsandbytes__"
_CODES = 16
_NESTED_CODES = 256
_BLOCK = 64
"""weights that share an absmax"""
_NESTED_BLOCK = 256
"""absmax values that share one, with double quantization"""
_PACKED_OUTPUTS = 32
"""``block_n`` of ``bitsandbytes.functional._convert_weight_packed_for_cpu``"""
_STATE_BYTES, _NESTED_STATE_BYTES = 80, 169


class _Bnb4Bit(BitsAndBytes):
    name = "bnb-4bit"
    layer_class = "Linear4bit"
    hub_tags = ("bitsandbytes", "4-bit")

    def scheme(
        self, stored_type: str, compute_type: str, *, rest_type: str = "BF16", double_quantization: bool = False
    ) -> Scheme:
        """``double_quantization``: of the scales, too."""
        return Scheme(
            method=self.name,
            stored_type=stored_type,
            compute_type=compute_type,
            rest_type=rest_type,
            double_quantization=double_quantization,
        )

    def declared(self, settings: FormatSettings | None, types: Types) -> Scheme | None:
        if not settings or not settings.get("load_in_4bit"):
            return None
        return self.scheme(
            str(settings.get("bnb_4bit_quant_type") or "fp4").upper(),
            _compute_type(settings),
            rest_type=types.rest,
            double_quantization=bool(settings.get("bnb_4bit_use_double_quant", False)),
        )

    def found(self, settings: FormatSettings | None, tensors: Tensors, types: Types) -> Scheme | None:
        codebooks = {name.rpartition(_STATE)[2].upper() for name in tensors if ".quant_state." in name}
        if not codebooks:
            return None
        return self.scheme(
            "+".join(sorted(codebooks)),
            _compute_type(settings or {}),
            rest_type=types.rest,
            double_quantization=any(name.endswith(".nested_absmax") for name in tensors),
        )

    def undecodable(self, tensors: Tensors, read: ReadBytes) -> Iterator[tuple[str, str]]:
        for name, tensor in tensors.items():
            if is_packed(name, tensors) and (problem := _problem(name, tensor, tensors, read)) is not None:
                yield name, problem

    def settings(self, scheme: Scheme) -> dict[str, Any]:
        return {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": scheme.stored_type.lower(),
            "bnb_4bit_compute_dtype": torch_dtype(scheme.compute_type),
            "bnb_4bit_use_double_quant": scheme.double_quantization,
        }

    def layer_bytes(self, scheme: Scheme, in_features: int, out_features: int) -> dict[str, int]:
        number = in_features * out_features
        blocks = math.ceil(number / _BLOCK)
        common = {"weight": math.ceil(number / 2), "weight.quant_map": 4 * _CODES}
        state = f"weight{_STATE}{scheme.stored_type.lower()}"
        if not scheme.double_quantization:
            return common | {"weight.absmax": 4 * blocks, state: _STATE_BYTES}
        return common | {
            "weight.absmax": blocks,
            "weight.nested_absmax": 4 * math.ceil(blocks / _NESTED_BLOCK),
            "weight.nested_quant_map": 4 * _NESTED_CODES,
            state: _NESTED_STATE_BYTES,
        }

    def layer_settings(self, scheme: Scheme) -> dict[str, Any]:
        return {
            "compute_dtype": torch_dtype(scheme.compute_type),
            "quant_type": scheme.stored_type.lower(),
            "compress_statistics": bool(scheme.double_quantization),
        }

    def prepare_layer(self, layer: Any) -> None:
        """Where the CPU multiplies BF16, a 4-bit weight is packed anew at its first forward, which wants a multiple of
        32 outputs and one of the block of inputs. Others are decoded at every call, as on other CPUs."""
        if layer.out_features % _PACKED_OUTPUTS or layer.in_features % layer.weight.quant_state.blocksize:
            layer.support_avx512bf16_for_cpu = False
        plain = layer.forward
        patch_for_good("bitsandbytes.nn:Linear4bit.forward", lambda inputs: plain(inputs.contiguous()), layer)

    def mixes_tokens(self, scheme: Scheme) -> bool:
        return False

    def why_decoded(self, scheme: Scheme) -> str | None:
        return f"no hardware multiplies {scheme.stored_type}"

    def repacked_type(self, bytes_before: Mapping[str, int], bytes_after: Mapping[str, int]) -> str | None:
        """The weights may be packed anew for a CPU's BF16 instructions, with their block scales rounded to BF16."""
        fewer = bytes_after.get("F32", 0) < bytes_before.get("F32", 0)
        return "BF16" if fewer and bytes_after.get("BF16", 0) > bytes_before.get("BF16", 0) else None


BNB_4BIT = _Bnb4Bit()


def _compute_type(settings: FormatSettings) -> str:
    return type_name(settings.get("bnb_4bit_compute_dtype") or "float32")


class _FourBitState(BaseModel):
    """The settings of one 4-bit weight, as bitsandbytes stores them: JSON in a tensor of bytes."""

    model_config = ConfigDict(strict=True)

    quant_type: str
    blocksize: int = Field(ge=1)
    dtype: str = Field(pattern="^(float32|float16|bfloat16)$")
    shape: list[int]
    nested_blocksize: int | None = Field(default=None, ge=1)
    nested_dtype: str | None = None
    nested_offset: float | None = Field(default=None, allow_inf_nan=False)


def _problem(name: str, tensor: Stored, tensors: Tensors, read: ReadBytes) -> str | None:
    names = [other for other in tensors if other.startswith(f"{name}{_STATE}")]
    if len(names) != 1:
        return f"it has {len(names)} quantization states, expected one"
    try:
        state = _FourBitState.model_validate(
            parse_json_object(read(names[0]), "its quantization state", "make it again")
        )
    except BrokenFileError as error:
        return str(error)
    except ValidationError as error:
        first = error.errors()[0]
        return f"its quantization state has {'.'.join(map(str, first['loc']))}: {describe_mismatch(first)[:100]}"
    if state.quant_type != names[0].rpartition(_STATE)[2]:
        return f"its quantization state is of {state.quant_type!r}, its name is {names[0]}"
    weights = math.prod(state.shape)
    if 2 * tensor.size_bytes not in (weights, weights + 1):
        return f"{tensor.size_bytes:,} bytes of codes, expected those of {state.shape}"
    return next(_unfitting_parts(name, state, math.ceil(weights / state.blocksize), tensors), None)


def _unfitting_parts(name: str, state: _FourBitState, blocks: int, tensors: Tensors) -> Iterator[str]:
    wanted = {"absmax": ("F32", blocks), "quant_map": ("F32", _CODES)}
    if f"{name}.nested_absmax" in tensors:
        if state.nested_blocksize is None or state.nested_offset is None or state.nested_dtype is None:
            yield "its quantization state doesn't say how its scales are quantized"
            return
        wanted["absmax"] = ("U8", blocks)
        wanted["nested_absmax"] = ("F32", math.ceil(blocks / state.nested_blocksize))
        wanted["nested_quant_map"] = ("F32", _NESTED_CODES)
    for part, (dtype, count) in wanted.items():
        tensor = tensors.get(f"{name}.{part}")
        if tensor is None:
            yield f"it has no {part}"
        elif (tensor.dtype, math.prod(tensor.shape)) != (dtype, count):
            yield unlike(part, tensor, dtype, (count,))
