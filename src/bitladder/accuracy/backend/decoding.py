"""One more token for every row that generates: their key-value cache, and their attention to it.

On a GPU a step's kernels are recorded once and launched as one. Launching the hundreds of kernels of a step takes a
processor longer than running them takes a GPU (CUDA graphs:
https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/). What is recorded reads and writes fixed places, so a
recorded step has one of a few numbers of rows and of keys; what lies beyond the rows in use is computed for nothing.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bitladder.accuracy.backend.attention import (
    KeysValues,
    Layer,
    PrefixCache,
    attend,
    attend_rows,
    forward,
    merge,
    takes_sdpa,
)
from bitladder.accuracy.backend.compiling import Recorder, Replay
from bitladder.accuracy.backend.tree import to_device
from bitladder.checkpoint.scheme import settings_scheme
from bitladder.methods import method_of

if TYPE_CHECKING:
    from torch import Tensor, dtype
    from transformers import PreTrainedModel

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


log = logging.getLogger(__name__)

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""settings of models whose layers choose among experts"""
_LEAST_ROWS = 8
_FEW_ROWS = 64
"""bitsandbytes has kernels of its own for as many; what is padded to more takes others"""
_LEAST_KEYS = 64


class Decoder:
    """Steps of the rows in the first slots.

    ``record``: how a step is recorded, the second time that one of its size is due, since the first loads kernels and
    makes room; None: every step is launched kernel by kernel, and has no more rows than are in use.
    ``seen`` gets (rows forwarded, names of the attention, whether a logit was no number) of each step.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        slots: Slots,
        prefix_length: int,
        seen: Callable[[int, set[str], "Tensor"], None],
        record: Recorder | None = None,
    ) -> None:
        import torch

        self._model = model
        self._slots = slots
        self._prefix_length = prefix_length
        self._seen = seen
        self._record = record
        self._inputs = torch.zeros((2, slots.count), dtype=torch.long, device=model.device)
        self._met: dict[tuple[int, int], Replay | None] = {}
        self._taken: set[str] = set()

    def step(self, tokens: Sequence[int], places: Sequence[int]) -> list[list[int]]:
        """See `choose`, of rows whose last ``tokens`` go to ``places`` of their slots."""
        rows, keys = len(tokens), max(places) + 1
        if self._record is not None:
            rows, keys = _padded_rows(rows, self._slots.count), min(_padded_keys(keys), self._slots.length)
        inputs = np.zeros((2, rows), np.int64)
        inputs[:, : len(tokens)] = tokens, places
        (sent,) = to_device([inputs], self._model.device)
        self._inputs[:, :rows] = sent
        answer = self._answer(rows, keys)
        self._seen(rows, self._taken, answer[1, : len(tokens)].any())
        following: list[list[int]] = answer[:, : len(tokens)].tolist()
        return following

    def _answer(self, rows: int, keys: int) -> "Tensor":
        size = rows, keys
        replay = self._met.get(size)
        if self._record is not None and size in self._met and replay is None:
            replay = self._met[size] = self._recorded(size)
        if replay is None:
            self._met[size] = None
            return self._forward(size)
        replay.run()
        return replay.answer

    def _recorded(self, size: tuple[int, int]) -> Replay | None:
        """None where it can't be recorded, for which memory may be short too; then nothing is recorded any more."""
        import torch

        assert self._record is not None
        try:
            return self._record(lambda: self._forward(size))
        except RuntimeError as error:
            log.warning("a step of generation can't be recorded here, so its kernels are launched singly (%s)", error)
        self._record = None
        self._met.clear()
        torch.cuda.empty_cache()
        return None

    def _forward(self, size: tuple[int, int]) -> "Tensor":
        """(2, rows): each row's next token, and whether one of its logits is no number."""

        rows, keys = size
        tokens, places = self._inputs[:, :rows]
        state = StepAttention(self._slots, places, keys, self._prefix_length)
        logits = forward(self._model, tokens, self._prefix_length + places, state.rows, state)
        self._taken |= state.taken
        return choose(logits)


def choose(logits: "Tensor") -> "Tensor":
    """(2, rows): the most likely token of each row, and 1 where a logit of the row is no number."""
    import torch

    return torch.stack([logits.argmax(-1), logits.amax(-1).isfinite().logical_not().long()])


def _padded_rows(rows: int, most: int) -> int:
    """The least of few, a quarter of ``most``, a half ... that holds the rows."""
    step = max(_LEAST_ROWS, most // 4)
    return min(most, _FEW_ROWS) if rows <= _FEW_ROWS < step else min(most, -(-rows // step) * step)


def _padded_keys(keys: int) -> int:
    """In steps that grow with their number, so that long texts take no more than some eight sizes a doubling."""
    step = max(_LEAST_KEYS, (1 << (keys - 1).bit_length()) // 8)
    return -(-keys // step) * step


def may_pad(model: "PreTrainedModel") -> bool:
    """Whether rows beside them change no row's answer, as far as is known: those of LLM.int8's outliers do. And whether
    a step does the same whatever the tokens are, which one of experts doesn't, all on one device."""
    config = model.config.get_text_config()
    places = getattr(model, "hf_device_map", None) or {}
    if any(getattr(config, name, None) for name in _EXPERTS) or len(set(places.values())) > 1:
        return False
    quantizer: Any = getattr(model, "hf_quantizer", None)
    scheme = settings_scheme(None if quantizer is None else quantizer.quantization_config.to_dict())
    return method_of(scheme).mixes_tokens(scheme) is False
