"""Our attention inside transformers' own models: registered by name, told what to do by an argument of the forward.

It returns the log-sum-exp too, so that parts over different keys merge into one softmax. Keys and values that several
packs attend to are kept: the few-shot examples of a task, the first part of a long text.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from bitladder.machine.libraries import patched

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


def takes_sdpa(query: "Tensor", softcap: float | None) -> bool:
    """Whether attention is one call of PyTorch's kernel, and not plain products and a softmax."""
    return query.device.type == "cpu" and softcap is None


def attend(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    *,
    scale: float,
    causal: bool = False,
    softcap: float | None = None,
    mask: "Tensor | None" = None,
    mask_leaves_none: bool = False,
) -> "tuple[Tensor, Tensor]":
    """Attention of every query to every key, causally within one sequence, or as the mask says.

    ``mask`` (queries, keys) is added to the scores: 0 or minus infinity, in the queries' type; with
    ``mask_leaves_none`` some query may see no key, and gets a log-sum-exp of minus infinity. Returns the output,
    shaped as the queries, and the log-sum-exp.
    """
    import torch

    if takes_sdpa(query, softcap) and not mask_leaves_none:
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query.transpose(0, 1)[None],
            key.transpose(0, 1)[None],
            value.transpose(0, 1)[None],
            0.0,
            causal,
            attn_mask=mask,
            scale=scale,
        )
        return output[0].transpose(0, 1), lse[0]
    queries, heads, size = query.shape
    keys = key.shape[1]
    grouped = query.reshape(queries, keys, heads // keys, size).transpose(0, 1)  # (key heads, queries, group, size)
    scores = _products(grouped.flatten(1, 2), key.permute(1, 2, 0)) * scale
    scores = _softcap(scores, softcap).view(keys, queries, heads // keys, len(key))
    if causal:
        future = torch.ones((queries, len(key)), dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future[:, None], -torch.inf)
    if mask is not None:
        scores = scores + mask[:, None]
    weights, lse = _softmax(scores)
    output = torch.matmul(weights.to(value.dtype).flatten(1, 2), value.transpose(0, 1))
    output = output.view(keys, queries, heads // keys, -1).transpose(0, 1).flatten(1, 2)
    return output, lse.transpose(1, 2).flatten(0, 1)


def attend_rows(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    mask: "Tensor",
    *,
    scale: float,
    softcap: float | None = None,
) -> "tuple[Tensor, Tensor]":
    """One query of each row to the row's own keys and values (rows, key heads, keys, head size).

    ``mask`` (rows, keys) is added to the scores, in the queries' type; every row sees a key. Returns the output
    (rows, heads, head size) and the log-sum-exp (heads, rows).
    """
    import torch

    if takes_sdpa(query, softcap):
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query[:, :, None], key, value, 0.0, False, attn_mask=mask[:, None, None], scale=scale
        )
        return output[:, :, 0], lse[:, :, 0].transpose(0, 1)
    rows, heads, size = query.shape
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    products = _products(grouped.flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    scores = _softcap(products.view(*grouped.shape[:3], -1) * scale, softcap)
    weights, lse = _softmax(scores + mask[:, None, None])
    output = torch.matmul(weights.to(value.dtype), value)
    return output.flatten(1, 2), lse.flatten(1, 2).transpose(0, 1)


def _products(one: "Tensor", other: "Tensor") -> "Tensor":
    """Batches of matrix products in FP32. A GPU sums 16-bit values in FP32, and need not round what a softmax gets."""
    import torch

    if one.device.type == "cuda" and one.dtype.itemsize == 2:
        return torch.bmm(one, other, out_dtype=torch.float32)
    return torch.bmm(one, other).float()


def _softcap(scores: "Tensor", softcap: float | None) -> "Tensor":
    import torch

    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _softmax(scores: "Tensor") -> "tuple[Tensor, Tensor]":
    """Softmax over the last axis, 0 throughout where all is minus infinity, and the log-sum-exp."""
    import torch

    lse = scores.logsumexp(-1)
    return torch.exp(scores - lse.clamp(min=torch.finfo(torch.float32).min)[..., None]), lse


def attend_varlen(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    query_bounds: "Tensor",
    key_bounds: "Tensor",
    longest_query: int,
    longest_key: int,
    *,
    scale: float,
    causal: bool,
) -> "tuple[Tensor, Tensor]":
    """The same for many sequences side by side in one call: FlashAttention on a CUDA device, FP16 or BF16.

    ``query_bounds`` and ``key_bounds`` are cumulative lengths (int32).
    """
    import torch

    output, lse, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        query_bounds,
        key_bounds,
        longest_query,
        longest_key,
        0.0,
        causal,
        False,
        scale=scale,
    )
    return output, lse


def merge(output: "Tensor", lse: "Tensor", part: "Tensor", part_lse: "Tensor") -> "tuple[Tensor, Tensor]":
    """One softmax over the keys of both. The outputs may be of the model's type; the weights are FP32."""
    import torch

    weight = torch.sigmoid(part_lse - lse).transpose(0, 1)[..., None]  # (queries, heads, 1)
    return torch.lerp(output.float(), part.float(), weight), torch.logaddexp(lse, part_lse)


KeysValues = tuple["Tensor", "Tensor"]


class KeyValueStore(Protocol):
    """Where the attention of a pack leaves keys and values, and finds those of earlier packs."""

    def put(self, node: int, layer: int, key: "Tensor", value: "Tensor") -> None:
        """Keep a copy of (tokens, key heads, head size)."""

    def get(self, chain: tuple[int, ...], layer: int) -> KeysValues:
        """What was kept for several nodes, one after the other."""


class PrefixCache:
    """Per trie node and layer: keys and values (tokens, key heads, head size)."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], KeysValues] = {}
        self._joined: dict[tuple[tuple[int, ...], int], KeysValues] = {}

    def put(self, node: int, layer: int, key: "Tensor", value: "Tensor") -> None:
        self._kept[node, layer] = key.clone(), value.clone()

    def get(self, chain: tuple[int, ...], layer: int) -> KeysValues:
        """Of several nodes one after the other."""
        import torch

        parts = [self._kept[node, layer] for node in chain]
        if len(parts) == 1:
            return parts[0]
        if (chain, layer) not in self._joined:
            keys, values = zip(*parts, strict=True)
            self._joined[chain, layer] = torch.cat(keys), torch.cat(values)
        return self._joined[chain, layer]

    def drop(self, nodes: Iterable[int]) -> None:
        gone = set(nodes)
        if gone:
            self._kept = {place: kept for place, kept in self._kept.items() if place[0] not in gone}
            self._joined = {place: kept for place, kept in self._joined.items() if not gone.intersection(place[0])}
