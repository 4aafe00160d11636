"""Weights that are cast, not quantized."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bitladder.methods.method import FormatSettings, Method, Shape, Tensors, Types, torch_dtype
from bitladder.records import Scheme

if TYPE_CHECKING:
    from torch import nn


class _Plain(Method):
    name = "plain"
    quantizes = False

    def scheme(self, stored_type: str) -> Scheme:
        return Scheme(method=self.name, stored_type=stored_type, compute_type=stored_type, rest_type=stored_type)

    def declared(self, settings: FormatSettings | None, types: Types) -> Scheme | None:
        return None if settings is not None else self.scheme(types.stored)

    def found(self, settings: FormatSettings | None, tensors: Tensors, types: Types) -> Scheme | None:
        return Scheme(method=self.name, stored_type=types.stored, compute_type=types.computed, rest_type=types.rest)

    def weight_name(self, name: str) -> str:
        return name  # what is called a scale beside a plain weight is the family's own, and decodes nothing

    def decoded_shapes(self, tensors: Tensors, wanted: Mapping[str, Shape | None]) -> dict[str, Shape]:
        return {name: tensor.shape for name, tensor in tensors.items()}

    def quantization_config(self, scheme: Scheme, skipped: Sequence[str] = ()) -> None:
        return None

    def mixes_tokens(self, scheme: Scheme) -> bool:
        return False

    def make_layer(self, scheme: Scheme, in_features: int, out_features: int, device: str) -> "nn.Linear":
        from torch import nn

        return nn.Linear(in_features, out_features, bias=False, dtype=torch_dtype(scheme.stored_type)).to(device)


PLAIN = _Plain()
