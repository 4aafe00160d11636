"""Texts that are tokenized in parts, against the same texts as wholes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bitladder.accuracy.backend import tokens
from bitladder.accuracy.backend.tokens import RequestEncoder
from bitladder.checkpoint.loading import load_tokenizer

ALPHABET = [*"  \n\t.,:'sSaéß12☃-", "the", "\u0301", "\r\n", "\u00a0", "  ", "<|x|>"]


def make_tokenizer(splitter: Any, normalizer: Any = None, added: str = "<|x|>") -> PreTrainedTokenizerFast:
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[added],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(random_texts(300, 1), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=added, eos_token=added)  # type: ignore[no-untyped-call]


def random_texts(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(ALPHABET, random.integers(2, 40))) for _ in range(count)]


def byte_level(pattern: str | None, *before: Any) -> Any:
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    return pre_tokenizers.Sequence([*before, *split, own])


KNOWN = {
    "gpt2": (byte_level(None), None),
    "smollm": (byte_level(None, pre_tokenizers.Digits(individual_digits=True)), None),
    "llama3": (byte_level(tokens._PATTERNS[1]), None),
    "qwen2": (byte_level(tokens._PATTERNS[2]), normalizers.NFC()),
    "normalizers-of-nothing": (byte_level(tokens._PATTERNS[0]), normalizers.Sequence([])),
}


@pytest.mark.parametrize("name", KNOWN)
def test_parts_between_seams_are_the_whole(name: str) -> None:
    tokenizer = make_tokenizer(*KNOWN[name])
    assert tokens.has_seams(tokenizer)
    cuts = 0
    for text in random_texts(3000, 0):
        whole = tokenizer(text)["input_ids"]
        place = tokens.last_seam(text, len(text) - 1)
        cuts += place > 0
        parts = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text[:place], text[place:])]
        assert [*parts[0], *parts[1]] == whole, text
    assert cuts > 1000


@pytest.mark.parametrize(
    "tokenizer",
    [
        make_tokenizer(pre_tokenizers.Metaspace()),
        make_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        make_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        make_tokenizer(byte_level(r"\w+ \w+|\s+")),
        make_tokenizer(byte_level(None), normalizers.Sequence([normalizers.NFC(), normalizers.Replace("a b", "c")])),
        make_tokenizer(byte_level(None), added="a b"),
    ],
    ids=["metaspace", "prefix-space", "no-regex", "own-pattern", "normalizer", "added-token"],
)
def test_other_tokenizers_get_whole_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    assert not tokens.has_seams(tokenizer)


def test_few_shot_requests_are_those_of_whole_texts(tiny_llama: Path) -> None:
    random = np.random.default_rng(0)
    words = ["Which", "ladder", "rung", "12", "is right?", "forty-two", "\n", "quick: ", "'s", " "]
    shots = {kind: " ".join(random.choice(words, 120)) for kind in "ab"}
    pairs = []
    for index in range(60):
        context = shots["ab"[index % 2]] + " ".join(random.choice(words, 6)) + ("\nAnswer:", " ", "\n")[index % 3]
        pairs += [(context, continuation) for continuation in (" A", " forty-two", "B", "\nC")]
    apart, whole = (RequestEncoder(load_tokenizer(tiny_llama), 4096, cache=False) for _ in range(2))
    assert apart.cuts
    whole.__dict__["cuts"] = False
    for one, other in zip(apart.pairs(pairs), whole.pairs(pairs), strict=True):
        assert one.inputs.tolist() == other.inputs.tolist()
        assert one.targets.tolist() == other.targets.tolist()


def test_shared_beginnings_are_cut_at_a_seam() -> None:
    texts = ["x", "a long beginning of all, one", "a long beginning of all, two", "another"]
    assert tokens.shared_beginnings(texts, 8) == [([1, 2], 24), ([3], 0), ([0], 0)]
    assert texts[1][:24] == "a long beginning of all,"
