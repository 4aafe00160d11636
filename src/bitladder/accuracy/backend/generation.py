"""Greedy generation with continuous batching: a row that is done leaves, and the next one takes its place.

A prompt is tokens, stop strings and a limit. A row stops when its text has a stop string in it, wherever the tokens'
borders lie.
"""

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bitladder.accuracy.backend.attention import KeyValueStore, UnsupportedModelError, our_attention
from bitladder.accuracy.backend.compiling import recorder, widened_in
from bitladder.accuracy.backend.decoding import PREFIX, Decoder, Slots, choose
from bitladder.accuracy.backend.plan import Pack, flat_pack
from bitladder.accuracy.backend.scoring import forward_pack
from bitladder.accuracy.backend.speedups import NO_SPEEDUPS, Speedups
from bitladder.accuracy.backend.tokens import RequestEncoder
from bitladder.accuracy.backend.trie import Tokens, shared_length
from bitladder.accuracy.forwards import OnForward
from bitladder.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SPARE_TOKENS = 4
"""looked at before those that can hold the stop string, since a tokenizer may decode the first one otherwise"""


class StopStrings:
    """Stop strings of one set of requests. A token is decoded with those before it only if it can end one of them.

    ``tokenizer``: None does for no stop strings.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None", stops: Sequence[str]) -> None:
        self.tokenizer: Any = tokenizer
        self.stops = [stop for stop in stops if stop]
        self.tail = max((len(stop.encode()) for stop in self.stops), default=0) + _SPARE_TOKENS
        self._last = {stop[-1] for stop in self.stops}
        self._can_end: dict[int, bool] = {}

    def reached(self, generated: Sequence[int]) -> bool:
        """Whether the last of the generated tokens completed a stop string."""
        if not self.stops or not self._may_end(generated[-1]):
            return False
        text = self.tokenizer.decode(generated[-self.tail :])
        return any(stop in text for stop in self.stops)

    def _may_end(self, token: int) -> bool:
        if token not in self._can_end:
            text = self.tokenizer.decode([token])
            # A lone token may lose its space, and part of a character decodes to the replacement character.
            self._can_end[token] = " " in self._last or "\ufffd" in text or not self._last.isdisjoint(text)
        return self._can_end[token]


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
class _Text:
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
    seen: OnForward,
    speedups: Speedups = NO_SPEEDUPS,
) -> None:
    """Generate for every prompt; ``finished`` gets each one's index and new tokens, stop string or end included.

    ``seen`` is told of every forward.
    """
    import torch

    if not prompts:
        return
    prefix = common_prefix([prompt.tokens for prompt in prompts])
    rows = [_Text(index, prompt, prompt.tokens[prefix:]) for index, prompt in enumerate(prompts)]
    rows.sort(key=lambda row: (-len(row.suffix), row.index))  # neighbours of like length leave little of a block unused
    length = max(len(row.suffix) + row.prompt.limit for row in rows)
    with torch.inference_mode(), our_attention(model), widened_in(model):
        batch = _Running(model, Slots(min(slots, len(rows)), length), prompts[0].tokens[:prefix], seen, speedups)
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


def _next_rows(waiting: deque[_Text], free: int, token_budget: int) -> list[_Text]:
    rows: list[_Text] = []
    while waiting and len(rows) < free:
        if rows and sum(len(row.suffix) for row in rows) + len(waiting[0].suffix) > token_budget:
            break
        rows.append(waiting.popleft())
    return rows


class _Running:
    """Rows ``i`` of the batch are in slots ``i``."""

    def __init__(
        self, model: "PreTrainedModel", slots: Slots, prefix: Tokens, seen: OnForward, speedups: Speedups
    ) -> None:
        import torch

        self.model = model
        self.seen = seen
        self.speedups = speedups
        self.slots = slots
        self.prefix_length = len(prefix)
        self.chain = (PREFIX,) if len(prefix) else ()
        self.rows: list[_Text] = []
        self.overflows = model.dtype == torch.float16  # keys and values may be infinite where no logit shows it
        self.decoder = Decoder(model, slots, len(prefix), seen, recorder(model) if speedups.recorded else None)
        if len(prefix):
            self._forward(flat_pack([prefix], 0, (), [PREFIX]), slots.prefix)

    def _forward(self, pack: Pack, kept: KeyValueStore) -> "Tensor":
        """See `choose`, of the pack's rows; of its first where it has none."""
        logits, attention, _ = forward_pack(self.model, pack, kept, self.speedups)
        answer = choose(logits)
        self.seen(len(pack.tokens), attention.taken, answer[1].any())
        return answer

    def admit(self, rows: list[_Text]) -> None:
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

    def release(self) -> list[_Text]:
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


