"""The scheme that a checkpoint says it has, and the one that its tensors have; imports no torch."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bitladder.checkpoint.config import read_config
from bitladder.checkpoint.kinds import FLOATS, is_state, kind_of, module_of
from bitladder.checkpoint.manifest import read_manifest
from bitladder.checkpoint.tensors import TensorInfo, read_tensors
from bitladder.errors import BrokenFileError
from bitladder.records import Manifest, Scheme
from bitladder.rungs import find_rung
from bitladder.wording import describe_mismatch

DeclaredBy = Literal["manifest", "config", "--as"]

_TYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_TORCHAO_WEIGHTS = re.compile(r"(float|int)(\d+)_?weight", re.IGNORECASE)
"""``Int8DynamicActivationInt4WeightConfig``, and ``int4_weight_only`` as it was written before"""
_TORCHAO_INPUTS = re.compile(r"(float|int)(\d+)_?(?:dynamic|static)_?activation", re.IGNORECASE)
_INT8_THRESHOLD = 6.0
"""transformers' default where the config leaves it out"""
_SHOWN_CHARACTERS = 100
_PLAIN_BITS = 16
"""auto-round's word for inputs that it leaves as they are"""


class _Quantization(BaseModel):
    """The quantization settings that are read here, of all libraries; each has more."""

    model_config = ConfigDict(strict=True, protected_namespaces=())

    quant_method: str | None = None
    load_in_8bit: bool | None = None
    load_in_4bit: bool | None = None
    llm_int8_threshold: float | None = None
    bnb_4bit_quant_type: str | None = None
    bnb_4bit_compute_dtype: str | None = None
    bnb_4bit_use_double_quant: bool | None = None
    bits: int | None = None
    w_bit: int | None = None
    act_bits: int | None = None
    act_data_type: str | None = None
    config_groups: dict[str, Any] | None = None
    quant_type: str | dict[str, Any] | None = None
    llm_int8_skip_modules: list[str] | None = None
    modules_to_not_convert: list[str] | None = None
    ignore: list[str] | None = None
    ignored_layers: list[str] | None = None


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config's quantization settings; None where the weights are plain. Raises BrokenFileError for what are
    no settings."""
    found = config.get("quantization_config")
    if found is None and (found := config.get("compression_config")) is None:
        return None
    if not isinstance(found, dict):
        raise _broken(f"is {str(found)[:_SHOWN_CHARACTERS]!r}, expected an object")
    try:
        settings = _Quantization.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise _broken(
            f"has {'.'.join(map(str, first['loc']))}: {describe_mismatch(first)[:_SHOWN_CHARACTERS]}"
        ) from None
    if not (settings.quant_method or settings.load_in_8bit or settings.load_in_4bit):
        raise _broken("names no quant_method")
    return dict(found)


def _broken(found: str) -> BrokenFileError:
    return BrokenFileError(f"config.json: quantization_config {found}; fetch or make it again")


def declared_scheme(
    config: Mapping[str, Any], manifest: Manifest | None, as_rung: str | None, found: Scheme
) -> tuple[Scheme, DeclaredBy]:
    """What the checkpoint is said to be: by ``--as``, else its manifest, else its config.

    Where a config names no type, it declares the stored one. Raises UnknownNameError for an unknown rung.
    """
    if as_rung is not None:
        return find_rung(as_rung).scheme, "--as"
    if manifest is not None:
        return manifest.scheme, "manifest"
    return config_scheme(config, found), "config"


def own_manifest(directory: Path) -> Manifest | None:
    """The manifest of the checkpoint in ``directory``; None where it has none, or carries that of the one it was made
    from. Raises as `read_config`, `read_tensors` and `read_manifest`."""
    manifest = read_manifest(directory)
    if manifest is None or is_carried(manifest, read_config(directory), read_tensors(directory)):
        return None
    return manifest


def is_carried(manifest: Manifest, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether a manifest is of another checkpoint than it lies beside: another quantizer that made something of a
    checkpoint of ours took all its files along.

    The config then names another library, or config and tensors agree on another scheme than the manifest's; damage
    does neither.
    """
    found = found_scheme(config, tensors)
    said = config_scheme(config, found)
    return said.method == "other" or (_same_format(said, found) and not _same_format(found, manifest.scheme))


def _same_format(one: Scheme, other: Scheme) -> bool:
    kinds = [(scheme.method, scheme.stored_type, bool(scheme.double_quantization)) for scheme in (one, other)]
    return kinds[0] == kinds[1]


def config_scheme(config: Mapping[str, Any], found: Scheme) -> Scheme:
    """What config.json declares, which is what transformers loads by."""
    rest_type = _config_type(config) or found.rest_type
    quantization = quantization_of(config)
    if quantization is None:
        stored_type = _config_type(config) or found.stored_type
        return Scheme(method="plain", stored_type=stored_type, compute_type=stored_type, rest_type=stored_type)
    if quantization.get("load_in_8bit"):
        return Scheme(
            method="llm.int8",
            stored_type="I8",
            compute_type="F16",
            rest_type=rest_type,
            int8_threshold=_int8_threshold(quantization),
        )
    if quantization.get("load_in_4bit"):
        return Scheme(
            method="bnb-4bit",
            stored_type=str(quantization.get("bnb_4bit_quant_type") or "fp4").upper(),
            compute_type=_four_bit_compute_type(quantization),
            rest_type=rest_type,
            double_quantization=bool(quantization.get("bnb_4bit_use_double_quant", False)),
        )
    return Scheme(
        method="other",
        stored_type=_other_type(quantization),
        compute_type=rest_type,
        rest_type=rest_type,
        activation_type=_activation_type(quantization),
    )


