"""Strings to token ids the way lm-eval's hf backend does it, in one go, and remembered for the next rung.

What requests share is tokenized once, where the text can be cut so that its parts are tokenized alone as together.
"""

import hashlib
import json
import logging
import string
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from bitladder.accuracy.backend.plan import Request
from bitladder.errors import UserError
from bitladder.files import ABANDONED_S, cache_directory, naming, new_file, remove_unfinished

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


log = logging.getLogger(__name__)

_CACHE_VERSION = 1
_LEAST_SHARED = 200
"""characters of a common beginning that are worth a tokenizer's call of their own"""
_CHECKED = 8
"""requests of each call whose parts are compared with the whole"""
_FINGERPRINTS: "WeakKeyDictionary[Any, tuple[int, str]]" = WeakKeyDictionary()
"""of a tokenizer with so many tokens: one takes 0.06 s, and each of MMLU's 57 tasks asks for it"""
Ids = npt.NDArray[np.int32]


class RequestEncoder:
    """Tokenizes requests for one model."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int, *, cache: bool = True) -> None:
        self.tokenizer: Any = tokenizer
        self.max_length = max_length
        self.cache = cache
        self.prefix_token: int = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self._prefix_text = str(self.tokenizer.decode(self.prefix_token))
        self.truncated: set[str] = set()
        """contexts that were cut on the left, being longer than the model's"""

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of one string; special tokens as the tokenizer likes, but no second start-of-sequence."""
        return self.encode_all([text], add_special_tokens)[0]

    def encode_all(self, texts: Sequence[str], add_special_tokens: bool | None = None) -> list[list[int]]:
        """`encode` for many. lm-eval's hf asks only a batch's first string whether it starts with the start token."""
        return self._encode_by_special(texts, add_special_tokens, self._tokenize)

    def _encode_by_special(
        self,
        texts: Sequence[str],
        add_special_tokens: bool | None,
        tokenize: Callable[[list[str], bool], list[list[int]]],
    ) -> list[list[int]]:
        ids: list[list[int]] = [[]] * len(texts)
        for special in (True, False):
            chosen = [i for i, text in enumerate(texts) if self._adds_special(text, add_special_tokens) == special]
            if chosen:
                for i, tokens in zip(chosen, tokenize([texts[i] for i in chosen], special), strict=True):
                    ids[i] = tokens
        return ids

    def _tokenize(self, texts: list[str], special: bool) -> list[list[int]]:
        if not self.cuts:
            return self._tokenize_wholes(texts, special)
        backend = self.tokenizer.backend_tokenizer  # what the tokenizer puts around its answer takes as long again
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=special)]

    def _tokenize_wholes(self, texts: list[str], special: bool) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=special)["input_ids"]
        return ids

    def _adds_special(self, text: str, add_special_tokens: bool | None) -> bool:
        if add_special_tokens is not None:
            return add_special_tokens
        return not text.startswith(self._prefix_text)

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Request]:
        """Requests of (context, continuation) strings, from the cache where it has them.

        The whole string is tokenized and split behind as many tokens as the context alone has; spaces that end the
        context belong to the continuation. An empty context is the start-of-sequence token. What is longer than the
        model is cut on the left, which leaves choices of one question with different beginnings. Raises UserError
        for a continuation of no token, or of more than the model's length.
        """
        contexts, continuations = self._cached(pairs)
        requests, cut = [], []
        for context, continuation, strings in zip(contexts, continuations, pairs, strict=True):
            if not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    f"continuation {strings[1][:60]!r} after {strings[0][-60:]!r} is {len(continuation)} tokens; "
                    f"expected 1 to {self.max_length}, the model's length"
                )
            if len(context) + len(continuation) > self.max_length + 1:
                cut.append(strings[0])
            whole = np.concatenate([context, continuation])[-(self.max_length + 1) :]
            requests.append(Request(whole[:-1], continuation))
        self._report_cut(cut, len(pairs), self.max_length)
        return requests

    def prompts(self, texts: Sequence[str], rooms: Sequence[int]) -> list[Ids]:
        """Texts to continue, each cut on the left to its room. Raises UserError for one without a token."""
        prompts, cut = [], []
        for text, tokens, room in zip(texts, self.encode_all(texts), rooms, strict=True):
            if not tokens:
                raise UserError("a prompt of no tokens; expected some text to continue")
            if len(tokens) > room:
                cut.append(text)
            prompts.append(np.array(tokens[-room:], np.int32))
        self._report_cut(cut, len(texts), self.max_length)
        return prompts

    def windows(self, texts: Sequence[str]) -> tuple[list[Request], list[int]]:
        """Whole texts, each token scored once, in lm-eval's windows of the model's length; and the index of the text
        that each belongs to. An empty text has none."""
        from lm_eval.utils import get_rolling_token_windows

        requests, owners = [], []
        for index, tokens in enumerate(self.encode_all(texts)):
            for inputs, targets in get_rolling_token_windows(tokens, self.prefix_token, self.max_length, context_len=1):
                requests.append(Request(_array(inputs), _array(targets)))
                owners.append(index)
        return requests, owners

    def _report_cut(self, cut: Sequence[str], total: int, length: int) -> None:
        self.truncated.update(cut)
        if cut:
            log.warning(
                "%d of %d requests exceed the model's %d tokens and are cut on the left", len(cut), total, length
            )

    def _cached(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[Ids], list[Ids]]:
        if not self.cache:
            return self._encode_pairs(pairs)
        path = cache_directory() / "requests" / f"{self._key(pairs)}.npz"
        if path.is_file():
            with np.load(path) as stored:
                return _split(stored["contexts"], stored["context_ends"]), _split(stored["tokens"], stored["ends"])
        contexts, continuations = self._encode_pairs(pairs)
        remove_unfinished(path.parent, idle_s=ABANDONED_S)
        with new_file(path) as temporary, naming(path), temporary.open("wb") as file:
            np.savez(
                file,
                contexts=np.concatenate(contexts),
                context_ends=np.cumsum([len(tokens) for tokens in contexts]),
                tokens=np.concatenate(continuations),
                ends=np.cumsum([len(tokens) for tokens in continuations]),
            )
        return contexts, continuations

    def _key(self, pairs: Sequence[tuple[str, str]]) -> str:
        digest = hashlib.sha256(f"{_CACHE_VERSION}{self.tokenizer_fingerprint}{self.prefix_token}".encode())
        for pair in pairs:
            for text in pair:
                encoded = text.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()

    @property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides how the tokenizer splits. Made once for each, unless tokens are added: set
        its normalizer and the like before it is asked."""
        tokens = len(self.tokenizer)
        known, fingerprint = _FINGERPRINTS.get(self.tokenizer, (None, ""))
        if known != tokens:
            backend = getattr(self.tokenizer, "backend_tokenizer", None)
            said = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
            about = (type(self.tokenizer).__name__, self.tokenizer.name_or_path if backend is None else "", said)
            fingerprint = hashlib.sha256(repr(about).encode()).hexdigest()
            _FINGERPRINTS[self.tokenizer] = tokens, fingerprint
        return fingerprint

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[Ids], list[Ids]]:
        moved = [_move_spaces(context, continuation) for context, continuation in pairs]
        ids = self._encode_texts({context for context, _ in moved if context})
        apart = [bool(context) and self.cuts and is_seam(context, continuation) for context, continuation in moved]
        lone = {second for (first, second), cut in zip(moved, apart, strict=True) if cut or not first}
        lone_ids = dict(zip(lone, map(_array, self.encode_all(list(lone), False)), strict=True))
        whole_ids = self._encode_texts(
            {first + second for (first, second), cut in zip(moved, apart, strict=True) if first and not cut}
        )
        start = _array([self.prefix_token])
        contexts, continuations = [], []
        for (context, continuation), cut in zip(moved, apart, strict=True):
            if cut:
                first, second = ids[context], lone_ids[continuation]
            elif context:
                first = ids[context]
                second = whole_ids[context + continuation][len(first) :]
            else:
                first, second = start, lone_ids[continuation]
                if second[:1].tolist() == [self.prefix_token]:
                    second = second[1:]
            contexts.append(first)
            continuations.append(second)
        self._check(moved, apart, contexts, continuations)
        return contexts, continuations

    @cached_property
    def cuts(self) -> bool:
        """Whether texts are tokenized in parts, each once, where that is the same as the whole."""
        return has_seams(self.tokenizer)

    def _encode_texts(self, distinct: set[str]) -> dict[str, Ids]:
        """Token ids of each text; what many begin with is tokenized once."""
        texts = list(distinct)
        if not self.cuts:
            return dict(zip(texts, map(_array, self.encode_all(texts)), strict=True))
        ids: dict[str, Ids] = {}
        plain: list[str] = []
        heads: list[str] = []
        tails: list[tuple[str, int]] = []  # text, number of its head
        for members, end in shared_beginnings(texts, _LEAST_SHARED):
            if end <= len(self._prefix_text):
                plain += [texts[index] for index in members]
                continue
            tails += [(texts[index], len(heads)) for index in members]
            heads.append(texts[members[0]][:end])
        ids.update(zip(plain, map(_array, self.encode_all(plain)), strict=True))
        head_ids = [_array(head) for head in self.encode_all(heads)]
        rest = self.encode_all([text[len(heads[number]) :] for text, number in tails], False)
        for (text, number), tail in zip(tails, rest, strict=True):
            ids[text] = np.concatenate([head_ids[number], _array(tail)])
        return ids

    def _check(
        self,
        moved: Sequence[tuple[str, str]],
        apart: Sequence[bool],
        contexts: Sequence[Ids],
        continuations: Sequence[Ids],
    ) -> None:
        """Tokenize a few of those that were tokenized in parts as wholes; a difference would be a bug of ours."""
        cut = [index for index in range(len(moved)) if apart[index]]
        chosen = cut[:: max(1, len(cut) // _CHECKED)]
        wholes = self._encode_by_special(["".join(moved[index]) for index in chosen], None, self._tokenize_wholes)
        for index, whole in zip(chosen, wholes, strict=True):
            parts = [*contexts[index].tolist(), *continuations[index].tolist()]
            if parts != whole:
                raise AssertionError(f"tokenized in parts, {moved[index]} differs from the whole: {parts}, {whole}")


def _array(tokens: Sequence[int]) -> Ids:
    return np.array(tokens, np.int32)


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _split(tokens: Ids, ends: npt.NDArray[np.int64]) -> list[Ids]:
    return np.split(tokens, ends[:-1])
