"""What a rung's checkpoint will hold, from the model's configuration alone: nothing is loaded or quantized.

transformers builds the model on the meta device, and the rung's method says which layers it packs there and what is
stored of each.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bitladder.checkpoint.loading import quiet_libraries
from bitladder.checkpoint.skeleton import build_skeleton, directly_used, fp32_plan, kept_in_fp32, linear_weights
from bitladder.errors import UserError
from bitladder.methods import NEGLIGIBLE_SHARE, Rung, find_rung, method_of
from bitladder.methods.method import Method, kind_of, torch_dtype
from bitladder.records import LoadPolicy, Scheme
from bitladder.text.words import name_some

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WIDTH_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_HEADER_ENTRY_BYTES = 70
"""of one tensor in a SafeTensors header, beside its name"""


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


def value_bytes(scheme: Scheme) -> int:
    """Bytes of one number that the scheme's layers hand on, such as a key or a logit."""
    return _WIDTH_BYTES.get(scheme.rest_type, _WIDTH_BYTES["F32"])


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
        f"({name_some(expected.left)}): not an {rung.title} model, since {rung.method.replaces}; "
        f"take another rung{take}"
    )


def expected_bytes(directory: Path, rung: str | Scheme, policy: LoadPolicy = LoadPolicy()) -> int:
    """Bytes of the SafeTensors files that a rung (by name) or scheme of the model in ``directory`` takes.

    Only config.json is read, so that ``directory`` may hold the source or the rung itself. Raises UserError as
    `load_config`.
    """
    scheme = find_rung(rung).scheme if isinstance(rung, str) else rung
    return expect(directory, scheme, policy).stored_bytes


def expect(directory: Path, scheme: Scheme, policy: LoadPolicy = LoadPolicy()) -> Expected:
    """Size of the scheme's checkpoint and number of weights of the model in ``directory``.

    A configuration that hasn't changed since this process last built a network from it is not built again.
    """
    quiet_libraries()  # what bitsandbytes has to tell it tells when it is imported, here at the latest
    status = (directory / "config.json").stat() if (directory / "config.json").is_file() else None
    mark = status and (status.st_ino, status.st_size, status.st_mtime_ns)
    return _expect(directory, mark, scheme, policy)


@functools.lru_cache(maxsize=64)
def _expect(directory: Path, mark: object, scheme: Scheme, policy: LoadPolicy) -> Expected:
    model = build_skeleton(directory, policy)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    parameters, largest = sum(sizes.values()), max(sizes.values())
    linear = {name: weight.numel() for name, weight in linear_weights(model).items()}
    method = method_of(scheme)
    skipped = _skipped(directory, mark, method, policy) if method.quantizes else ()
    config = method.quantization_config(scheme, skipped)
    layers = dict(method.packed_layers(model, config))
    in_fp32 = fp32_plan(model, torch_dtype(scheme.rest_type))  # some a family keeps in FP32 whatever is asked for
    widths = {
        name: 4 if in_fp32(name) or parameter.dtype.itemsize > 2 else _WIDTH_BYTES[scheme.rest_type]
        for name, parameter in model.named_parameters()
    }
    stored: dict[str, int] = {}
    packed_bytes = 0
    for name, layer in layers.items():
        del widths[f"{name}.weight"]
        parts = method.layer_bytes(scheme, int(layer.in_features), int(layer.out_features))  # type: ignore[arg-type]
        stored |= {f"{name}.{part}": size for part, size in parts.items()}
        packed_bytes += next(iter(parts.values()))
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
    converted = () if config is None else _converted(model, layers)
    return Expected(
        sum(stored.values()) + header, parameters, largest, linear, left, skipped, packed_bytes, kept, converted, header
    )


@functools.lru_cache(maxsize=64)
def _skipped(directory: Path, mark: object, method: Method, policy: LoadPolicy) -> tuple[str, ...]:
    """`skipped_modules`, which takes a forward and is the same for every scheme of a method."""
    return skipped_modules(build_skeleton(directory, policy), method)


def _converted(model: "PreTrainedModel", layers: Iterable[str]) -> tuple[str, ...]:
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

    weights = (f"{name}.weight" for name in layers)
    return (*patched, *(name for name in weights if not scales_follow(name)))


def skipped_modules(model: "PreTrainedModel", method: Method) -> tuple[str, ...]:
    """What a quantizer has to be told to leave alone, with what transformers leaves by itself; empty where nothing."""
    from torch import nn
    from transformers.quantizers.base import get_keys_to_not_convert

    in_fp32 = kept_in_fp32(model)
    wide = (name for name, one in model.named_modules() if type(one) is nn.Linear and in_fp32(f"{name}.weight"))
    told = {*directly_used(model), *wide, *method.unpackable(model)}
    return tuple(sorted({*told, *get_keys_to_not_convert(model)})) if told else ()
