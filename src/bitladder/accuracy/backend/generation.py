"""Greedy generation with continuous batching: a row that is done leaves, and the next one takes its place."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bitladder.accuracy.backend.attention import our_attention
from bitladder.accuracy.backend.decoding import Decoder, choose
from bitladder.accuracy.backend.packing import Pack, flat_pack
from bitladder.accuracy.backend.prefix import KeyValueStore
from bitladder.accuracy.backend.products import widened_in
from bitladder.accuracy.backend.recording import recorder
from bitladder.accuracy.backend.scoring import forward_pack
from bitladder.accuracy.backend.slots import PREFIX, Slots
from bitladder.accuracy.backend.stopping import StopStrings
from bitladder.accuracy.backend.trie import Tokens, shared_length
from bitladder.accuracy.backend.ways import NO_WAYS, Ways
from bitladder.accuracy.passes import Seen

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_LEAST_PREFIX = 16
"""tokens of a common beginning below which it isn't worth a call of its own in every step"""


@dataclass(frozen=True)
class Prompt:
    tokens: Tokens
    stops: StopStrings
    end_tokens: frozenset[int]
    limit: int
    """new tokens at most"""


@dataclass
class _Row:
    index: int
    prompt: Prompt
    suffix: Tokens
    """the prompt without the common prefix"""
    generated: list[int] = field(default_factory=list)
    broken: bool = False
    """whether one of its logits was no number, as keys or values of it then are none"""

    @property
    def cached(self) -> int:
        """tokens behind the prefix whose keys and values are in the slot"""
        return len(self.suffix) + len(self.generated) - 1

    @property
    def done(self) -> bool:
        last = self.generated[-1]
        full = len(self.generated) == self.prompt.limit
        return full or last in self.prompt.end_tokens or self.prompt.stops.reached(self.generated)


def generate(
    model: "PreTrainedModel",
    prompts: Sequence[Prompt],
    *,
    slots: int,
    token_budget: int,
    finished: Callable[[int, list[int]], None],
    seen: Seen,
    ways: Ways = NO_WAYS,
) -> None:
    """Generate for every prompt; ``finished`` gets each one's index and new tokens, stop string or end included.

    ``seen`` is told of every forward.
    """
    import torch

    if not prompts:
        return
    prefix = common_prefix([prompt.tokens for prompt in prompts])
    rows = [_Row(index, prompt, prompt.tokens[prefix:]) for index, prompt in enumerate(prompts)]
    rows.sort(key=lambda row: (-len(row.suffix), row.index))  # neighbours of like length leave little of a block unused
    length = max(len(row.suffix) + row.prompt.limit for row in rows)
    with torch.inference_mode(), our_attention(model), widened_in(model):
        batch = _Batch(model, Slots(min(slots, len(rows)), length), prompts[0].tokens[:prefix], seen, ways)
        waiting = deque(rows)
        while waiting or batch.rows:
            free = batch.slots.count - len(batch.rows)
            # A forward for one new row costs nearly as much as for several.
            if waiting and (not batch.rows or free >= min(len(waiting), max(1, batch.slots.count // 4))):
                batch.admit(_next_rows(waiting, free, token_budget))
            else:
                batch.step()
            for row in batch.release():
                finished(row.index, row.generated)


def _next_rows(waiting: deque[_Row], free: int, token_budget: int) -> list[_Row]:
    rows: list[_Row] = []
    while waiting and len(rows) < free:
        if rows and sum(len(row.suffix) for row in rows) + len(waiting[0].suffix) > token_budget:
            break
        rows.append(waiting.popleft())
    return rows


class _Batch:
    """Rows ``i`` of the batch are in slots ``i``."""

    def __init__(self, model: "PreTrainedModel", slots: Slots, prefix: Tokens, seen: Seen, ways: Ways) -> None:
        import torch

        self.model = model
        self.seen = seen
        self.ways = ways
        self.slots = slots
        self.prefix_length = len(prefix)
        self.chain = (PREFIX,) if len(prefix) else ()
        self.rows: list[_Row] = []
        self.overflows = model.dtype == torch.float16  # keys and values may be infinite where no logit shows it
        self.decoder = Decoder(model, slots, len(prefix), seen, recorder(model) if ways.recorded else None)
        if len(prefix):
            self._forward(flat_pack([prefix], 0, (), [PREFIX]), slots.prefix)

    def _forward(self, pack: Pack, kept: KeyValueStore) -> "Tensor":
        """See `choose`, of the pack's rows; of its first where it has none."""
        logits, attention, _ = forward_pack(self.model, pack, kept, self.ways)
        answer = choose(logits)
        self.seen(len(pack.tokens), attention.taken, answer[1].any())
        return answer

    def admit(self, rows: list[_Row]) -> None:
        """Forward the new rows' prompts; gives each its first token."""
        slots = range(len(self.rows), len(self.rows) + len(rows))
        pack = flat_pack([row.suffix for row in rows], self.prefix_length, self.chain, slots)
        answer = self._forward(pack, self.slots)
        self.rows += rows
        _append(rows, answer.tolist())

    def step(self) -> None:
        """One more token for every row."""
        tokens, places = [row.generated[-1] for row in self.rows], [row.cached for row in self.rows]
        _append(self.rows, self.decoder.step(tokens, places))

    def release(self) -> list[_Row]:
        """Take out the rows that are done, the last ones moving into their slots.

        What isn't a number is wiped from slots that are left: a mask doesn't hide it from the rows that come there.
        """
        done = []
        for slot in range(len(self.rows) - 1, -1, -1):
            row = self.rows[slot]
            if not row.done:
                continue
            done.append(row)
            last = self.rows.pop()
            if row.broken or self.overflows:
                self.slots.wipe(slot)
            if slot < len(self.rows):
                self.rows[slot] = last
                self.slots.move(len(self.rows), slot, last.cached)
                if last.broken or self.overflows:
                    self.slots.wipe(len(self.rows))
        return done


def _append(rows: Sequence[_Row], answer: Sequence[Sequence[int]]) -> None:
    for row, token, no_number in zip(rows, *answer, strict=True):
        row.generated.append(token)
        row.broken |= bool(no_number)


def common_prefix(texts: Sequence[Tokens]) -> int:
    """Tokens that all begin with, leaving each at least one; 0 where it isn't worth it."""
    shortest = min(len(text) for text in texts) - 1
    first = texts[0][:shortest]
    for text in texts[1:]:
        first = first[: shared_length(first, text)]
    return len(first) if len(texts) > 1 and len(first) >= _LEAST_PREFIX else 0
