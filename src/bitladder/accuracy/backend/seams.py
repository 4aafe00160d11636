"""Where a text can be cut so that its parts are tokenized alone as they are together.

A seam is a space behind a letter, digit or ASCII punctuation. The pre-tokenizers known here (GPT-2's and Llama 3's kind
of pattern) have no match that goes on from such a character to a space, no lookbehind, and no lookahead that reaches
over a seam; what they leave between them is merged on its own.
"""

import json
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENDS = r"|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + _ENDS
_PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+" + _ENDS,
    _WORDS + r"\p{N}{1,3}" + _REST,
    _WORDS + r"\p{N}" + _REST,
)
_PUNCTUATION = frozenset(string.punctuation)


def has_seams(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer is of a kind that is known to split at every seam, and puts nothing at a text's end."""
    from transformers import PreTrainedTokenizerFast

    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus:
        return False
    normalizer, splitter = (_description(part) for part in (backend.normalizer, backend.pre_tokenizer))
    if type(backend.model).__name__ != "BPE" or backend.model.dropout or not _keeps_seams(normalizer):
        return False
    if splitter is None or not _splits_at_seams(splitter):
        return False
    for token in backend.get_added_tokens_decoder().values():
        if token.rstrip or token.single_word or " " in token.content:
            return False
    with_special, without = (tokenizer("A rung", add_special_tokens=special)["input_ids"] for special in (True, False))
    return bool(without) and with_special[-len(without) :] == without


def _keeps_seams(normalizer: dict[str, Any] | None) -> bool:
    if normalizer is None or normalizer["type"] == "NFC":
        return True
    return normalizer["type"] == "Sequence" and all(map(_keeps_seams, normalizer["normalizers"]))


def _description(part: Any) -> dict[str, Any] | None:
    return None if part is None else json.loads(part.__getstate__())


def _splits_at_seams(splitter: dict[str, Any]) -> bool:
    """Whether every seam is a cut; other parts of a sequence may only cut, and spaces must still be spaces."""
    parts = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    cut = False
    for part in parts:
        kind = part["type"]
        if kind == "Split":
            if part["pattern"].get("Regex") not in _PATTERNS or part["behavior"] != "Isolated" or part["invert"]:
                return False
            cut = True
        elif kind == "ByteLevel":
            cut = cut or part["use_regex"]
            if part["add_prefix_space"] or not cut:
                return False
        elif kind != "Digits":
            return False
    return cut


def is_seam(before: str, after: str) -> bool:
    """Whether texts that end and begin so can be tokenized apart."""
    return after[:1] == " " and (before[-1:].isalnum() or before[-1:] in _PUNCTUATION)


def last_seam(text: str, end: int) -> int:
    """The last place up to ``end`` where the text can be cut; 0 where there is none."""
    place = text.rfind(" ", 0, end + 1)
    while place > 0 and not is_seam(text[place - 1], " "):
        place = text.rfind(" ", 0, place)
    return max(place, 0)


def shared_beginnings(texts: Sequence[str], least: int) -> list[tuple[list[int], int]]:
    """Groups of texts that share at least ``least`` characters: their indices, and where all of them can be cut.

    A text that shares nothing is a group of its own, cut at 0.
    """
    groups: list[tuple[list[int], int]] = []
    for index in sorted(range(len(texts)), key=texts.__getitem__):
        if groups:
            members, shared = groups[-1]
            common = common_length(texts[members[0]][:shared], texts[index])
            if common >= least:
                members.append(index)
                groups[-1] = members, common
                continue
        groups.append(([index], len(texts[index])))
    return [
        (members, last_seam(texts[members[0]], shared - 1) if len(members) > 1 else 0) for members, shared in groups
    ]


def common_length(first: str, second: str) -> int:
    """Characters that both begin with, found by halving: slices are compared at the speed of memory."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
