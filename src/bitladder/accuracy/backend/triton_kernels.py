"""Triton kernels of a GPU: attention over a pack's trees in one call, and what scoring needs of a row of logits.

Only imported where Triton is. FP32 is multiplied in FP32, never TF32.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROW_BLOCK = 4096


@dataclass(frozen=True)
class Tree:
    """What the tokens of a pack see; int32, on the device."""

    block_rows: int
    """queries a block"""
    ends: Tensor
    """token i sees token j of the pack if j <= i < ends[j]"""
    positions: Tensor
    key_blocks: Tensor
    """blocks of as many keys that some query of a block sees, block after block"""
    key_bounds: Tensor
    """where each block's begin in ``key_blocks``, and their number"""
    kept_low: Tensor
    kept_high: Tensor
    """per token, which of the kept keys it sees: ``[low, high)``, at positions from 0"""
    block_low: Tensor
    block_high: Tensor
    """per block, the least and the largest of those"""


def block_rows(dtype: torch.dtype) -> int:
    """Queries a block that suit the type."""
    return 32 if dtype == torch.float32 else 64


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kept: tuple[Tensor, Tensor] | None,
    tree: Tree,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Queries (tokens, heads, head size), keys and values (tokens, key heads, head size), kept ones likewise."""
    tokens, heads, size = query.shape
    query, key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    kept_key, kept_value = (key, value) if kept is None else (kept[0].contiguous(), kept[1].contiguous())
    output = torch.empty((tokens, heads, size), dtype=query.dtype, device=query.device)
    rows = tree.block_rows
    head = max(16, triton.next_power_of_2(size))
    _tree_attention[(triton.cdiv(tokens, rows), heads)](
        query,
        key,
        value,
        output,
        kept_key,
        kept_value,
        tree.ends,
        tree.positions,
        tree.key_blocks,
        tree.key_bounds,
        tree.kept_low,
        tree.kept_high,
        tree.block_low,
        tree.block_high,
        tokens,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        output.stride(0),
        kept_key.stride(0),
        kept_key.stride(1),
        scale,
        0.0 if softcap is None else softcap,
        0 if window is None else window,
        GROUP=heads // key.shape[1],
        SIZE=size,
        HEAD=head,
        ROWS=rows,
        KEYS=rows,
        KEPT=kept is not None,
        SOFTCAP=softcap is not None,
        WINDOW=window is not None,
        num_warps=8 if head * query.element_size() > 256 else 4,  # else its registers spill
        num_stages=1 if head > 128 or query.dtype == torch.float32 else 2,
    )
    return output


@triton.jit(do_not_specialize=["tokens", "window"])
def _tree_attention(
    query,
    key,
    value,
    output,
    kept_key,
    kept_value,
    ends,
    positions,
    key_blocks,
    key_bounds,
    kept_low,
    kept_high,
    block_low,
    block_high,
    tokens,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    output_stride,
    kept_stride,
    kept_head_stride,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    KEPT: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
):
    block = tl.program_id(0)
    head = tl.program_id(1)
    key_head = head // GROUP
    rows = block * ROWS + tl.arange(0, ROWS)
    inside = rows < tokens
    sizes = tl.arange(0, HEAD)
    query_tile = _load_rows(query + head * query_head_stride, rows, inside, query_stride, sizes, SIZE)
    row_positions = tl.load(positions + rows, mask=inside, other=0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, HEAD], tl.float32)
    if KEPT:
        low = tl.load(kept_low + rows, mask=inside, other=0)
        high = tl.load(kept_high + rows, mask=inside, other=0)
        last = tl.load(block_high + block)
        for start in range(tl.load(block_low + block), last, KEYS):
            keys = start + tl.arange(0, KEYS)
            seen = (keys[None, :] >= low[:, None]) & (keys[None, :] < high[:, None])
            if WINDOW:
                seen = seen & (row_positions[:, None] - (keys[None, :] - low[:, None]) < window)
            key_tile = _load_rows(kept_key + key_head * kept_head_stride, keys, keys < last, kept_stride, sizes, SIZE)
            value_tile = _load_rows(
                kept_value + key_head * kept_head_stride, keys, keys < last, kept_stride, sizes, SIZE
            )
            best, total, sums = _add_keys(
                query_tile, key_tile, value_tile, seen, best, total, sums, scale, softcap, SOFTCAP
            )
    for number in range(tl.load(key_bounds + block), tl.load(key_bounds + block + 1)):
        keys = tl.load(key_blocks + number) * KEYS + tl.arange(0, KEYS)
        there = keys < tokens
        key_ends = tl.load(ends + keys, mask=there, other=0)
        seen = (keys[None, :] <= rows[:, None]) & (key_ends[None, :] > rows[:, None])
        if WINDOW:
            key_positions = tl.load(positions + keys, mask=there, other=0)
            seen = seen & (row_positions[:, None] - key_positions[None, :] < window)
        key_tile = _load_rows(key + key_head * key_head_stride, keys, there, key_stride, sizes, SIZE)
        value_tile = _load_rows(value + key_head * value_head_stride, keys, there, value_stride, sizes, SIZE)
        best, total, sums = _add_keys(
            query_tile, key_tile, value_tile, seen, best, total, sums, scale, softcap, SOFTCAP
        )
    result = sums / tl.where(total == 0, 1.0, total)[:, None]
    places = rows[:, None].to(tl.int64) * output_stride + head * SIZE + sizes[None, :]
    tl.store(output + places, result.to(output.dtype.element_ty), mask=inside[:, None] & (sizes < SIZE)[None, :])


@triton.jit
def _load_rows(base, rows, there, stride, sizes, SIZE: tl.constexpr):
    """(rows, head size) of one head, 0 where there is none."""
    places = rows[:, None].to(tl.int64) * stride + sizes[None, :]
    return tl.load(base + places, mask=there[:, None] & (sizes < SIZE)[None, :], other=0.0)


@triton.jit
def _add_keys(query, key, value, seen, best, total, sums, scale, softcap, SOFTCAP: tl.constexpr):
    """One step of the softmax over blocks of keys (Dao et al. 2022, arXiv:2205.14135, algorithm 1)."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    if SOFTCAP:
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, 1))
    # A row may have seen no key yet: minus infinity less itself is no number.
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp(scores - shift[:, None])
    rescale = tl.exp(best - shift)
    total = total * rescale + tl.sum(weights, 1)
    sums = sums * rescale[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return higher, total, sums


def row_statistics(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row of (rows, vocabulary): the largest logit, the log of the sum above it, and the first choice.

    A log-probability is ``logit - largest - log_sum``, in that order, as torch's own kernel computes it in FP32; the
    first choice is the lowest token among those whose log-probability is the largest after rounding.
    """
    rows, columns = logits.shape
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    largest, log_sum = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    choice = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _row_statistics[(rows,)](logits, largest, log_sum, choice, logits.stride(0), columns, BLOCK=_ROW_BLOCK, num_warps=8)
    return largest, log_sum, choice


@triton.jit
def _row_statistics(logits, largest, log_sum, choice, stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * stride
    lanes = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        part = tl.load(base + start + lanes, mask=start + lanes < columns, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(best, part)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(best - shift) + tl.exp(part - shift)
        best = higher
    top = tl.max(best, 0)
    # A lane without a number adds nothing, and one that isn't a number spoils the row, as in torch.
    total = tl.sum(total * tl.exp(tl.where(best == float("-inf"), best, best - top)), 0)
    logarithm = tl.log(total)
    first = tl.full([BLOCK], 2147483647, tl.int32)
    for start in range(0, columns, BLOCK):
        places = start + lanes
        part = tl.load(base + places, mask=places < columns, other=float("-inf")).to(tl.float32)
        is_best = (part - top) - logarithm >= -logarithm
        first = tl.minimum(first, tl.where(is_best, places, 2147483647))
    tl.store(largest + row, top)
    tl.store(log_sum + row, logarithm)
    tl.store(choice + row, tl.min(first, 0).to(tl.int64))