def found_scheme(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> Scheme:
    """The scheme that the tensors show; what no tensor shows (threshold, compute type) is the config's."""
    linear: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    for name, tensor in tensors.items():
        kind = kind_of(name, tensor)
        if kind == "linear":
            linear[tensor.dtype] += tensor.size_bytes
        elif kind != "quantization state" and tensor.dtype in FLOATS:
            rest[tensor.dtype] += tensor.size_bytes
    stored_type = _largest(linear) or _largest(rest) or "none"
    rest_type = _largest(rest) or stored_type
    quantization = quantization_of(config) or {}
    codebooks = {name.rpartition("bitsandbytes__")[2].upper() for name in tensors if ".quant_state." in name}
    if codebooks:
        return Scheme(
            method="bnb-4bit",
            stored_type="+".join(sorted(codebooks)),
            compute_type=_four_bit_compute_type(quantization),
            rest_type=rest_type,
            double_quantization=any(name.endswith(".nested_absmax") for name in tensors),
        )
    scaled = [f"{module_of(name)}.weight" for name in tensors if name.endswith(".SCB")]
    if scaled:
        packed = Counter(tensors[name].dtype for name in scaled if name in tensors)
        return Scheme(
            method="llm.int8",
            stored_type=_largest(packed) or stored_type,
            compute_type="F16",
            rest_type=rest_type,
            int8_threshold=_int8_threshold(quantization),
        )
    compute_type = _config_type(config) or rest_type
    quantized = stored_type not in FLOATS or (bool(quantization) and any(is_state(name) for name in tensors))
    return Scheme(
        method="other" if quantized else "plain",
        stored_type=stored_type,
        compute_type=compute_type,
        rest_type=rest_type,
        activation_type=_activation_type(quantization) if quantized else None,
    )


def describe_scheme(scheme: Scheme) -> str:
    """A scheme in a few words."""
    words = [f"{scheme.stored_type} weights", f"{scheme.compute_type} products", f"{scheme.rest_type} rest"]
    if scheme.activation_type is not None:
        words.insert(1, f"{scheme.activation_type} inputs")
    if scheme.int8_threshold is not None:
        words.append(f"outlier threshold {scheme.int8_threshold:g}")
    if scheme.double_quantization:
        words.append("double quantization")
    return ", ".join(words)


def _largest(bytes_by_type: Counter[str]) -> str | None:
    return bytes_by_type.most_common(1)[0][0] if bytes_by_type else None


def _config_type(config: Mapping[str, Any]) -> str | None:
    nested = config.get("text_config")
    places = (config, nested if isinstance(nested, dict) else {})
    name = next((one for place in places for key in ("dtype", "torch_dtype") if (one := place.get(key))), None)
    return _type_name(name) if isinstance(name, str) and name != "auto" else None


def _type_name(torch_name: str) -> str:
    return _TYPES.get(torch_name.removeprefix("torch."), torch_name)


def _int8_threshold(quantization: Mapping[str, Any]) -> float:
    stated: float | None = quantization.get("llm_int8_threshold")
    return _INT8_THRESHOLD if stated is None else stated


def _four_bit_compute_type(quantization: Mapping[str, Any]) -> str:
    return _type_name(quantization.get("bnb_4bit_compute_dtype") or "float32")


def _other_type(quantization: Mapping[str, Any]) -> str:
    """How another library's settings call the weights' type, such as INT4; its own name where they don't say."""
    weights = _first_group(quantization, "weights")
    bits = quantization.get("bits") or quantization.get("w_bit") or weights.get("num_bits")
    if bits is None:
        return _torchao_type(quantization) or str(quantization.get("quant_method", "unknown"))
    return _number_type(str(weights.get("type", "int")), bits)


def _activation_type(quantization: Mapping[str, Any]) -> str | None:
    """What the inputs of the products are rounded to, as another library's settings say it."""
    inputs = _first_group(quantization, "input_activations")
    bits = inputs.get("num_bits") or quantization.get("act_bits")
    if isinstance(bits, int):
        kind = inputs.get("type") or quantization.get("act_data_type") or "int"
        return _number_type(str(kind), bits) if bits < _PLAIN_BITS else None
    found = _TORCHAO_INPUTS.search(str(_torchao_settings(quantization).get("_type")))
    return _number_type(found[1], found[2]) if found else None


def _first_group(quantization: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """What compressed-tensors says of the weights, or of the inputs, of its first group of layers."""
    groups = list(_object(quantization.get("config_groups")).values())
    return _object(_object(groups[0]).get(part)) if groups else {}


def _torchao_settings(quantization: Mapping[str, Any]) -> Mapping[str, Any]:
    stated = quantization.get("quant_type")
    return _object(stated.get("default") if isinstance(stated, dict) else {"_type": stated})


def _torchao_type(quantization: Mapping[str, Any]) -> str | None:
    """The weights' type in torchao's settings: its own field, else as the name of the settings says it."""
    default = _torchao_settings(quantization)
    stated_type = _object(_object(default.get("_data")).get("weight_dtype"))
    found = re.match(r"(float|int)(\d+)", str(stated_type.get("_data"))) or _TORCHAO_WEIGHTS.search(
        str(default.get("_type"))
    )
    return _number_type(found[1], found[2]) if found else None


def _object(value: object) -> Mapping[str, Any]:
    """What isn't one says nothing."""
    return value if isinstance(value, dict) else {}


def _number_type(kind: str, bits: object) -> str:
    """INT4, FP8, as the ladder calls its own."""
    return f"{'FP' if kind.lower() == 'float' else kind.upper()}{bits}"
