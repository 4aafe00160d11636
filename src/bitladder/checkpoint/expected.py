"""What a rung's checkpoint will hold, from the model's configuration alone: nothing is loaded or quantized.

transformers builds the model on the meta device and puts bitsandbytes' layers where it would when quantizing; what
those layers store is the layout below (checked against the files they write).
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.checkpoint.kinds import kind_of
from bitladder.checkpoint.loading import quiet_libraries
from bitladder.checkpoint.skeleton import build_skeleton, directly_used, fp32_plan, kept_in_fp32, linear_weights
from bitladder.errors import UserError
from bitladder.records import Scheme
from bitladder.rungs import NEGLIGIBLE_SHARE, Rung, find_rung
from bitladder.wording import name_some

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
    """of the files"""
    parameters: int
    largest_weight: int
    """number of weights in the largest tensor"""
    linear: Mapping[str, int]
    """number of weights of each matrix that the scheme is meant for"""
    left: tuple[str, ...]
    """those of them that the quantizer doesn't know how to replace, such as a mixture's experts; the largest first"""
    skipped: tuple[str, ...]
    """modules that it has to be told to leave alone; empty where it knows itself"""
    packed_bytes: int = 0
    """of a quantized scheme: its layers' weights, without their scales"""
    kept: Mapping[str, int] = field(default_factory=dict)
    """of a quantized scheme: bytes by kind of module of what it leaves in a floating type"""
    converted: tuple[str, ...] = ()
    """what transformers stores in another layout than it computes with, and can't convert once it is quantized"""

    header_bytes: int = 0
    """of `stored_bytes`, about: what is in the files beside the tensors"""

    @property
    def tensor_bytes(self) -> int:
        return self.stored_bytes - self.header_bytes

    @property
    def quantizing_bytes(self) -> int:
        """Memory that making it takes: the result, and the largest tensor once more in FP32."""
        return self.stored_bytes + 4 * self.largest_weight

    @property
    def left_share(self) -> float:
        """Share of the matrices' weights that are stored as they were."""
        return sum(self.linear[name] for name in self.left) / max(1, sum(self.linear.values()))


def torch_dtype(name: str) -> Any:
    """torch's type of that SafeTensors name (F32, BF16 or F16)."""
    import torch

    return getattr(torch, _TORCH_DTYPES[name])


def value_bytes(scheme: Scheme) -> int:
    """Bytes of one number that the scheme's layers hand on, such as a key or a logit."""
    return _WIDTH_BYTES.get(scheme.rest_type, _WIDTH_BYTES["F32"])


def quantization_config(scheme: Scheme, skipped: Sequence[str] = ()) -> "BitsAndBytesConfig | None":
    """What transformers has to be told to make the scheme; None where only the type changes.

    ``skipped``: of `skipped_modules`.
    """
    from transformers import BitsAndBytesConfig

    skip = {"llm_int8_skip_modules": list(skipped)} if skipped else {}
    if scheme.method == "llm.int8":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=True, llm_int8_threshold=scheme.int8_threshold, **skip
        )
    if scheme.method == "bnb-4bit":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type=scheme.stored_type.lower(),
            bnb_4bit_compute_dtype=torch_dtype(scheme.compute_type),
            bnb_4bit_use_double_quant=scheme.double_quantization,
            **skip,
        )
    if scheme.method == "plain":
        return None
    raise ValueError(f"no quantization is known for the method {scheme.method!r}")


def require_whole(what: str, rung: Rung, expected: Expected, *, allow_partial: bool = False) -> None:
    """Raise UserError where the rung's method would leave more of the weights as they are than its name allows.

    ``allow_partial``: only where it would leave all of them.
    """
    if expected.converted:
        raise UserError(
            f"{what}: transformers can't store this model as {rung.title} and load it again, since it has "
            f"{name_some(expected.converted)} in another layout in its files; take another rung"
        )
    if expected.left_share <= NEGLIGIBLE_SHARE or (allow_partial and len(expected.left) < len(expected.linear)):
        return
    take = "" if len(expected.left) == len(expected.linear) else ", or give --allow-partial to take it as it is"
    raise UserError(
        f"{what}: {expected.left_share:.0%} of the linear weights would stay {rung.scheme.rest_type} "
        f"({name_some(expected.left)}): not an {rung.title} model, since bitsandbytes replaces plain linear layers "
        f"alone; take another rung{take}"
    )


def expected_bytes(directory: Path, rung: str | Scheme, *, trust_remote_code: bool = False) -> int:
    """Bytes of the SafeTensors files that a rung (by name) or scheme of the model in ``directory`` takes.

    Only config.json is read, so that ``directory`` may hold the source or the rung itself. Raises UserError as
    `load_config`.
    """
    scheme = find_rung(rung).scheme if isinstance(rung, str) else rung
    return expect(directory, scheme, trust_remote_code=trust_remote_code).stored_bytes


