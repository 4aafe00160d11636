"""The trie, the plan of its batches, and attention over them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bitladder.accuracy.backend import tree
from bitladder.accuracy.backend.attention import attend
from bitladder.accuracy.backend.lm import BitladderLM
from bitladder.accuracy.backend.plan import Plan, Request, plan_packs
from bitladder.accuracy.backend.scoring import score
from bitladder.accuracy.backend.tokens import RequestEncoder
from bitladder.accuracy.backend.trie import Trie, build_trie
from bitladder.accuracy.huggingface import HuggingFaceModel
from bitladder.checkpoint.loading import load_pretrained, load_tokenizer
from test_backend import PAIRS, ask, make_model, make_requests, one_thread

__all__ = ["one_thread"]  # a fixture

Tokens = npt.NDArray[np.int32]


def path_of(trie: Trie, node: int) -> list[int]:
    tokens: list[int] = []
    while node:
        assert trie.start[node] == trie.start[trie.parent[node]] + len(trie.tokens[trie.parent[node]])
        tokens = trie.tokens[node].tolist() + tokens
        node = trie.parent[node]
    return tokens


@pytest.mark.parametrize("longest", [2, 5, 100])
def test_every_sequence_is_a_path_of_the_trie(longest: int) -> None:
    random = np.random.default_rng(longest)
    for _ in range(100):
        sequences = [random.integers(0, 3, random.integers(1, 14)).astype(np.int32) for _ in range(30)]
        trie = build_trie(sequences, longest)
        assert [path_of(trie, node) for node in trie.end_of] == [sequence.tolist() for sequence in sequences]
        assert max(len(tokens) for tokens in trie.tokens) <= longest


def test_what_sequences_share_is_one_segment() -> None:
    question, choices = np.arange(20, dtype=np.int32), (30, 31, 32)
    sequences = [np.append(question, [choice, 9]).astype(np.int32) for choice in choices]
    trie = build_trie(sequences, 100)
    assert [len(tokens) for tokens in trie.tokens] == [0, 20, 2, 2, 2]


def test_a_short_common_beginning_is_not_worth_a_level() -> None:
    random = np.random.default_rng(0)
    sequences = [np.append([1, 2], random.integers(3, 300, 80)).astype(np.int32) for _ in range(5)]
    assert len(build_trie(sequences, 100).children[0]) == 5


def seen_by_each(plan: Plan) -> dict[tuple[int, ...], int]:
    """How often each token is forwarded, known by all tokens up to it, as the plan's attention sees them."""
    kept: dict[int, tuple[int, ...]] = {}
    counts: dict[tuple[int, ...], int] = {}
    for pack in plan.packs:
        before: dict[int, tuple[int, ...]] = {}
        for start, end, chain in pack.chains:
            beginning = tuple(token for node in chain for token in kept[node])
            before.update(dict.fromkeys(range(start, end), beginning))
        for place in range(len(pack.tokens)):
            own = [int(pack.tokens[j]) for j in range(place + 1) if pack.subtree_ends[j] > place]
            seen = (*before.get(place, ()), *own)
            assert pack.positions[place] == len(seen) - 1
            counts[seen] = counts.get(seen, 0) + 1
        for node, start, end in pack.keep:
            kept[node] = tuple(pack.tokens[start:end].tolist())
        for node in pack.drop:
            del kept[node]
    assert not kept
    return counts


@pytest.mark.parametrize("token_budget", [16, 64, 300, 2000])
def test_packs_forward_every_token_in_its_context(token_budget: int) -> None:
    requests = make_requests()
    plan = plan_packs(requests, seed=3, token_budget=token_budget)
    assert max(len(pack.tokens) for pack in plan.packs) <= token_budget
    counts = seen_by_each(plan)
    prefixes = {tuple(one.inputs[: end + 1].tolist()) for one in requests for end in range(len(one.inputs))}
    assert counts.keys() == prefixes
    assert sum(counts.values()) <= 1.05 * len(prefixes)


def test_levels_are_the_pack_s_mask() -> None:
    pack = max(plan_packs(make_requests(), seed=0, token_budget=2000).packs, key=lambda one: len(one.tokens))
    seen = np.zeros((len(pack.tokens), len(pack.tokens)), int)
    for start, end in pack.segments:
        seen[start:end, start:end] += np.tri(end - start, dtype=int)
    for span in (span for level in pack.levels for span in level):
        seen[span.start : span.end, span.key_start : span.key_end] += 1
    place = np.arange(len(pack.tokens))
    expected = (place <= place[:, None]) & (pack.subtree_ends > place[:, None])
    assert (seen == expected).all()
    assert len(pack.levels) > 1


def test_targets_are_each_predicted_once() -> None:
    requests = make_requests()
    plan = plan_packs(requests, seed=0, token_budget=40)
    owners = np.concatenate([pack.target_requests for pack in plan.packs])
    assert np.bincount(owners).tolist() == [len(request.targets) for request in requests]
    assert plan.requests_done[-1] == len(requests)


