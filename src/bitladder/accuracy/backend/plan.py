"""The batch plan of log-likelihoods: which tokens are forwarded together, as a pure function of what is asked.

The budget of tokens is a power of two, so that what is free at the moment does not change the plan.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitladder.accuracy.backend.trie import Tokens, Trie, build_trie
from bitladder.checkpoint.loading import available_bytes, device_bytes
from bitladder.checkpoint.skeleton import embedding_width, vocabulary_size
from bitladder.records.study import TOKEN_BUDGET

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LEAST = 256
CPU_ROWS = 32
MAX_ROWS = 2048
"""where a decoding step's products no longer gain from more rows, and its launch has long been spread over many"""


def budget_on(device: str, bytes_a_token: int) -> int:
    """Tokens: the device's best budget, halved until its activations and logits (`token_bytes`) take at most half of
    the free memory."""
    budget = TOKEN_BUDGET[device.partition(":")[0]]
    free = available_bytes(device)
    while budget > _LEAST and budget * bytes_a_token > free / 2:
        budget //= 2
    return budget


def token_bytes(model: "PreTrainedModel", device_type: str) -> int:
    """Upper estimate of the memory one packed token takes while it is forwarded and scored.

    The logits twice (soft-capping copies them), the widest layer's inside three times, and a dozen hidden states in
    FP32, which norms are computed in. On a CPU all of it is in FP32, since 16-bit products may be computed so.
    """
    vocabulary, hidden = vocabulary_size(model), embedding_width(model)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    features = (getattr(module, "out_features", 0) for module in model.modules() if module is not head)
    wide = max([4 * hidden, *(number for number in features if isinstance(number, int))])
    size = 4 if device_type == "cpu" else model.dtype.itemsize
    return int(size * (2 * vocabulary + 3 * wide) + 4 * 12 * hidden)


def rows_at_once(model: "PreTrainedModel", length: int, most: int = MAX_ROWS) -> int:
    """How many of up to ``most`` rows of ``length`` tokens to generate side by side.

    Their keys and values take at most a quarter of what the weights leave of the device's memory, and not of what is
    free at the moment: LLM.int8's texts depend on the number.
    """
    rows = min(most, CPU_ROWS if model.device.type == "cpu" else MAX_ROWS)
    left = device_bytes(str(model.device)) - sum(tensor.nbytes for tensor in model.parameters())
    while rows > 1 and rows * length * key_value_bytes(model) > left / 4:
        rows //= 2
    return rows


def key_value_bytes(model: "PreTrainedModel") -> int:
    """Memory of one token's keys and values in all layers of a model that is scored our way."""
    _, key_heads, size = attention_heads(model)
    layers: int = model.config.get_text_config().num_hidden_layers
    return 2 * layers * key_heads * size * model.dtype.itemsize


def attention_heads(model: "PreTrainedModel") -> tuple[int, int, int]:
    """Query heads, key heads, and the larger of the sizes of a key and of a value.

    Raises ValueError where the configuration doesn't say, or where they differ between layers.
    """
    config = model.config.get_text_config()
    try:
        heads = config.num_attention_heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        # of latent attention, whose keys have a rotated and an unrotated part
        latent = sum(getattr(config, name, None) or 0 for name in ("qk_nope_head_dim", "qk_rope_head_dim"))
        return int(heads), int(key_heads), int(max(size, latent, getattr(config, "v_head_dim", None) or 0))
    except (AttributeError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"its configuration has no one number of heads ({str(error).splitlines()[0]})") from None


Integers = npt.NDArray[np.int64]
Chain = tuple[int, ...]
"""Trie nodes, outermost first, whose kept keys and values a subtree attends to."""

_OPEN_PACKS = 8


@dataclass(frozen=True)
class Request:
    """One string to score: the input tokens, and how many of the last predictions count."""

    inputs: Tokens
    """context and continuation without its last token, truncated on the left to the model's length"""
    targets: Tokens
    """the continuation's tokens, predicted at the last ``len(targets)`` inputs"""


@dataclass(frozen=True)
class Span:
    """Queries that attend to keys, all to all: tokens ``[start, end)`` of the pack to ``[key_start, key_end)``."""

    start: int
    end: int
    key_start: int
    key_end: int


