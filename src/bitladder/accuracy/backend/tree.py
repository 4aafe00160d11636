"""NumPy arrays to the device without waiting for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bitladder.accuracy.backend.attention import KeyValueStore, Layer, attend, attend_varlen, merge, takes_sdpa
from bitladder.accuracy.backend.plan import Integers, Pack, Span

if TYPE_CHECKING:
    from torch import Tensor, device, dtype

    from bitladder.accuracy.backend.triton_kernels import Tree

_ALIGNMENT_BYTES = 16


def to_device(arrays: Sequence[npt.NDArray[np.generic]], device: "device") -> "list[Tensor]":
    """The same numbers as tensors, by one copy from pinned memory: any other waits for what the device has to do."""
    import torch

    if device.type != "cuda":
        return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
    starts = [0]
    for array in arrays:
        starts.append(starts[-1] + -(-array.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES)
    pinned = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    host = pinned.numpy()
    for array, start in zip(arrays, starts, strict=False):
        host[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    sent = pinned.to(device, non_blocking=True)
    types = {"int64": torch.int64, "int32": torch.int32}
    return [
        sent[start : start + array.nbytes].view(types[array.dtype.name]).view(array.shape)
        for array, start in zip(arrays, starts, strict=False)
    ]


_SMALL_UNIT = 256
"""tokens up to which the products wasted on a mask cost less than the calls that it saves"""
_SHORT_CHAIN = 128
"""kept tokens up to which a small unit attends to them in the same call, since copies of them cost less than a merge"""


class _Parts(NamedTuple):
    """The calls that a pack's attention is made of, where it is made unit by unit."""

    small: list[tuple[int, int, tuple[int, ...]]]
    """units, with what is kept before them, as far as it is in the same call"""
    segments: list[tuple[int, int]]
    """of large units"""
    spans: list[Span]
    chains: list[tuple[int, int, tuple[int, ...]]]
    """whose kept keys take calls of their own"""


@dataclass(frozen=True)
class _Varlen:
    """One call of the variable-length kernel. Indices are None where they would be all tokens in order."""

    queries: "Tensor | None"
    keys: "Tensor | None"
    bounds: "tuple[Tensor, Tensor]"
    """of the queries, and of the keys"""
    longest: tuple[int, int]
    """query, and key"""


