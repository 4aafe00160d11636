"""Attention with its log-sum-exp, so that parts over different keys can be merged into one softmax.

Tensors are token-major: queries (queries, heads, head size), keys and values (keys, key heads, head size); the
log-sum-exp is (heads, queries), FP32. Merging is the identity behind FlashAttention's split over keys
(Dao et al. 2022, arXiv:2205.14135, section 3.1).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