@dataclass
class Pack:
    """One forward. Positions are depths in the trie; all indices are into the pack's tokens."""

    tokens: Integers
    positions: Integers
    subtree_ends: Integers
    """for each token, where what is below its segment ends: token i sees token j if j <= i < subtree_ends[j]"""
    units: list[tuple[int, int]]
    """start and end of each subtree or kept segment; attention within the pack stays within a unit"""
    segments: list[tuple[int, int]]
    """start and end of each segment, in depth-first order; tokens attend causally within"""
    levels: list[list[Span]]
    """level by level from the outermost: what is below a segment attends to it"""
    chains: list[tuple[int, int, Chain]]
    """start, end and the kept nodes that these tokens attend to"""
    keep: list[tuple[int, int, int]]
    """node, start, end: whose keys and values later packs need"""
    drop: list[int] = field(default_factory=list)
    """kept nodes that no later pack needs"""
    rows: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    """tokens whose predictions are scored, ascending"""
    target_rows: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    """index into ``rows`` of each target, ascending"""
    target_tokens: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    target_requests: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    """request that each target belongs to"""


@dataclass(frozen=True)
class Plan:
    packs: list[Pack]
    requests: int
    seed: int
    token_budget: int

    @property
    def tokens(self) -> int:
        """Tokens forwarded."""
        return sum(len(pack.tokens) for pack in self.packs)

    @property
    def requests_done(self) -> list[int]:
        """After each pack, how many requests have all their predictions."""
        last = np.zeros(self.requests, np.int64)
        for number, pack in enumerate(self.packs):
            last[pack.target_requests] = number
        done: list[int] = np.cumsum(np.bincount(last, minlength=len(self.packs))).tolist()
        return done

    @property
    def compositions(self) -> tuple[str, ...]:
        """Per pack, a hash of the tokens in it, whatever their order: an answer may depend on what is beside it."""
        return tuple(hashlib.sha256(np.sort(pack.tokens).tobytes()).hexdigest()[:16] for pack in self.packs)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything in the plan: equal plans are the same batches."""
        digest = hashlib.sha256()
        for pack in self.packs:
            for array in (pack.tokens, pack.positions, pack.target_rows, pack.target_tokens, pack.target_requests):
                digest.update(array.tobytes())
            digest.update(repr((pack.segments, pack.chains, pack.keep)).encode())
        return digest.hexdigest()


def plan_packs(requests: Sequence[Request], *, seed: int, token_budget: int) -> Plan:
    """Batches of at most ``token_budget`` tokens; another seed puts other requests beside each other."""
    trie = build_trie([request.inputs for request in requests], token_budget)
    builder = _Builder(trie, token_budget, np.random.default_rng(seed))
    packs = [
        builder.pack(units, keep, drop)
        for units, keep, drop in builder.order([(child, ()) for child in trie.children[0]])
    ]
    _assign_targets(packs, requests, trie, builder.places)
    return Plan(packs, len(requests), seed, token_budget)


def flat_pack(texts: Sequence[Tokens], start: int, chain: Chain, keep: Sequence[int]) -> Pack:
    """Texts side by side that share nothing but the kept nodes, which end at depth ``start``; each is kept itself."""
    ends = np.cumsum([len(text) for text in texts])
    spans = [(int(end) - len(text), int(end)) for text, end in zip(texts, ends, strict=True)]
    return Pack(
        tokens=np.concatenate(texts).astype(np.int64),
        positions=np.concatenate([np.arange(start, start + len(text)) for text in texts]),
        subtree_ends=np.repeat(ends, [len(text) for text in texts]),
        units=spans,
        segments=spans,
        levels=[],
        chains=[(0, int(ends[-1]), chain)] if chain else [],
        keep=[(node, *span) for node, span in zip(keep, spans, strict=True)],
        rows=ends - 1,
    )


Unit = tuple[int, Chain]


class _Builder:
    def __init__(self, trie: Trie, token_budget: int, random: np.random.Generator) -> None:
        self.trie = trie
        self.budget = token_budget
        self.random = random
        self.size = trie.subtree_tokens()
        self.places: dict[int, tuple[int, int]] = {}
        """node -> pack and start in it"""
        self.built = 0

    def order(self, units: list[Unit]) -> Iterator[tuple[list[Unit], bool, list[int]]]:
        """Packs of all that is in the units, as (subtrees or kept segments, whether they are kept, kept nodes to drop
        afterwards)."""
        units = [units[index] for index in self.random.permutation(len(units))]
        small = [unit for unit in units if self.size[unit[0]] <= self.budget]
        for pack in _first_fit(small, self.size, self.budget):
            yield pack, False, []
        large = [unit for unit in units if self.size[unit[0]] > self.budget]
        lengths = {node: len(self.trie.tokens[node]) for node, _ in large}
        for pack in _first_fit(large, lengths, self.budget):
            yield pack, True, []
            below = [(child, (*chain, node)) for node, chain in pack for child in self.trie.children[node]]
            *others, (last, keep, drop) = self.order(below)
            yield from others
            yield last, keep, drop + [node for node, _ in pack]

    def pack(self, units: list[Unit], keep: bool, drop: list[int]) -> Pack:
        """Lay the units out side by side; a kept unit is its segment alone."""
        layout = _Layout(self.trie, self.places, self.built)
        for node, chain in sorted(units, key=lambda unit: unit[1]):
            start = layout.length
            if keep:
                layout.segment(node)
                layout.keep.append((node, start, layout.length))
            else:
                layout.subtree(node, 0)
            layout.units.append((start, layout.length))
            if not chain:
                continue
            if layout.chains and layout.chains[-1][1:] == (start, chain):
                start = layout.chains.pop()[0]
            layout.chains.append((start, layout.length, chain))
        self.built += 1
        return layout.pack(drop)


class _Layout:
    def __init__(self, trie: Trie, places: dict[int, tuple[int, int]], number: int) -> None:
        self.trie = trie
        self.places = places
        self.number = number
        self.length = 0
        self.units: list[tuple[int, int]] = []
        self.segments: list[tuple[int, int]] = []
        self.ends: list[int] = []
        """per segment, where its subtree ends"""
        self.levels: list[list[Span]] = []
        self.chains: list[tuple[int, int, Chain]] = []
        self.keep: list[tuple[int, int, int]] = []
        self.tokens: list[Tokens] = []
        self.depths: list[Integers] = []

    def segment(self, node: int) -> None:
        tokens, depth = self.trie.tokens[node], self.trie.start[node]
        self.places[node] = (self.number, self.length)
        self.segments.append((self.length, self.length + len(tokens)))
        self.ends.append(self.length + len(tokens))
        self.tokens.append(tokens)
        self.depths.append(np.arange(depth, depth + len(tokens)))
        self.length += len(tokens)

    def subtree(self, node: int, level: int) -> None:
        start, number = self.length, len(self.segments)
        self.segment(node)
        end = self.length
        for child in self.trie.children[node]:
            self.subtree(child, level + 1)
        self.ends[number] = self.length
        if self.length > end:
            while len(self.levels) <= level:
                self.levels.append([])
            self.levels[level].append(Span(end, self.length, start, end))

    def pack(self, drop: list[int]) -> Pack:
        return Pack(
            tokens=np.concatenate(self.tokens).astype(np.int64),
            positions=np.concatenate(self.depths),
            subtree_ends=np.repeat(self.ends, [end - start for start, end in self.segments]),
            units=self.units,
            segments=self.segments,
            levels=self.levels,
            chains=self.chains,
            keep=self.keep,
            drop=drop,
        )


def _first_fit(units: list[Unit], size: Sequence[int] | dict[int, int], budget: int) -> list[list[Unit]]:
    """Bins of at most ``budget``; a few stay open, so that a large unit doesn't leave one half empty."""
    done: list[list[Unit]] = []
    opened: list[tuple[list[Unit], int]] = []
    for unit in units:
        need = size[unit[0]]
        fitting = next((i for i, (_, used) in enumerate(opened) if used + need <= budget), None)
        if fitting is None:
            if len(opened) == _OPEN_PACKS:
                done.append(opened.pop(0)[0])
            opened.append(([unit], need))
        else:
            members, used = opened[fitting]
            opened[fitting] = ([*members, unit], used + need)
    return done + [members for members, _ in opened]