class TreeAttention:
    """The attention of one pack's forward; also keeps the keys and values that later packs need."""

    def __init__(
        self,
        pack: Pack,
        prefixes: KeyValueStore,
        device: "device",
        positions: "Tensor",
        block_rows: int | None = None,
    ) -> None:
        """``block_rows``: queries a block of our kernel; None: the attention is not made by it."""
        self.pack = pack
        self.prefixes = prefixes
        self.device = device
        self.positions = positions
        self.block_rows = block_rows
        self.deepest = int(pack.positions.max())
        self.taken: set[str] = set()
        self._masks: dict[tuple[int, int | None], Tensor] = {}
        # Made before the forward wants them, so that it waits for nothing.
        self._tree = None if block_rows is None else make_tree(pack, block_rows, device)
        if device.type == "cuda" and block_rows is None:
            _ = self._varlen_calls

    def attend(self, layer: Layer, query: "Tensor", key: "Tensor", value: "Tensor") -> "Tensor":
        import torch

        for node, start, end in self.pack.keep:
            self.prefixes.put(node, layer.index, key[start:end], value[start:end])
        window = layer.window if layer.window is not None and layer.window <= self.deepest else None
        alike = value.shape[-1] == query.shape[-1] and query.dtype == key.dtype == value.dtype
        if self._tree is not None and alike:
            self.taken.add("tree kernel in Triton")
            return self._attend_tree(self._tree, layer, window, query, key, value)
        half = query.dtype in (torch.float16, torch.bfloat16)
        if self.device.type == "cuda" and half and layer.softcap is None and window is None and query.shape[-1] <= 256:
            self.taken.add("FlashAttention by levels of the tree")
            return self._attend_levels(layer, query, key, value)
        self.taken.add(f"{'SDPA' if takes_sdpa(query, layer.softcap) else 'plain products'} by units of the tree")
        return self._attend_units(layer, window, query, key, value)

    def _attend_tree(
        self, tree: "Tree", layer: Layer, window: int | None, query: "Tensor", key: "Tensor", value: "Tensor"
    ) -> "Tensor":
        from bitladder.accuracy.backend.triton_kernels import tree_attention

        kept = self._kept(layer) if self.pack.chains else None
        return tree_attention(query, key, value, kept, tree, scale=layer.scale, softcap=layer.softcap, window=window)

    def _kept(self, layer: Layer) -> "tuple[Tensor, Tensor]":
        """Keys and values of all chains, one after the other."""
        keys, values = zip(*(self.prefixes.get(chain, layer.index) for _, _, chain in self.pack.chains), strict=True)
        return _concatenate(keys), _concatenate(values)

    def _attend_units(
        self, layer: Layer, window: int | None, query: "Tensor", key: "Tensor", value: "Tensor"
    ) -> "Tensor":
        """Small units as one call with a mask, large ones segment by segment, so that no product is wasted."""
        import torch

        output = torch.empty(query.shape, dtype=torch.float32, device=query.device)
        lse = torch.empty((query.shape[1], query.shape[0]), dtype=torch.float32, device=query.device)
        small, segments, spans, chains = self._parts
        attend_so = partial(attend, scale=layer.scale, softcap=layer.softcap)
        for start, end, chain in small:
            keys, values = key[start:end], value[start:end]
            if chain:
                kept, kept_values = self.prefixes.get(chain, layer.index)
                keys, values = torch.cat([kept, keys]), torch.cat([kept_values, values])
            mask = self._unit_mask(start, end, len(keys), window, query.dtype)
            output[start:end], lse[:, start:end] = attend_so(query[start:end], keys, values, mask=mask)
        for start, end in segments:
            masked = self._window_masked(start, end, self.positions[start:end], window, query.dtype)
            output[start:end], lse[:, start:end] = attend_so(
                query[start:end], key[start:end], value[start:end], causal=True, **masked
            )
        blocks = [(span.start, span.end, slice(span.key_start, span.key_end)) for span in spans]
        parts = [(start, end, key[keys], value[keys], self.positions[keys]) for start, end, keys in blocks]
        for start, end, chain in chains:
            kept, kept_values = self.prefixes.get(chain, layer.index)
            parts.append((start, end, kept, kept_values, torch.arange(len(kept), device=self.device)))
        for start, end, keys, values, positions in parts:
            masked = self._window_masked(start, end, positions, window, query.dtype)
            part = attend_so(query[start:end], keys, values, **masked)
            output[start:end], lse[:, start:end] = merge(output[start:end], lse[:, start:end], *part)
        return output

    @cached_property
    def _parts(self) -> "_Parts":
        pack = self.pack
        inside = np.zeros(len(pack.tokens), bool)
        for start, end in pack.units:
            inside[start:end] = end - start <= _SMALL_UNIT
        known: dict[int, tuple[int, ...]] = {}  # by a unit's start
        chains: list[tuple[int, int, tuple[int, ...]]] = []
        for start, end, chain in pack.chains:
            if int(pack.positions[start]) <= _SHORT_CHAIN:
                known |= {one: chain for one, _ in pack.units if start <= one < end and inside[one]}
                chains += [(*run, chain) for run in _runs(~inside[start:end], start)]
            else:
                chains.append((start, end, chain))
        return _Parts(
            [(start, end, known.get(start, ())) for start, end in pack.units if inside[start]],
            [segment for segment in pack.segments if not inside[segment[0]]],
            [span for level in pack.levels for span in level if not inside[span.start]],
            chains,
        )

    def _unit_mask(self, start: int, end: int, keys: int, window: int | None, dtype: "dtype") -> "Tensor":
        """(tokens, keys) of a unit, whose kept keys come before its own."""
        import torch

        if (start, window) not in self._masks:
            place = np.arange(start, end)
            seen = (place <= place[:, None]) & (self.pack.subtree_ends[start:end] > place[:, None])
            seen = np.concatenate([np.ones((end - start, keys - (end - start)), bool), seen], axis=1)
            if window is not None:
                positions = self.pack.positions[start:end]
                before = np.arange(keys - (end - start))
                seen &= positions[:, None] - np.concatenate([before, positions]) < window
            self._masks[start, window] = torch.from_numpy(np.where(seen, 0.0, -np.inf)).to(self.device, dtype)
        return self._masks[start, window]

    def _window_masked(
        self, start: int, end: int, key_positions: "Tensor", window: int | None, dtype: "dtype"
    ) -> dict[str, Any]:
        """What `attend` takes of a mask, where there is a window."""
        import torch

        if window is None:
            return {}
        distance = self.positions[start:end, None] - key_positions
        mask = torch.zeros(distance.shape, dtype=dtype, device=self.device).masked_fill_(distance >= window, -torch.inf)
        return {"mask": mask, "mask_leaves_none": True}

    def _attend_levels(self, layer: Layer, query: "Tensor", key: "Tensor", value: "Tensor") -> "Tensor":
        own, *levels = self._varlen_calls
        chains = [levels.pop()] if self.pack.chains else []
        output, lse = _call(own, query, key, value, layer.scale, causal=True)
        for call in levels:
            output, lse = _merge_call(call, output, lse, query, key, value, layer.scale)
        for call in chains:
            output, lse = _merge_call(call, output, lse, query, *self._kept(layer), layer.scale)
        return output

    @cached_property
    def _varlen_calls(self) -> list[_Varlen]:
        """The segments themselves, each level, and what was kept, where there is any."""
        total = len(self.pack.tokens)
        spans = [[(start, end, start, end) for start, end in self.pack.segments]]
        for level in self.pack.levels:
            spans.append([(span.start, span.end, span.key_start, span.key_end) for span in level])
        keys = [total] * len(spans)
        if self.pack.chains:
            spans.append(_kept_spans(self.pack))
            keys.append(spans[-1][-1][-1])
        return _varlen_calls([np.array(one) for one in spans], total, keys, self.device)


