"""The scheme that a checkpoint says it has, and the one that its tensors have; imports no torch."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bitladder.checkpoint.config import read_config
from bitladder.checkpoint.manifest import read_manifest
from bitladder.checkpoint.tensors import TensorInfo, read_tensors
from bitladder.errors import BrokenFileError
from bitladder.methods import METHODS, find_rung, method_of
from bitladder.methods.method import FLOATS, Types, kind_of, type_name
from bitladder.records import Manifest, Scheme
from bitladder.text.words import describe_mismatch

DeclaredBy = Literal["manifest", "config", "--as"]

_SHOWN_CHARACTERS = 100


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
    return method_of(said).foreign or (_same_format(said, found) and not _same_format(found, manifest.scheme))


def _same_format(one: Scheme, other: Scheme) -> bool:
    kinds = [(scheme.method, scheme.stored_type, bool(scheme.double_quantization)) for scheme in (one, other)]
    return kinds[0] == kinds[1]


def config_scheme(config: Mapping[str, Any], found: Scheme) -> Scheme:
    """What config.json declares, which is what transformers loads by."""
    stored, rest = (_config_type(config) or one for one in (found.stored_type, found.rest_type))
    return settings_scheme(quantization_of(config), Types(stored=stored, computed=rest, rest=rest))


def settings_scheme(
    settings: Mapping[str, Any] | None, types: Types = Types(stored="BF16", computed="BF16", rest="BF16")
) -> Scheme:
    """What quantization settings declare, None being none, of weights that are otherwise of these types."""
    return next(filter(None, (method.declared(settings, types) for method in METHODS.values())))


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
    types = Types(stored=stored_type, computed=_config_type(config) or rest_type, rest=rest_type)
    settings = quantization_of(config)
    return next(filter(None, (method.found(settings, tensors, types) for method in METHODS.values())))


def describe_scheme(scheme: Scheme, here: str | None = None) -> str:
    """A scheme in a few words; ``here``: the type that this machine multiplied in, where that is known."""
    other = "" if here in (None, scheme.compute_type) else f" (here {here})"
    words = [f"{scheme.stored_type} weights", f"{scheme.compute_type} products{other}", f"{scheme.rest_type} rest"]
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
    return type_name(name) if isinstance(name, str) and name != "auto" else None
