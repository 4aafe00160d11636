"""``bitladder.json``, the record beside a checkpoint, with the hashes it is held to; and whether tokenizers agree."""

import functools
import itertools
import json
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bitladder.errors import UserError
from bitladder.files import sha256_file
from bitladder.machine import host
from bitladder.methods import method_of
from bitladder.records import Manifest, ManifestFile, Scheme, parse_record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MANIFEST_NAME = "bitladder.json"

# bitsandbytes in plain ones too: their recipes were hashed with it.
_LIBRARIES = ("accelerate", "bitsandbytes", "safetensors", "tokenizers", "torch", "transformers")


def library_versions(scheme: Scheme) -> dict[str, str]:
    """Installed versions of Python and the libraries that a checkpoint's bytes depend on; none of them is imported."""
    return host.library_versions(tuple(dict.fromkeys((*_LIBRARIES, *method_of(scheme).packages))))


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a checkpoint, None where it has none. Raises BrokenFileError where it can't be read."""
    path = directory / MANIFEST_NAME
    mend = "restore it from a copy, or make the checkpoint anew"
    return parse_record(Manifest, path.read_bytes(), path, mend) if path.is_file() else None


def verify_files(directory: Path, manifest: Manifest, names: Iterable[str] | None = None) -> list[str]:
    """What differs from the manifest, one line a file: missing, another size, another SHA-256. Empty is good.

    ``names``: of these files alone.
    """
    differences = []
    same_size = []
    for name in manifest.files if names is None else names:
        recorded = manifest.files[name]
        path = directory / name
        if not path.is_file():
            differences.append(f"{name}: missing")
        elif path.stat().st_size != recorded.size_bytes:
            differences.append(f"{name}: {path.stat().st_size:,} bytes, {recorded.size_bytes:,} recorded")
        else:
            same_size.append(name)
    for name, found in hash_files(directory, same_size).items():
        if found.sha256 != manifest.files[name].sha256:
            differences.append(f"{name}: SHA-256 {found.sha256[:12]}…, {manifest.files[name].sha256[:12]}… recorded")
    return differences


def suspect_files(directory: Path, manifest: Manifest, since_ns: int) -> list[str]:
    """Names of what may differ from the manifest, found without reading: missing files, and weights of another size or
    written at ``since_ns`` or later. What people edit beside the weights is their own."""
    suspects = []
    for name, recorded in manifest.files.items():
        path = directory / name
        if not path.is_file():
            suspects.append(name)
        elif name.endswith(".safetensors"):
            status = path.stat()
            if status.st_size != recorded.size_bytes or status.st_mtime_ns >= since_ns:
                suspects.append(name)
    return suspects


def hash_files(directory: Path, names: Iterable[str] | None = None) -> dict[str, ManifestFile]:
    """Size and SHA-256 of the named files of a directory, or of all below it but a manifest.

    Hashed side by side; a file that hasn't changed since this process last hashed it is not read again.
    """
    if names is None:
        found = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
        names = [name for name in found if name != MANIFEST_NAME]
    names = sorted(names)
    with ThreadPoolExecutor() as pool:
        files = pool.map(_hash_file, [directory / name for name in names])
        return dict(zip(names, files, strict=True))


def _hash_file(path: Path) -> ManifestFile:
    status = path.stat()
    return _hash_unchanged(path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _hash_unchanged(path: Path, inode: int, size_bytes: int, mtime_ns: int) -> ManifestFile:
    return ManifestFile(sha256=sha256_file(path), size_bytes=size_bytes)


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
