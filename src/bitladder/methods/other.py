"""Another library's format: its config.json says what it is, and its library alone how it decodes."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitladder.methods.method import FLOATS, FormatSettings, Method, Shape, Tensors, Types, is_state, module_of
from bitladder.records import Scheme

if TYPE_CHECKING:
    from torch import nn

_TORCHAO_WEIGHTS = re.compile(r"(float|int)(\d+)_?weight", re.IGNORECASE)
"""``Int8DynamicActivationInt4WeightConfig``, and ``int4_weight_only`` as it was written before"""
_TORCHAO_INPUTS = re.compile(r"(float|int)(\d+)_?(?:dynamic|static)_?activation", re.IGNORECASE)
_PLAIN_BITS = 16
"""auto-round's word for inputs that it leaves as they are"""


class _Other(Method):
    name = "other"
    foreign = True

    def declared(self, settings: FormatSettings | None, types: Types) -> Scheme | None:
        if settings is None:
            return None
        return self._scheme(settings, Types(stored=_stored_type(settings), computed=types.rest, rest=types.rest))

    def found(self, settings: FormatSettings | None, tensors: Tensors, types: Types) -> Scheme | None:
        if types.stored in FLOATS and not (settings and any(is_state(name) for name in tensors)):
            return None
        return self._scheme(settings or {}, types)

    def _scheme(self, settings: FormatSettings, types: Types) -> Scheme:
        return Scheme(
            method=self.name,
            stored_type=types.stored,
            compute_type=types.computed,
            rest_type=types.rest,
            activation_type=_activation_type(settings),
        )

    def decoded_shapes(self, tensors: Tensors, wanted: Mapping[str, Shape | None]) -> dict[str, Shape]:
        """What stands beside scales is packed in a way of that library's, a bias apart."""
        packed = {module_of(self.weight_name(name)) for name in tensors if is_state(name)}
        return {
            name: tensor.shape
            for name, tensor in tensors.items()
            if not is_state(name)
            and tensor.dtype in FLOATS
            and (module_of(name) not in packed or name.endswith(".bias"))
        }

    def quantization_config(self, scheme: Scheme, skipped: Sequence[str] = ()) -> Any:
        raise ValueError(f"no quantization is known for the method {self.name!r}")

    def make_layer(self, scheme: Scheme, in_features: int, out_features: int, device: str) -> "nn.Linear":
        raise ValueError(f"no layer is known for the method {self.name!r}")

    def multiplies_int8(self, scheme: Scheme) -> bool:
        return scheme.activation_type == "INT8"

    def read_by(self, settings: FormatSettings) -> str | None:
        return str(settings.get("quant_method"))


OTHER = _Other()


def _stored_type(settings: FormatSettings) -> str:
    """How the settings call the weights' type, such as INT4; the library's own name where they don't say."""
    weights = _first_group(settings, "weights")
    bits = settings.get("bits") or settings.get("w_bit") or weights.get("num_bits")
    if bits is None:
        return _torchao_type(settings) or str(settings.get("quant_method", "unknown"))
    return _number_type(str(weights.get("type", "int")), bits)


def _activation_type(settings: FormatSettings) -> str | None:
    """What the inputs of the products are rounded to, as the settings say it."""
    inputs = _first_group(settings, "input_activations")
    bits = inputs.get("num_bits") or settings.get("act_bits")
    if isinstance(bits, int):
        kind = inputs.get("type") or settings.get("act_data_type") or "int"
        return _number_type(str(kind), bits) if bits < _PLAIN_BITS else None
    found = _TORCHAO_INPUTS.search(str(torchao_settings(settings).get("_type")))
    return _number_type(found[1], found[2]) if found else None


def _first_group(settings: FormatSettings, part: str) -> Mapping[str, Any]:
    """What compressed-tensors says of the weights, or of the inputs, of its first group of layers."""
    groups = list(object_of(settings.get("config_groups")).values())
    return object_of(object_of(groups[0]).get(part)) if groups else {}


def torchao_settings(settings: FormatSettings) -> Mapping[str, Any]:
    """What torchao says of all layers: the name of its settings as ``_type``, their fields as ``_data``."""
    stated = settings.get("quant_type")
    return object_of(stated.get("default") if isinstance(stated, dict) else {"_type": stated})


def _torchao_type(settings: FormatSettings) -> str | None:
    """The weights' type in torchao's settings: its own field, else as the name of the settings says it."""
    default = torchao_settings(settings)
    stated_type = object_of(object_of(default.get("_data")).get("weight_dtype"))
    found = re.match(r"(float|int)(\d+)", str(stated_type.get("_data"))) or _TORCHAO_WEIGHTS.search(
        str(default.get("_type"))
    )
    return _number_type(found[1], found[2]) if found else None


def object_of(value: object) -> Mapping[str, Any]:
    """What isn't an object says nothing."""
    return value if isinstance(value, dict) else {}


def _number_type(kind: str, bits: object) -> str:
    """INT4, FP8, as the ladder calls its own."""
    return f"{'FP' if kind.lower() == 'float' else kind.upper()}{bits}"