def _runs(wanted: "npt.NDArray[np.bool_]", start: int) -> list[tuple[int, int]]:
    """Where ``wanted`` is true, as ranges that are counted from ``start``."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8))) + start
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _kept_spans(pack: Pack) -> list[tuple[int, int, int, int]]:
    """Tokens ``[start, end)`` see kept keys ``[key_start, key_end)`` of all chains, one after the other.

    A chain is all that is before a token outside its pack, so its length is the depth of the first token below it.
    """
    lengths = [int(pack.positions[start]) for start, _, _ in pack.chains]
    return [
        (start, end, key_end - length, key_end)
        for (start, end, _), key_end, length in zip(pack.chains, np.cumsum(lengths).tolist(), lengths, strict=True)
    ]


def _varlen_calls(spans: list[Integers], queries: int, keys: list[int], device: "device") -> list[_Varlen]:
    arrays: list[npt.NDArray[np.generic]] = []

    def indices(starts: Integers, lengths: Integers, total: int) -> int | None:
        index = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        if len(index) == total and bool((index == np.arange(total)).all()):
            return None
        arrays.append(index)
        return len(arrays) - 1

    def bounds(lengths: Integers) -> int:
        arrays.append(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        return len(arrays) - 1

    calls = []
    for span, key_total in zip(spans, keys, strict=True):
        lengths, key_lengths = span[:, 1] - span[:, 0], span[:, 3] - span[:, 2]
        chosen = indices(span[:, 0], lengths, queries), indices(span[:, 2], key_lengths, key_total)
        calls.append((chosen, (bounds(lengths), bounds(key_lengths)), (int(lengths.max()), int(key_lengths.max()))))
    sent = to_device(arrays, device)
    return [
        _Varlen(
            None if chosen[0] is None else sent[chosen[0]],
            None if chosen[1] is None else sent[chosen[1]],
            (sent[ends[0]], sent[ends[1]]),
            longest,
        )
        for chosen, ends, longest in calls
    ]


def make_tree(pack: Pack, block_rows: int, device: "device") -> "Tree":
    """The pack as our kernel reads it."""
    from bitladder.accuracy.backend.triton_kernels import Tree

    total = len(pack.tokens)
    low, high = np.zeros(total, np.int64), np.zeros(total, np.int64)
    for start, end, key_start, key_end in _kept_spans(pack) if pack.chains else ():
        low[start:end], high[start:end] = key_start, key_end
    blocks = np.arange(0, total, block_rows)
    arrays = (
        pack.subtree_ends,
        pack.positions,
        *_seen_blocks(pack.subtree_ends, blocks),
        low,
        high,
        np.minimum.reduceat(np.where(high > low, low, high.max()), blocks),
        np.maximum.reduceat(high, blocks),
    )
    return Tree(block_rows, *to_device([array.astype(np.int32) for array in arrays], device))


def _seen_blocks(ends: Integers, blocks: Integers) -> tuple[Integers, Integers]:
    """Of each block of queries the blocks of keys that one of them sees, in a row, and where each one's begin.

    Documents below one short beginning are one tree, and most of it is of no concern to a block.
    """
    last_end = np.maximum.reduceat(ends, blocks)
    seen = (last_end[None, :] > blocks[:, None]) & (blocks[None, :] <= blocks[:, None])
    return np.nonzero(seen)[1], np.concatenate([[0], np.cumsum(seen.sum(1))])


def _call(
    call: _Varlen, query: "Tensor", key: "Tensor", value: "Tensor", scale: float, *, causal: bool
) -> "tuple[Tensor, Tensor]":
    return attend_varlen(
        query if call.queries is None else query[call.queries],
        key if call.keys is None else key[call.keys],
        value if call.keys is None else value[call.keys],
        *call.bounds,
        *call.longest,
        scale=scale,
        causal=causal,
    )


def _merge_call(
    call: _Varlen, output: "Tensor", lse: "Tensor", query: "Tensor", key: "Tensor", value: "Tensor", scale: float
) -> "tuple[Tensor, Tensor]":
    part, part_lse = _call(call, query, key, value, scale, causal=False)
    if call.queries is None:
        return merge(output, lse, part, part_lse)
    merged, merged_lse = merge(output[call.queries], lse[:, call.queries], part, part_lse)
    return output.float().index_copy_(0, call.queries, merged), lse.index_copy_(1, call.queries, merged_lse)


def _concatenate(parts: "tuple[Tensor, ...]") -> "Tensor":
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(parts)
