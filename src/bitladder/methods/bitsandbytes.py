"""What bitsandbytes' methods share: how its layers come into a model, and what shapes their weights have."""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitladder.methods.bitsandbytes_kernels import kernel_rule
from bitladder.methods.kinds import FLOATS, is_packed, is_state
from bitladder.methods.method import Method, Shape, Tensors, Widens, kept_modules
from bitladder.methods.types import torch_dtype
from bitladder.records import Scheme

if TYPE_CHECKING:
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedModel


class BitsAndBytes(Method):
    """A method of bitsandbytes'."""

    packages = ("bitsandbytes",)
    layer_class: str
    """of `bitsandbytes.nn`"""
    replaces = "bitsandbytes replaces plain linear layers alone"

    @abstractmethod
    def settings(self, scheme: Scheme) -> dict[str, Any]:
        """What bitsandbytes' settings are called and hold, without what it is to leave alone."""

    @abstractmethod
    def layer_settings(self, scheme: Scheme) -> dict[str, Any]:
        """What one of its layers is made with, beside its size."""

    @abstractmethod
    def prepare_layer(self, layer: Any) -> None:
        """See `prepare_layers`."""

    def quantization_config(self, scheme: Scheme, skipped: Sequence[str] = ()) -> "BitsAndBytesConfig":
        from transformers import BitsAndBytesConfig

        skip = {"llm_int8_skip_modules": list(skipped)} if skipped else {}
        return BitsAndBytesConfig(**self.settings(scheme), **skip)  # type: ignore[no-untyped-call]

    def packed_layers(self, model: "PreTrainedModel", config: Any) -> "Iterator[tuple[str, nn.Module]]":
        from transformers.integrations.bitsandbytes import replace_with_bnb_linear

        kept = kept_modules(model, config.llm_int8_skip_modules)
        replace_with_bnb_linear(model, modules_to_not_convert=kept, quantization_config=config)
        for name, module in model.named_modules():
            if type(module).__name__ == self.layer_class:
                yield name, module

    def decoded_shapes(self, tensors: Tensors, wanted: Mapping[str, Shape | None]) -> dict[str, Shape]:
        """4-bit weights are stored flat, and GPT-2's transposed: their number is what can be checked."""
        packed = {self.weight_name(name) for name in tensors if is_state(name)}
        shapes = {}
        for name, tensor in tensors.items():
            if is_state(name):
                continue
            shapes[name], shape = tensor.shape, wanted[name]
            four_bit = is_packed(name, tensors)
            if shape is not None and name in packed and (four_bit or tensor.dtype not in FLOATS):
                number = tensor.size_bytes * (2 if four_bit else 1)
                shapes[name] = shape if number in (math.prod(shape), math.prod(shape) + 1) else (number,)
        return shapes

    def make_layer(self, scheme: Scheme, in_features: int, out_features: int, device: str) -> "nn.Linear":
        import bitsandbytes

        # on some CPUs it asks for a kernel that it can do without
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        make = getattr(bitsandbytes.nn, self.layer_class)
        layer: nn.Linear = make(in_features, out_features, bias=False, **self.layer_settings(scheme))
        # it keeps the type that it had when it came to its device, where its random weights are quantized
        return layer.to(torch_dtype(scheme.rest_type)).to(device)

    def product_rule(self, layer: Any, widens: Widens) -> Callable[[int], str] | None:
        return kernel_rule(layer, widens) if type(layer).__name__ == self.layer_class else None

    def prepare_layers(self, model: "nn.Module") -> None:
        for module in model.modules():
            if type(module).__name__ == self.layer_class:
                self.prepare_layer(module)