def _assign_targets(
    packs: list[Pack], requests: Sequence[Request], trie: Trie, places: dict[int, tuple[int, int]]
) -> None:
    """Give each pack the predictions that are made in it."""
    number, first, count, owner, tokens = [], [], [], [], []
    for index, request in enumerate(requests):
        node, end = trie.end_of[index], len(request.inputs)
        lowest = end - len(request.targets)
        while end > lowest:
            start = max(trie.start[node], lowest)
            in_pack, place = places[node]
            number.append(in_pack)
            first.append(place + start - trie.start[node])
            count.append(end - start)
            owner.append(index)
            tokens.append(request.targets[start - lowest : end - lowest])
            end, node = start, trie.parent[node]
    counts = np.array(count)
    local = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    positions = np.repeat(np.array(first), counts) + local
    pack_of = np.repeat(np.array(number), counts)
    owners = np.repeat(np.array(owner), counts)
    targets = np.concatenate(tokens).astype(np.int64)
    by_pack = np.lexsort((positions, pack_of))
    bounds = np.searchsorted(pack_of[by_pack], np.arange(len(packs) + 1))
    for index, pack in enumerate(packs):
        chosen = by_pack[bounds[index] : bounds[index + 1]]
        pack.rows, pack.target_rows = np.unique(positions[chosen], return_inverse=True)
        pack.target_tokens, pack.target_requests = targets[chosen], owners[chosen]
