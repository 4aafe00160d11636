"""Prompts: windows of equal length from a text, the same token ids for every rung."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bitladder.corpus import Corpus
from bitladder.errors import UserError
from bitladder.records import Prompts, hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def cut_prompts(tokenizer: "PreTrainedTokenizerBase", prompt_tokens: int, corpus: Corpus) -> Prompts:
    """Non-overlapping windows of ``prompt_tokens`` tokens of the joined documents.

    The text is tokenized once, without special tokens, as is usual for perplexity. Raises UserError for a text too
    short for one window.
    """
    token_ids: Sequence[int] = tokenizer(corpus.text, add_special_tokens=False, verbose=False)["input_ids"]
    windows = cut_windows(token_ids, prompt_tokens)
    if not windows:
        raise UserError(
            f"{corpus.origin}: {len(token_ids):,} tokens, {prompt_tokens:,} needed; choose a smaller --prompt-tokens"
        )
    return Prompts(token_ids=windows, prompts_hash=hash_json(windows), origin=corpus.origin)


def cut_windows(token_ids: Sequence[int], window_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Non-overlapping windows, (windows, window_tokens); the rest at the end is left out."""
    whole = len(token_ids) // window_tokens
    return tuple(tuple(token_ids[i * window_tokens : (i + 1) * window_tokens]) for i in range(whole))