def _append(rows: Sequence[_Text], answer: Sequence[Sequence[int]]) -> None:
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


DEFAULT_NEW_TOKENS = 256
"""lm-eval's own, where a task sets no limit"""
_GREEDY = {"do_sample": (False, None), "temperature": (0, 0.0, None)}
_NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "remove_invalid_values": False,
    "token_healing": False,
    "use_mtp": False,
}
"""values of a generation configuration's settings that leave a greedy choice as it is, beside None"""
_WITHOUT_EFFECT = re.compile(
    # sampling, which lm-eval turns off
    "do_sample|temperature|top_[kph]|min_p|typical_p|epsilon_cutoff|eta_cutoff"
    # length: lm-eval gives its own
    "|max_length"
    # beams alone
    "|early_stopping|length_penalty"
    # how it is computed or returned
    "|use_cache|.*cache.*|.*compile.*|low_memory|prefill_chunk_size|continuous_batching_config|renormalize_logits"
    "|output_.*|return_.*|(pad|bos|eos|decoder_start)_token_id"
    # drafts, which are kept where they are the model's own choice
    "|.*assistant.*|.*lookbehind|speculation_type|max_matching_ngram_size"
    "|_from_model_config|transformers_version|trust_remote_code"
)
"""settings that are nothing to a greedy choice; all others are taken to change it, those of later versions too"""


def require_greedy(model: "PreTrainedModel", options: Sequence[dict[str, Any]]) -> None:
    """Raise UnsupportedModelError, saying why, where a request or the model's own settings ask for more than greedy."""
    for name, value in model.generation_config.to_dict().items():
        neutral = value is None or value == _NEUTRAL.get(name, ())
        if not neutral and not _WITHOUT_EFFECT.fullmatch(name):
            raise UnsupportedModelError(f"its generation_config has {name} {value}")
    for request in options:
        for name, value in request.items():
            if name not in ("until", "max_gen_toks") and value not in _GREEDY.get(name, ()):
                raise UnsupportedModelError(f"the task generates with {name} {value}")


def make_prompts(
    encoder: RequestEncoder, model: "PreTrainedModel", requests: Sequence[tuple[str, dict[str, Any]]]
) -> list[Prompt]:
    """Prompts of (context, normalized options), cut on the left to leave room for the new tokens.

    Raises UserError for a limit of new tokens that leaves no room for a prompt.
    """
    from lm_eval.models.utils import handle_stop_sequences

    tokenizer: Any = encoder.tokenizer
    own = model.generation_config.eos_token_id
    ends = frozenset({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None})
    end_text = tokenizer.decode(tokenizer.eos_token_id)
    by_stops: dict[tuple[str, ...], StopStrings] = {}
    rooms = [encoder.max_length - int(options["max_gen_toks"]) for _, options in requests]
    if rooms and min(rooms) <= 0:
        raise UserError(
            f"no room for a prompt beside the new tokens in a model of {encoder.max_length}; lower the limit"
        )
    prompts = []
    for tokens, (_, options) in zip(encoder.prompts([text for text, _ in requests], rooms), requests, strict=True):
        stops = tuple(handle_stop_sequences(options["until"], eos=end_text))
        if stops not in by_stops:
            by_stops[stops] = StopStrings(tokenizer, stops)
        prompts.append(Prompt(tokens, by_stops[stops], ends, int(options["max_gen_toks"])))
    return prompts
