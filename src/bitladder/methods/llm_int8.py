"""LLM.int8 of bitsandbytes: INT8 by INT8 products, outlier columns apart in FP16 (Dettmers and others 2022)."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bitladder.methods.bitsandbytes import BitsAndBytes
from bitladder.methods.kinds import module_of
from bitladder.methods.method import FormatSettings, ReadBytes, Tensors, unlike
from bitladder.methods.types import Types
from bitladder.patches import patch_for_good
from bitladder.records import Scheme

if TYPE_CHECKING:
    from torch import Tensor

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
