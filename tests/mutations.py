"""Damaged copies of a file, drawn from a seed: bytes that are cut, flipped or put in front, and JSON whose values have
other types, other sizes, or are nested without end."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

DEEP = 100_000
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1 << 70,
    1e308,
    float("nan"),
    "",
    "x",
    "é\u202e\x1b[31m",
    "../../etc/passwd",
    "a" * 5_000,
    [],
    {},
    ["a"],
    [None],
    {"a": 1},
    [[[[]]]],
)
_WHOLE = (b"", b"null", b"[]", b"{}", b"3", b'"text"', b"\x00" * 64, b"[1, 2", b"not JSON")
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def mutate_bytes(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """What was done, and the damaged bytes."""
    kind = draw.choice(_BYTE_KINDS)
    return kind.__name__.strip("_"), kind(content, draw)


def mutate_json(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """As `mutate_bytes`, of a JSON document whose syntax mostly stays whole."""
    if draw.random() < 0.3:
        return mutate_bytes(content, draw)
    document = json.loads(content)
    told = "unchanged"
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        told = _change(document, draw)
    return told, json.dumps(document, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")


def mutate_lines(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """As `mutate_json`, of one line of several."""
    lines = content.splitlines(keepends=True)
    number = draw.randrange(len(lines))
    told, line = mutate_json(lines[number], draw)
    lines[number] = line + b"\n"
    return f"line {number + 1}: {told}", b"".join(lines)


def mutate_header(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """As `mutate_json`, of the header of a SafeTensors file."""
    length = struct.unpack("<Q", content[:8])[0]
    if draw.random() < 0.1:
        return "length", struct.pack("<Q", draw.choice((0, 1, length - 1, length + 1, 1 << 40, 1 << 63))) + content[8:]
    told, header = mutate_json(content[8 : 8 + length], draw)
    return told, struct.pack("<Q", len(header)) + header + content[8 + length :]


def _change(document: Any, draw: random.Random) -> str:
    """Change one value somewhere in the document, in place."""
    place, path = document, ""
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return f"{path or 'the whole'} is empty"
        key = draw.choice(keys)
        inner = place[key]
        path += f"/{key}"
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.2:
            break
        place = inner
    kind = draw.random()
    if kind < 0.15:
        del place[key]
        return f"{path} deleted"
    if kind < 0.25 and isinstance(place, dict):
        place[draw.choice(("added", "", "__class__"))] = draw.choice(VALUES)
        return f"a key beside {path}"
    if kind < 0.3:
        nested: Any = []
        for _ in range(draw.choice((50, 150, 190))):
            nested = [nested] if draw.random() < 0.5 else {"a": nested}
        place[key] = nested
        return f"{path} nested"
    value = draw.choice(VALUES)
    if isinstance(inner, int | float) and draw.random() < 0.4:
        value = draw.choice((-inner, inner + 1, inner * 1_000_003, str(inner), [inner], inner / 3))
    place[key] = value
    return f"{path} = {str(value)[:30]!r}"


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 4, 32))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _marked(content: bytes, draw: random.Random) -> bytes:
    return draw.choice(_MARKS) + content


def _in_utf16(content: bytes, draw: random.Random) -> bytes:
    return content.decode("latin-1").encode("utf-16")


def _no_utf8(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    return content[:place] + draw.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00")) + content[place:]


def _deep(content: bytes, draw: random.Random) -> bytes:
    depth = draw.choice((1_000, DEEP))
    opened, closed = draw.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return opened * depth + b"1" + closed * depth


def _deep_inside(content: bytes, draw: random.Random) -> bytes:
    depth = draw.choice((1_000, DEEP))
    return content.rstrip()[:-1] + b', "deep": ' + b"[" * depth + b"]" * depth + b"}"


def _replaced(content: bytes, draw: random.Random) -> bytes:
    return draw.choice(_WHOLE)


def _with_more(content: bytes, draw: random.Random) -> bytes:
    return content + draw.choice((b"\0", b"}", b"\n{}\n", content))


_BYTE_KINDS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _cut,
    _flipped,
    _marked,
    _in_utf16,
    _no_utf8,
    _deep,
    _deep_inside,
    _replaced,
    _with_more,
)
