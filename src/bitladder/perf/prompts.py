"""Prompts: windows of equal length from WikiText-2, the same token ids for every rung."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from bitladder.errors import UserError
from bitladder.hub import offline_without_network
from bitladder.records import Prompts, hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WIKITEXT = "Salesforce/wikitext"
WIKITEXT_CONFIG = "wikitext-2-raw-v1"
WIKITEXT_SPLIT = "test"


def load_prompts(
    tokenizer: "PreTrainedTokenizerBase", prompt_tokens: int, *, datasets: str | None, builtin: bool
) -> Prompts:
    """Non-overlapping windows of ``prompt_tokens`` tokens of WikiText-2's joined test split.

    The text is tokenized once, without special tokens, as is usual for perplexity. It comes from the mirror
    ``datasets``, else from the Hub or its cache. The packaged prose stands in for a ``builtin`` model without a
    mirror, and for a mirror without WikiText; ``origin`` says which it was.

    Raises UserError for a mirror that lacks the split, a Hub that can't be reached, and a text too short for one
    window.
    """
    text, origin = read_text(datasets, builtin)
    token_ids: Sequence[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    windows = cut_windows(token_ids, prompt_tokens)
    if not windows:
        raise UserError(f"{origin}: {len(token_ids)} tokens, {prompt_tokens} needed; choose a smaller --prompt-tokens")
    return Prompts(token_ids=windows, prompts_hash=hash_json(windows), origin=origin)


def cut_windows(token_ids: Sequence[int], window_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Non-overlapping windows, (windows, window_tokens); the rest at the end is left out."""
    whole = len(token_ids) // window_tokens
    return tuple(tuple(token_ids[i * window_tokens : (i + 1) * window_tokens]) for i in range(whole))


def read_text(mirror: str | None, builtin: bool) -> tuple[str, str]:
    """The text that prompts are cut from, and its origin. Raises as `load_prompts`."""
    if mirror is None:
        if builtin:
            return _read_prose(), "built-in prose"
        return _read_wikitext(WIKITEXT), f"{WIKITEXT} {WIKITEXT_CONFIG} {WIKITEXT_SPLIT}"
    if not Path(mirror).is_dir():
        raise UserError(f"{mirror}: no such folder; expected a mirror of data sets in Hub layout")
    folder = Path(mirror) / WIKITEXT
    if not folder.is_dir():
        return _read_prose(), f"built-in prose ({mirror} has no {WIKITEXT})"
    if not list(folder.glob(f"**/*{WIKITEXT_SPLIT}*")):
        raise UserError(f"{folder}: no split {WIKITEXT_SPLIT!r} of {WIKITEXT_CONFIG}; add it, or leave out --datasets")
    return _read_wikitext(str(folder)), f"{WIKITEXT} {WIKITEXT_CONFIG} {WIKITEXT_SPLIT}"


def _read_wikitext(path: str) -> str:
    import datasets

    datasets.disable_progress_bars()
    try:
        with offline_without_network() if path == WIKITEXT else nullcontext():
            rows: Mapping[str, Sequence[str]] = datasets.load_dataset(path, WIKITEXT_CONFIG, split=WIKITEXT_SPLIT)
    except ConnectionError as error:
        raise UserError(
            f"{WIKITEXT}: neither reachable nor cached ({error}); give --datasets a mirror that has it"
        ) from None
    return "".join(rows["text"])


def _read_prose() -> str:
    folder = files("bitladder.accuracy") / "builtin"
    sources = sorted((entry for entry in folder.iterdir() if "prose" in entry.name), key=lambda entry: entry.name)
    lines = [line for source in sources if source.name.endswith(".jsonl") for line in source.read_text().splitlines()]
    return "\n\n".join(json.loads(line)["text"] for line in lines)
