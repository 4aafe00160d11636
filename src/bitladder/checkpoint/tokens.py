"""Whether two checkpoints' tokenizers give the same token ids."""

import itertools
import json
import random
from collections.abc import Iterable
from typing import TYPE_CHECKING

from bitladder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = 1_000
_BATCH = 256
_SHOWN_CHARACTERS = 60
_POOLS = (
    "the quick brown fox Jumps OVER lazy dogs isn't they'll co-operate Straße",
    "0 7 42 1999 3.14159 1,000,000 6e-23 0x1F 50% £12.50 2026-11-25 ½ ²",
    "def f(x): return x**2 {'a': [1]} != <= -> // /* */ #include; `ls -la`\\n ===",
    "naïve café Ünïcödé ąęł čšž ñandú e\u0301 \u00e9 ﬁ",
    "数字 精度 模型 量子化 テスト ひらがな 한국어 讀寫 。",
    "Привет мир γειά שלום مرحبا नमस्ते ไทย",
    "😀 👍🏽 👩‍💻 🇪🇺 ❤️ ✓ → \u200b \ufeff",
    "<s> </s> <|im_start|> <|im_end|> <|endoftext|> <|start|> <|end|> [INST] [/INST] <unk> <pad> [MASK] <0x0A> <|im_",
)
_GAPS = (" ", " ", " ", "", "  ", "    ", "\t", "\n", "\n\n", " \n  ", "\u00a0", "\r\n")


def probe_texts() -> list[str]:
    """1,000 strings, the same every time: words, digits, code, accents, scripts, emoji, what looks like special tokens,
    with runs of white space between and around."""
    draw = random.Random(0)
    pools = [pool.split(" ") for pool in _POOLS]
    return [_probe(draw, pools) for _ in range(PROBES)]


def _probe(draw: random.Random, pools: list[list[str]]) -> str:
    parts = [draw.choice(_GAPS)]
    for _ in range(draw.randint(1, 12)):
        parts += [draw.choice(draw.choice(pools)), draw.choice(_GAPS)]
    return "".join(parts)


def same_rules(one: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase") -> bool:
    """Whether both are made of the same vocabulary and rules, so that no text needs to be tried. False: not known."""
    first, second = (getattr(tokenizer, "backend_tokenizer", None) for tokenizer in (one, other))
    if first is None or second is None:
        return False
    mine, theirs = (json.loads(backend.to_str()) for backend in (first, second))
    for rules in (mine, theirs):
        rules.pop("padding", None)
        rules.pop("truncation", None)
    return bool(mine == theirs)


def require_same_tokens(
    baseline: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase", texts: Iterable[str]
) -> None:
    """Raise UserError naming the first text on which ``other`` gives other token ids than the baseline's tokenizer."""
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, _BATCH)):
        ours, theirs = (tokenizer(batch, verbose=False)["input_ids"] for tokenizer in (baseline, other))
        for text, expected, found in zip(batch, ours, theirs, strict=True):
            if expected != found:
                raise _different(text, expected, found)


def require_same_ends(baseline: "PreTrainedTokenizerBase", other: "PreTrainedTokenizerBase") -> None:
    """Raise UserError where text begins or ends with another token than in the baseline."""
    for name in ("bos_token_id", "eos_token_id"):
        expected, found = getattr(baseline, name), getattr(other, name)
        if expected != found:
            raise UserError(
                f"another tokenizer than the baseline's: {name} {found}, expected {expected}; "
                "give a checkpoint with the baseline's tokenizer"
            )


def _different(text: str, expected: list[int], found: list[int]) -> UserError:
    differing = (i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1])
    place = next(differing, min(len(expected), len(found)))
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return UserError(
        f"another tokenizer than the baseline's: {shown!r} gives token ids {_near(found, place)}, expected "
        f"{_near(expected, place)} (at position {place}); give a checkpoint with the baseline's tokenizer"
    )


def _near(token_ids: list[int], place: int) -> str:
    return f"{', '.join(map(str, token_ids[place : place + 4])) or 'no more'}"
