"""bitsandbytes: what its methods share, and LLM.int8.

LLM.int8 multiplies INT8 by INT8, with outlier columns apart in FP16 (Dettmers and others 2022, arXiv:2208.07339).
"""

import logging
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bitladder.machine.libraries import patch_for_good
from bitladder.methods.bitsandbytes_kernels import kernel_rule
from bitladder.methods.method import (
    FLOATS,
    FormatSettings,
    Method,
    ReadBytes,
    Shape,
    Tensors,
    Types,
    Widens,
    is_packed,
    is_state,
    kept_modules,
    module_of,
    torch_dtype,
    unlike,
)
from bitladder.records import Scheme

if TYPE_CHECKING:
    from torch import Tensor, nn
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


_THRESHOLD = 6.0
"""transformers' default where the config leaves it out"""
_MOST_AXES = 3


class _LlmInt8(BitsAndBytes):
    name = "llm.int8"
    layer_class = "Linear8bitLt"
    hub_tags = ("bitsandbytes", "8-bit")

    def scheme(self, threshold: float, *, stored_type: str = "I8", rest_type: str = "BF16") -> Scheme:
        """``threshold``: of an outlier's magnitude; 0 for none."""
        return Scheme(
            method=self.name,
            stored_type=stored_type,
            compute_type="F16",
            rest_type=rest_type,
            int8_threshold=threshold,
        )

    def declared(self, settings: FormatSettings | None, types: Types) -> Scheme | None:
        if not settings or not settings.get("load_in_8bit"):
            return None
        return self.scheme(_threshold(settings), rest_type=types.rest)

    def found(self, settings: FormatSettings | None, tensors: Tensors, types: Types) -> Scheme | None:
        scaled = [f"{module_of(name)}.weight" for name in tensors if name.endswith(".SCB")]
        if not scaled:
            return None
        packed = Counter(tensors[name].dtype for name in scaled if name in tensors)
        stored_type = packed.most_common(1)[0][0] if packed else types.stored
        return self.scheme(_threshold(settings or {}), stored_type=stored_type, rest_type=types.rest)

    def undecodable(self, tensors: Tensors, read: ReadBytes) -> Iterator[tuple[str, str]]:
        for name, tensor in tensors.items():
            scales = tensors.get(f"{name.removesuffix('weight')}SCB") if name.endswith(".weight") else None
            if scales is not None and (scales.dtype, scales.shape) != ("F32", tensor.shape[:1]):
                yield name, unlike("SCB", scales, "F32", tensor.shape[:1])

    def settings(self, scheme: Scheme) -> dict[str, Any]:
        return {"load_in_8bit": True, "llm_int8_threshold": scheme.int8_threshold}

    def layer_bytes(self, scheme: Scheme, in_features: int, out_features: int) -> dict[str, int]:
        return {"weight": in_features * out_features, "SCB": 4 * out_features, "weight_format": 1}

    def passed_types(self, scheme: Scheme, *, is_matrix: bool) -> tuple[str, ...]:
        """It finds the scales of what it quantizes in FP16: one weight beyond that makes its row no numbers, and a row
        below it zero."""
        return (scheme.rest_type, "F16") if is_matrix else (scheme.rest_type,)

    def layer_settings(self, scheme: Scheme) -> dict[str, Any]:
        return {"has_fp16_weights": False, "threshold": scheme.int8_threshold}

    def prepare_layer(self, layer: Any) -> None:
        plain = layer.forward

        def forward(inputs: "Tensor") -> "Tensor":
            if inputs.ndim <= _MOST_AXES:
                return plain(inputs)  # type: ignore[no-any-return]
            output: Tensor = plain(inputs.flatten(0, -2))
            return output.view(*inputs.shape[:-1], output.shape[-1])

        patch_for_good("bitsandbytes.nn:Linear8bitLt.forward", forward, layer)

    def product_of_weights(self, layer: Any) -> "Callable[[Tensor], Tensor] | None":
        if type(layer).__name__ != self.layer_class:
            return None
        from torch.nn.functional import linear
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        def multiply(inputs: "Tensor") -> "Tensor":
            weight = dequantize_bnb_weight(layer.weight, layer.state).to(inputs.dtype)
            return linear(inputs, weight, None if layer.bias is None else layer.bias.to(inputs.dtype))

        return multiply

    def loading_copies(self, device: str) -> int:
        """Fitted, not derived: to a peak at batch 1 of a model of Gemma 3 270M's shape, 887 MiB. On a GPU there is
        none: what it takes more of is its libraries', which are measured (on an H200 allocated peaks of 460 MiB beside
        416 of weights, in BF16 556 beside 511)."""
        return 1 if device == "cpu" else 0

    def mixes_tokens(self, scheme: Scheme) -> bool:
        return scheme.int8_threshold != 0  # outlier columns are those of all rows together

    def multiplies_int8(self, scheme: Scheme) -> bool:
        return True


LLM_INT8 = _LlmInt8()


def _threshold(settings: FormatSettings) -> float:
    stated: float | None = settings.get("llm_int8_threshold")
    return _THRESHOLD if stated is None else stated