def expect(directory: Path, scheme: Scheme, *, trust_remote_code: bool = False) -> Expected:
    """Size of the scheme's checkpoint and number of weights of the model in ``directory``.

    A configuration that hasn't changed since this process last built a network from it is not built again.
    """
    quiet_libraries()  # what bitsandbytes has to tell it tells when it is imported, here at the latest
    status = (directory / "config.json").stat() if (directory / "config.json").is_file() else None
    mark = status and (status.st_ino, status.st_size, status.st_mtime_ns)
    return _expect(directory, mark, scheme, trust_remote_code)


@functools.lru_cache(maxsize=64)
def _expect(directory: Path, mark: object, scheme: Scheme, trust_remote_code: bool) -> Expected:
    model = build_skeleton(directory, trust_remote_code=trust_remote_code)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    parameters, largest = sum(sizes.values()), max(sizes.values())
    linear = {name: weight.numel() for name, weight in linear_weights(model).items()}
    skipped = () if scheme.method == "plain" else _skipped(directory, mark, trust_remote_code)
    config = quantization_config(scheme, skipped)
    if config is not None:
        _put_quantized_layers(model, config)
    widths = _rest_widths(model, scheme.rest_type)
    stored: dict[str, int] = {}
    packed_bytes = 0
    for name, module in _quantized_layers(model):
        del widths[f"{name}.weight"]
        stored |= {f"{name}.{key}": size for key, size in _layer_bytes(module, scheme).items()}
        packed_bytes += stored[f"{name}.weight"]
    whole = () if config is None else (name for name in linear if name in widths)
    left = tuple(sorted(whole, key=lambda name: -linear[name]))
    kept: dict[str, int] = {}
    for name, parameter in model.named_parameters() if config is not None else ():
        if name in widths:
            kind = kind_of(name, parameter)
            kept[kind] = kept.get(kind, 0) + sizes[name] * widths[name]
    stored |= {name: sizes[name] * width for name, width in widths.items()}
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored |= {
        name: buffer.numel() * buffer.element_size() for name, buffer in model.state_dict().items() if name not in known
    }
    header = sum(len(name) + _HEADER_ENTRY_BYTES for name in stored)
    converted = () if config is None else _converted(model)
    return Expected(
        sum(stored.values()) + header, parameters, largest, linear, left, skipped, packed_bytes, kept, converted, header
    )


@functools.lru_cache(maxsize=64)
def _skipped(directory: Path, mark: object, trust_remote_code: bool) -> tuple[str, ...]:
    """`skipped_modules`, which takes a forward and is the same for every scheme."""
    return skipped_modules(build_skeleton(directory, trust_remote_code=trust_remote_code))


def _converted(model: "PreTrainedModel") -> tuple[str, ...]:
    """Llama 4's experts, a list of layers in a quantized checkpoint and one parameter while one is made; and quantized
    layers whose weights are split, merged or stored without a layer's name (Inkling 2) on the way between file and
    model, which scales don't follow."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter
    from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION

    patched = (name for name, one in model.named_modules() if type(one).__name__ in MODULES_TO_PATCH_FOR_QUANTIZATION)
    back = [one.reverse_transform() for one in reversed(get_model_conversion_mapping(model))]
    converters = [one for one in back if isinstance(one, WeightConverter)]
    renamings = [one for one in back if not isinstance(one, WeightConverter)]

    def scales_follow(weight: str) -> bool:
        if any(one.rename_source_key(weight)[1] is not None for one in converters):
            return False
        for one in renamings:
            weight, _ = one.rename_source_key(weight)
        return weight.endswith(".weight")

    layers = (f"{name}.weight" for name, _ in _quantized_layers(model))
    return (*patched, *(name for name in layers if not scales_follow(name)))


def skipped_modules(model: "PreTrainedModel") -> tuple[str, ...]:
    """What bitsandbytes has to be told to leave alone, with what transformers leaves by itself; empty where nothing."""
    from torch import nn
    from transformers.quantizers.base import get_keys_to_not_convert

    in_fp32 = kept_in_fp32(model)
    wide = (name for name, one in model.named_modules() if type(one) is nn.Linear and in_fp32(f"{name}.weight"))
    told = {*directly_used(model), *wide}
    return tuple(sorted({*told, *get_keys_to_not_convert(model)})) if told else ()


def _rest_widths(model: "PreTrainedModel", rest_type: str) -> dict[str, int]:
    """Bytes of one number of each parameter that isn't packed; some a family keeps in FP32 whatever is asked for."""
    in_fp32 = fp32_plan(model, torch_dtype(rest_type))
    return {
        name: 4 if in_fp32(name) or parameter.dtype.itemsize > 2 else _WIDTH_BYTES[rest_type]
        for name, parameter in model.named_parameters()
    }


def _put_quantized_layers(model: "PreTrainedModel", config: "BitsAndBytesConfig") -> None:
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    skipped = config.llm_int8_skip_modules
    kept = [
        *(get_keys_to_not_convert(model) if skipped is None else skipped),
        *(model._keep_in_fp32_modules or ()),
    ]
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