def varlen_by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the CUDA kernel does, a sequence at a time."""
    parts = []
    assert longest_query == query_bounds.diff().max() and longest_key == key_bounds.diff().max()
    for index in range(len(query_bounds) - 1):
        queries = slice(int(query_bounds[index]), int(query_bounds[index + 1]))
        keys = slice(int(key_bounds[index]), int(key_bounds[index + 1]))
        parts.append(attend(query[queries], key[keys], value[keys], scale=scale, causal=causal))
    outputs, sums = zip(*parts, strict=True)
    return torch.cat(outputs), torch.cat(sums, 1)


@pytest.mark.parametrize("token_budget", [64, 2000])
def test_levels_in_one_call_each_are_the_same_attention(token_budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, plan = make_model("llama"), plan_packs(make_requests(), seed=0, token_budget=token_budget)
    expected = score(model, [plan]).loglikelihood
    calls: list[int] = []

    def attend_levels(self: tree.TreeAttention, layer, window, query, key, value):  # type: ignore[no-untyped-def]
        calls.append(layer.index)
        return self._attend_levels(layer, query, key, value)

    monkeypatch.setattr(tree.TreeAttention, "_attend_units", attend_levels)
    monkeypatch.setattr(tree, "attend_varlen", varlen_by_hand)
    assert score(model, [plan]).loglikelihood == pytest.approx(expected, abs=1e-4)
    assert len(calls) == 4 * len(plan.packs)


@pytest.mark.parametrize("causal", [True, False])
def test_the_plain_kernel_is_the_fast_one(causal: bool) -> None:
    """A soft cap far above the scores changes nothing but the way they are computed."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn((7, 6, 16), generator=generator)
    key, value = torch.randn((2, 7, 3, 16), generator=generator)
    fast = attend(query, key, value, scale=0.25, causal=causal)
    plain = attend(query, key, value, scale=0.25, causal=causal, softcap=1e4)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_tokenized_requests_are_remembered(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path))
    first = RequestEncoder(load_tokenizer(tiny_llama), 128).pairs(PAIRS)
    again = RequestEncoder(load_tokenizer(tiny_llama), 128)
    monkeypatch.setattr(again, "_encode_pairs", lambda pairs: pytest.fail("tokenized again"))
    assert [(one.inputs.tolist(), one.targets.tolist()) for one in again.pairs(PAIRS)] == [
        (one.inputs.tolist(), one.targets.tolist()) for one in first
    ]
    with pytest.raises(pytest.fail.Exception):
        again.pairs([*PAIRS, ("other", " text")])


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "int8", "nf4"])
def test_low_precision_is_as_near_to_hf_as_hf_to_itself(tiny_llama: Path, kind: str) -> None:
    from transformers import BitsAndBytesConfig

    config: Any = BitsAndBytesConfig
    options = {
        "int8": {"quantization_config": config(load_in_8bit=True, llm_int8_threshold=0.0)},
        "nf4": {"quantization_config": config(load_in_4bit=True, bnb_4bit_quant_type="nf4")},
    }.get(kind, {"dtype": getattr(torch, kind, None)})
    model = load_pretrained(tiny_llama, **options)
    ours = BitladderLM(model, load_tokenizer(tiny_llama), cache_requests=False)
    assert ours.unsupported is None
    requests = ask("loglikelihood", [pair for pair in PAIRS if pair[0].strip()])
    answers = ours.loglikelihood(requests, disable_tqdm=True)
    expected = HuggingFaceModel(model, ours.tokenizer, 2).loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in answers] == pytest.approx([value for value, _ in expected], abs=0.15)


def test_requests_that_are_whole_prefixes_of_others() -> None:
    model = make_model("llama")
    tokens = make_requests()[1].inputs
    requests = [Request(tokens[:end], tokens[end : end + 1]) for end in range(1, len(tokens))]
    one_by_one = [
        score(model, [plan_packs([request], seed=0, token_budget=500)]).loglikelihood[0] for request in requests
    ]
    plan = plan_packs(requests, seed=0, token_budget=500)
    assert score(model, [plan]).loglikelihood == pytest.approx(one_by_one, abs=1e-4)


def test_a_batch_is_the_same_whatever_the_order_within() -> None:
    random = np.random.default_rng(0)
    texts = random.integers(0, 300, (40, 9)).astype(np.int32)
    requests = [Request(text[:-1], text[-1:]) for text in texts]
    one, other = (plan_packs(requests, seed=seed, token_budget=1000) for seed in (0, 1))
    assert one.digest != other.digest
    assert one.compositions == other.compositions
    several, others = (plan_packs(requests, seed=seed, token_budget=80) for seed in (0, 1))
    assert len(several.packs) > 1
    assert not set(several.compositions) & set(others.compositions)
