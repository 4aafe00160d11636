"""Strings to token ids the way lm-eval's hf backend does it, in one go, and remembered for the next rung."""

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bitladder.accuracy.backend.packing import Request
from bitladder.errors import UserError
from bitladder.files import cache_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_CACHE_VERSION = 1
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
        self._fingerprint: str | None = None

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of one string; special tokens as the tokenizer likes, but no second start-of-sequence."""
        return self.encode_all([text], add_special_tokens)[0]

    def encode_all(self, texts: Sequence[str], add_special_tokens: bool | None = None) -> list[list[int]]:
        """`encode` for many. lm-eval's hf asks only a batch's first string whether it starts with the start token."""
        ids: list[list[int]] = [[]] * len(texts)
        for special in (True, False):
            chosen = [i for i, text in enumerate(texts) if self._adds_special(text, add_special_tokens) == special]
            if chosen:
                encoded = self.tokenizer([texts[i] for i in chosen], add_special_tokens=special)["input_ids"]
                for i, tokens in zip(chosen, encoded, strict=True):
                    ids[i] = tokens
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
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(
                file,
                contexts=np.concatenate(contexts),
                context_ends=np.cumsum([len(tokens) for tokens in contexts]),
                tokens=np.concatenate(continuations),
                ends=np.cumsum([len(tokens) for tokens in continuations]),
            )
        Path(file.name).replace(path)
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
        """SHA-256 (hex) of all that decides how the tokenizer splits."""
        if self._fingerprint is None:
            backend = getattr(self.tokenizer, "backend_tokenizer", None)
            said = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
            about = (type(self.tokenizer).__name__, self.tokenizer.name_or_path if backend is None else "", said)
            self._fingerprint = hashlib.sha256(repr(about).encode()).hexdigest()
        return self._fingerprint

    def _encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[Ids], list[Ids]]:
        moved = [_move_spaces(context, continuation) for context, continuation in pairs]
        alone = sorted({context for context, _ in moved if context})
        context_ids = dict(zip(alone, self.encode_all(alone), strict=True))
        wholes = self.encode_all([context + continuation for context, continuation in moved if context])
        lone = self.encode_all([continuation for context, continuation in moved if not context], False)
        whole_iterator, lone_iterator = iter(wholes), iter(lone)
        contexts, continuations = [], []
        for context, _ in moved:
            if context:
                first, second = context_ids[context], next(whole_iterator)[len(context_ids[context]) :]
            else:
                first, second = [self.prefix_token], next(lone_iterator)
                if second[:1] == first:
                    second = second[1:]
            contexts.append(np.array(first, np.int32))
            continuations.append(np.array(second, np.int32))
        return contexts, continuations


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _split(tokens: Ids, ends: npt.NDArray[np.int64]) -> list[Ids]:
    return np.split(tokens, ends[:-1])
