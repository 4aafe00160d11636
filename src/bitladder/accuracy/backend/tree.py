"""Attention over a pack: causal within a segment, and from below a segment to all of it, merged by log-sum-exp.

Nothing is padded. On a CUDA device with FP16 or BF16 each level of the trees is one call of a variable-length kernel
without a mask; elsewhere, and for soft-capped scores or a window that is shorter than the text, it is one call a unit.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bitladder.accuracy.backend.attention import Layer
from bitladder.accuracy.backend.kernels import attend, attend_varlen, merge
from bitladder.accuracy.backend.packing import Pack, Span
from bitladder.accuracy.backend.prefix import KeyValueStore

if TYPE_CHECKING:
    from torch import Tensor, device, dtype

_SMALL_UNIT = 256
"""tokens up to which the products wasted on a mask cost less than the calls that it saves"""


@dataclass(frozen=True)
class _Varlen:
    """One call of the variable-length kernel. Indices are None where they would be all tokens in order."""

    queries: "Tensor | None"
    keys: "Tensor | None"
    query_bounds: "Tensor"
    key_bounds: "Tensor"
    longest_query: int
    longest_key: int


class TreeAttention:
    """The attention of one pack's forward; also keeps the keys and values that later packs need."""

    def __init__(self, pack: Pack, prefixes: KeyValueStore, device: "device", positions: "Tensor") -> None:
        self.pack = pack
        self.prefixes = prefixes
        self.device = device
        self.positions = positions
        self.deepest = int(pack.positions.max())
        self._chain: _Varlen | None = None
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def prepare(self) -> None:
        """Make the indices before the forward wants them."""
        if self.device.type == "cuda":
            _ = self._varlen_calls

    def attend(self, layer: Layer, query: "Tensor", key: "Tensor", value: "Tensor") -> "Tensor":
        import torch

        for node, start, end in self.pack.keep:
            self.prefixes.put(node, layer.index, key[start:end], value[start:end])
        window = layer.window if layer.window is not None and layer.window <= self.deepest else None
        half = query.dtype in (torch.float16, torch.bfloat16)
        if self.device.type == "cuda" and half and layer.softcap is None and window is None and query.shape[-1] <= 256:
            return self._attend_levels(layer, query, key, value)
        return self._attend_units(layer, window, query, key, value)

    def _attend_units(
        self, layer: Layer, window: int | None, query: "Tensor", key: "Tensor", value: "Tensor"
    ) -> "Tensor":
        """Small units as one call with a mask, large ones segment by segment, so that no product is wasted."""
        import torch

        output = torch.empty(query.shape, dtype=torch.float32, device=query.device)
        lse = torch.empty((query.shape[1], query.shape[0]), dtype=torch.float32, device=query.device)
        small, segments, spans = self._parts
        for start, end in small:
            output[start:end], lse[:, start:end] = attend(
                query[start:end],
                key[start:end],
                value[start:end],
                scale=layer.scale,
                softcap=layer.softcap,
                mask=self._unit_mask(start, end, window, query.dtype),
            )
        for start, end in segments:
            output[start:end], lse[:, start:end] = attend(
                query[start:end],
                key[start:end],
                value[start:end],
                scale=layer.scale,
                causal=True,
                softcap=layer.softcap,
                mask=self._window_mask(start, end, self.positions[start:end], window, query.dtype),
                mask_leaves_none=window is not None,
            )
        blocks = [(span.start, span.end, slice(span.key_start, span.key_end)) for span in spans]
        parts = [(start, end, key[keys], value[keys], self.positions[keys]) for start, end, keys in blocks]
        for start, end, chain in self.pack.chains:
            kept, kept_values = self.prefixes.get(chain, layer.index)
            parts.append((start, end, kept, kept_values, torch.arange(len(kept), device=self.device)))
        for start, end, keys, values, positions in parts:
            part = attend(
                query[start:end],
                keys,
                values,
                scale=layer.scale,
                softcap=layer.softcap,
                mask=self._window_mask(start, end, positions, window, query.dtype),
                mask_leaves_none=window is not None,
            )
            output[start:end], lse[:, start:end] = merge(output[start:end], lse[:, start:end], *part)
        return output

    @cached_property
    def _parts(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[Span]]:
        small = [(start, end) for start, end in self.pack.units if end - start <= _SMALL_UNIT]
        inside = np.zeros(len(self.pack.tokens), bool)
        for start, end in small:
            inside[start:end] = True
        return (
            small,
            [segment for segment in self.pack.segments if not inside[segment[0]]],
            [span for level in self.pack.levels for span in level if not inside[span.start]],
        )

    def _unit_mask(self, start: int, end: int, window: int | None, dtype: "dtype") -> "Tensor":
        import torch

        if (start, window) not in self._masks:
            place = np.arange(start, end)
            seen = (place <= place[:, None]) & (self.pack.subtree_ends[start:end] > place[:, None])
            if window is not None:
                positions = self.pack.positions[start:end]
                seen &= positions[:, None] - positions < window
            mask = torch.from_numpy(np.where(seen, 0.0, -np.inf))
            self._masks[start, window] = mask.to(self.device, dtype)
        return self._masks[start, window]

    def _window_mask(
        self, start: int, end: int, key_positions: "Tensor", window: int | None, dtype: "dtype"
    ) -> "Tensor | None":
        import torch

        if window is None:
            return None
        distance = self.positions[start:end, None] - key_positions
        return torch.zeros(distance.shape, dtype=dtype, device=self.device).masked_fill_(distance >= window, -torch.inf)

    def _attend_levels(self, layer: Layer, query: "Tensor", key: "Tensor", value: "Tensor") -> "Tensor":
        own, *levels = self._varlen_calls
        output, lse = _call(own, query, key, value, layer.scale, causal=True)
        for call in levels:
            output, lse = _merge_call(call, output, lse, query, key, value, layer.scale)
        if self.pack.chains:
            kept = [self.prefixes.get(chain, layer.index) for _, _, chain in self.pack.chains]
            keys, values = (_concatenate([part[i] for part in kept]) for i in (0, 1))
            call = self._chain_call(tuple(len(part[0]) for part in kept))
            output, lse = _merge_call(call, output, lse, query, keys, values, layer.scale)
        return output

    @cached_property
    def _varlen_calls(self) -> list[_Varlen]:
        total = len(self.pack.tokens)
        spans = [(start, end, start, end) for start, end in self.pack.segments]
        calls = [self._varlen(spans, total, total)]
        for level in self.pack.levels:
            spans = [(span.start, span.end, span.key_start, span.key_end) for span in level]
            calls.append(self._varlen(spans, total, total))
        return calls

    def _chain_call(self, lengths: tuple[int, ...]) -> _Varlen:
        if self._chain is None:
            ends = np.cumsum(lengths).tolist()
            spans = [
                (start, end, key_end - length, key_end)
                for (start, end, _), key_end, length in zip(self.pack.chains, ends, lengths, strict=True)
            ]
            self._chain = self._varlen(spans, len(self.pack.tokens), ends[-1])
        return self._chain

    def _varlen(self, spans: list[tuple[int, int, int, int]], queries: int, keys: int) -> _Varlen:
        import torch

        array = np.array(spans)
        query_lengths, key_lengths = array[:, 1] - array[:, 0], array[:, 3] - array[:, 2]

        def indices(starts: np.ndarray, lengths: np.ndarray, total: int) -> "Tensor | None":
            index = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
            if len(index) == total and bool((index == np.arange(total)).all()):
                return None
            return torch.from_numpy(index).to(self.device, non_blocking=True)

        def bounds(lengths: np.ndarray) -> "Tensor":
            cumulative = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            return torch.from_numpy(cumulative).to(self.device, non_blocking=True)

        return _Varlen(
            queries=indices(array[:, 0], query_lengths, queries),
            keys=indices(array[:, 2], key_lengths, keys),
            query_bounds=bounds(query_lengths),
            key_bounds=bounds(key_lengths),
            longest_query=int(query_lengths.max()),
            longest_key=int(key_lengths.max()),
        )


def _call(
    call: _Varlen, query: "Tensor", key: "Tensor", value: "Tensor", scale: float, *, causal: bool
) -> "tuple[Tensor, Tensor]":
    return attend_varlen(
        query if call.queries is None else query[call.queries],
        key if call.keys is None else key[call.keys],
        value if call.keys is None else value[call.keys],
        call.query_bounds,
        call.key_bounds,
        call.longest_query,
        call.longest_key,
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


def _concatenate(parts: "list[Tensor]") -> "Tensor":
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(parts)
