"""torchao's weight-only INT8: a scale for each output, products in the inputs' type.

What is stored of a layer is what `torchao.prototype.safetensors` makes of an ``Int8Tensor``, from torchao 0.18 on.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bitladder.errors import UserError
from bitladder.methods.method import (
    FormatSettings,
    Method,
    ReadBytes,
    Shape,
    Tensors,
    Types,
    is_state,
    kept_modules,
    module_of,
    torch_dtype,
    unlike,
)
from bitladder.methods.other import object_of, torchao_settings
from bitladder.records import Scheme

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, TorchAoConfig

_LEAST_VERSION = (0, 18)
_CODES, _SCALES, _ZERO_POINTS = "_weight_qdata", "_weight_scale", "_weight_zero_point"


class _TorchAoInt8(Method):
    name = "torchao-int8"
    packages = ("torchao",)
    hub_tags = ("torchao", "8-bit")
    replaces = "torchao replaces plain linear layers alone"

    def require_packages(self, what: str) -> None:
        super().require_packages(what)
        found = version("torchao")
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < _LEAST_VERSION:
            least = ".".join(map(str, _LEAST_VERSION))
            raise UserError(
                f"{what} needs torchao {least} or later, found {found}; install it with "
                f"`pip install 'torchao>={least}'`"
            )

    def scheme(self, rest_type: str = "BF16") -> Scheme:
        return Scheme(method=self.name, stored_type="I8", compute_type=rest_type, rest_type=rest_type)

    def declared(self, settings: FormatSettings | None, types: Types) -> Scheme | None:
        stated = torchao_settings(settings or {})
        fields = object_of(stated.get("_data"))
        by_row = object_of(fields.get("granularity")).get("_type", "PerRow") == "PerRow"
        weights_alone = stated.get("_type") == "Int8WeightOnlyConfig" and fields.get("group_size") is None and by_row
        return self.scheme(types.rest) if weights_alone else None

    def found(self, settings: FormatSettings | None, tensors: Tensors, types: Types) -> Scheme | None:
        packed = Counter(tensor.dtype for name, tensor in tensors.items() if name.endswith(f".{_CODES}"))
        others = settings is not None and self.declared(settings, types) is None
        return None if others or not packed or set(packed) != {"I8"} else self.scheme(types.rest)

    def weight_name(self, name: str) -> str:
        return f"{module_of(name)}.weight" if is_state(name) or name.endswith(f".{_CODES}") else name

    def decoded_shapes(self, tensors: Tensors, wanted: Mapping[str, Shape | None]) -> dict[str, Shape]:
        return {self.weight_name(name): tensor.shape for name, tensor in tensors.items() if not is_state(name)}

    def undecodable(self, tensors: Tensors, read: ReadBytes) -> Iterator[tuple[str, str]]:
        modules = dict.fromkeys(module_of(name) for name in tensors if name.rpartition(".")[2] in (_CODES, _SCALES))
        for module in modules:
            problem = _problem(module, tensors, read)
            if problem is not None:
                yield f"{module}.{_CODES}", problem

    def quantization_config(self, scheme: Scheme, skipped: Sequence[str] = ()) -> "TorchAoConfig":
        from transformers import TorchAoConfig

        return TorchAoConfig(_settings(), modules_to_not_convert=list(skipped) or None)

    def unpackable(self, model: "PreTrainedModel") -> Iterator[str]:
        """Linear layers with a forward of their own, such as Falcon's, which takes the weight's transpose."""
        from torch import nn

        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward:
                yield name

    def packed_layers(self, model: "PreTrainedModel", config: Any) -> "Iterator[tuple[str, nn.Module]]":
        from torch.nn.modules.linear import Linear, NonDynamicallyQuantizableLinear
        from transformers.quantizers.quantizers_utils import should_convert_module

        kept = kept_modules(model, config.modules_to_not_convert)
        for name, module in model.named_modules():
            plain = isinstance(module, Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
            if plain and should_convert_module(f"{name}.weight", kept):
                yield name, module

    def layer_bytes(self, scheme: Scheme, in_features: int, out_features: int) -> dict[str, int]:
        return {_CODES: in_features * out_features, _SCALES: 4 * out_features, _ZERO_POINTS: out_features}

    def make_layer(self, scheme: Scheme, in_features: int, out_features: int, device: str) -> "nn.Linear":
        from torch import nn
        from torchao.quantization import quantize_

        layer = nn.Linear(in_features, out_features, bias=False, dtype=torch_dtype(scheme.rest_type)).to(device)
        quantize_(layer, _settings())
        return layer

    def why_decoded(self, scheme: Scheme) -> str | None:
        return "weights alone are INT8"

    def read_by(self, settings: FormatSettings) -> str | None:
        return "torchao"


TORCHAO_INT8 = _TorchAoInt8()


def _settings() -> Any:
    """Without those of the compiler, which would change the precision of every FP32 product in the process."""
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(set_inductor_config=False)


def _problem(module: str, tensors: Tensors, read: ReadBytes) -> str | None:
    import numpy as np

    codes = tensors.get(f"{module}.{_CODES}")
    if codes is None or len(codes.shape) != 2:
        return "it has no matrix of codes"
    for part, dtype in ((_SCALES, "F32"), (_ZERO_POINTS, "I8")):
        stored, shape = tensors.get(f"{module}.{part}"), (codes.shape[0], 1)
        if stored is None:
            return f"it has no {part}"
        if (stored.dtype, stored.shape) != (dtype, shape):
            return unlike(part, stored, dtype, shape)
    scales = np.frombuffer(read(f"{module}.{_SCALES}"), np.float32)
    if not np.all(np.isfinite(scales) & (scales > 0)):
        return f"its {_SCALES} holds what is no positive number"
    if np.any(np.frombuffer(read(f"{module}.{_ZERO_POINTS}"), np.int8)):
        return f"its {_ZERO_POINTS} isn't zero, which products take it for"
    return None
