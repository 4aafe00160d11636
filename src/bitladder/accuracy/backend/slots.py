"""The rows that are generating: their keys and values, and attention of one new token of each to them."""

from typing import TYPE_CHECKING, Any

from bitladder.accuracy.backend.attention import Layer
from bitladder.accuracy.backend.kernels import attend, attend_rows, merge, takes_sdpa
from bitladder.accuracy.backend.prefix import KeysValues, PrefixCache

if TYPE_CHECKING:
    from torch import Tensor, dtype

PREFIX = 0
"""the node that the common beginning of all prompts is kept under"""


class Slots:
    """Keys and values of up to ``count`` rows of at most ``length`` tokens behind a common prefix.

    Rows in use are the first ones, without a gap: what a step reads is one block.
    """

    def __init__(self, count: int, length: int) -> None:
        self.count = count
        self.length = length
        self.prefix = PrefixCache()
        self._buffers: dict[int, KeysValues] = {}

    def put(self, node: int, layer: int, key: "Tensor", value: "Tensor") -> None:
        """Fill slot ``node`` from its start with (tokens, key heads, head size)."""
        if layer not in self._buffers:
            shapes = [(self.count, part.shape[1], self.length, part.shape[2]) for part in (key, value)]
            self._buffers[layer] = key.new_zeros(shapes[0]), value.new_zeros(shapes[1])
        for buffer, part in zip(self._buffers[layer], (key, value), strict=True):
            buffer[node, :, : len(part)] = part.transpose(0, 1)

    def get(self, chain: tuple[int, ...], layer: int) -> KeysValues:
        """Keys and values of the common prefix."""
        return self.prefix.get(chain, layer)

    def append(self, layer: int, rows: "Tensor", places: "Tensor", key: "Tensor", value: "Tensor") -> None:
        """Put one token (rows, key heads, head size) at each row's place."""
        for buffer, part in zip(self._buffers[layer], (key, value), strict=True):
            buffer[rows, :, places] = part

    def read(self, layer: int, rows: int, length: int) -> KeysValues:
        """(rows, key heads, length, head size) of the first rows."""
        key, value = self._buffers[layer]
        return key[:rows, :, :length], value[:rows, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one row's first ``length`` tokens."""
        for buffers in self._buffers.values():
            for buffer in buffers:
                buffer[target, :, :length] = buffer[source, :, :length]

    def wipe(self, slot: int) -> None:
        for buffers in self._buffers.values():
            for buffer in buffers:
                buffer[slot] = 0


class StepAttention:
    """The attention of one decoding step: one token a row.

    ``places`` are where the tokens go behind the prefix, which has ``prefix_length`` tokens; ``longest`` is how many
    places of a slot are looked at, which may be more than any row has filled.
    """

    def __init__(self, slots: Slots, places: "Tensor", longest: int, prefix_length: int) -> None:
        import torch

        self.slots = slots
        self.longest = longest
        self.prefix_length = prefix_length
        self.rows = torch.arange(len(places), device=places.device)
        self.places = places
        self.taken: set[str] = set()
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def attend(self, layer: Layer, query: "Tensor", key: "Tensor", value: "Tensor") -> "Tensor":
        """See `State`."""
        self.taken.add(f"{'SDPA' if takes_sdpa(query, layer.softcap) else 'plain products'} by rows")
        self.slots.append(layer.index, self.rows, self.places, key, value)
        keys, values = self.slots.read(layer.index, len(query), self.longest)
        mask = self._mask(self.prefix_length, self.longest, layer.window, query.dtype)
        output, lse = attend_rows(query, keys, values, mask, scale=layer.scale, softcap=layer.softcap)
        if not self.prefix_length:
            return output
        window = layer.window if layer.window is not None and layer.window < self.prefix_length + self.longest else None
        kept, kept_values = self.slots.get((PREFIX,), layer.index)
        masked: dict[str, Any] = {}
        if window is not None:
            mask = self._mask(0, self.prefix_length, window, query.dtype)
            masked = {"mask": mask, "mask_leaves_none": True}
        part = attend(query, kept, kept_values, scale=layer.scale, softcap=layer.softcap, **masked)
        return merge(output, lse, *part)[0]

    def _mask(self, first: int, length: int, window: int | None, dtype: "dtype") -> "Tensor":
        """(rows, length) over the keys at positions ``first`` to ``first + length``."""
        import torch

        if (first, window) not in self._masks:
            keys = torch.arange(first, first + length, device=self.places.device)
            distance = self.prefix_length + self.places[:, None] - keys
            hidden = distance < 0
            if window is not None:
                hidden |= distance >= window
            zeros = torch.zeros(distance.shape, dtype=dtype, device=distance.device)
            self._masks[first, window] = zeros.masked_fill_(hidden, -torch.inf)
        return self._masks[first, window]
