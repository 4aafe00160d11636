"""Our attention inside transformers' own models: registered by name, told what to do by an argument of the forward.

``model(..., bitladder=state)`` hands ``state`` to every layer. Its ``attend`` gets the layer's queries, keys and values
after the rotary embedding, unpadded and side by side, and keeps whatever keys and values it needs: transformers' own
cache is not used.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bitladder.patches import patched

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

NAME = "bitladder"


class UnsupportedModelError(Exception):
    """The model asks of attention what ours can't do; the message says what."""


@dataclass(frozen=True)
class Layer:
    """What one layer wants of attention."""

    index: int
    scale: float
    softcap: float | None
    window: int | None
    """a token sees itself and the ``window - 1`` before it; None: all before it"""


class State(Protocol):
    """One forward's attention."""

    taken: set[str]
    """how it attended, by name, in the layers so far"""

    def attend(self, layer: Layer, query: "Tensor", key: "Tensor", value: "Tensor") -> "Tensor":
        """Output (tokens, heads, head size) from queries of that shape, keys and values (tokens, key heads, ...)."""


@dataclass(frozen=True)
class _Mask:
    """Stands where a model hands a mask from where it is made to its layers: which kind of mask it would have been."""

    window: int | None


def _make_mask(
    *, local_size: int | None = None, use_vmap: bool = False, attention_mask: "Tensor | None" = None, **_: Any
) -> _Mask:
    if use_vmap or not (attention_mask is None or _hides_nothing(attention_mask)):
        raise UnsupportedModelError("it changes the causal mask in a way of its own")
    return _Mask(local_size)


def _hides_nothing(padding_mask: "Tensor") -> bool:
    """Whether no token is padding for this mask (rows, tokens), which the model made: it is handed none.

    OPT of transformers 5.17 makes one of ones. What is recorded can't be looked at: it was when it first ran.
    """
    import torch

    recorded = padding_mask.is_cuda and torch.cuda.is_current_stream_capturing()
    return padding_mask.ndim == 2 and (recorded or bool(padding_mask.all()))


def _attention(
    module: "Module",
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attention_mask: _Mask,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    bitladder: State | None = None,
    **extra: Any,
) -> "tuple[Tensor, None]":
    """transformers' attention interface: (1, heads, tokens, head size) in, (1, tokens, heads, head size) out."""
    for name in ("s_aux", "position_bias"):
        if extra.get(name) is not None:
            raise UnsupportedModelError(f"its attention has {name}")
    if bitladder is None or not isinstance(attention_mask, _Mask):
        raise UnsupportedModelError("it doesn't hand the mask or the arguments of its forward on to its attention")
    if sliding_window is not None and attention_mask.window not in (sliding_window, None):
        raise UnsupportedModelError(f"its mask has a window of {attention_mask.window}, its layer {sliding_window}")
    config = getattr(module, "config", None)
    if (
        attention_mask.window is None
        and getattr(config, "sliding_window", None)
        and not getattr(config, "layer_types", None)
    ):
        # transformers' cache goes by the configuration alone, so that Moshi generates other texts than it scores
        raise UnsupportedModelError("its cache forgets keys that its mask shows")
    layer = Layer(
        index=int(module.layer_idx),  # type: ignore[arg-type]
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
        window=attention_mask.window,
    )
    size = value.shape[-1]
    output = bitladder.attend(layer, *(part[0].transpose(0, 1) for part in _of_one_size(query, key, value)))
    return output[None, ..., :size].to(query.dtype), None


def _of_one_size(*parts: "Tensor") -> "tuple[Tensor, ...]":
    """Heads filled up with zeros to the largest size, which changes no product: kernels want keys and values of one
    size, and latent attention (DeepSeek V2 and V3) has two."""
    import torch

    largest = max(part.shape[-1] for part in parts)
    return tuple(
        part if part.shape[-1] == largest else torch.nn.functional.pad(part, (0, largest - part.shape[-1]))
        for part in parts
    )


@contextmanager
def our_attention(model: "PreTrainedModel") -> Iterator[None]:
    """The model attends our way inside the block, and its own way after it; its card is the current one, where kernels
    are launched."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _make_mask)
    own = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    unasked = patched("transformers.masking_utils:find_packed_sequence_indices", lambda position_ids: None)
    try:
        with unasked, torch.cuda.device(model.device) if model.device.type == "cuda" else nullcontext():
            yield
    finally:
        model.set_attn_implementation(own)


def forward(model: "PreTrainedModel", tokens: "Tensor", positions: "Tensor", rows: "Tensor", state: State) -> "Tensor":
    """Logits (rows, vocabulary) at those rows of the unpadded tokens, in the model's type."""
    output = model(
        input_ids=tokens[None], position_ids=positions[None], use_cache=False, logits_to_keep=rows, bitladder=state
    )
    logits: Tensor = output.logits[0]
    return logits
