"""JSON that others may have written: whatever is wrong with it is one line that names the file.

Rust's parser, which pydantic brings along, refuses what Python's lets through or fails at: nesting beyond 200 levels,
lone surrogates, numbers of thousands of digits. A key that is there twice has its last value, as in Python.
"""

from pathlib import Path
from typing import Any

from bitladder.errors import BrokenFileError

_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
"""byte-order marks of UTF-8 and UTF-16, which no library of Hugging Face's reads either"""

_LINE_IN_TEXT = "control character (\\u0000-\\u001F) found while parsing a string"


def parse_json(text: str | bytes, where: object, mend: str) -> Any:
    """The value of a JSON text in UTF-8. Raises BrokenFileError for what is none.

    ``where``: the file, or the line of one, that it was read from. ``mend``: what to do about it.
    """
    from pydantic_core import from_json

    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if data.startswith(_MARKS):
        raise BrokenFileError(f"{where}: begins with a byte-order mark; save it as UTF-8 without one")
    if not data.strip():
        raise BrokenFileError(f"{where}: empty, expected JSON; {mend}")
    try:
        return from_json(data)
    except ValueError as error:
        reason = str(error).replace("recursion limit exceeded", "nested too deep")
        reason = reason.replace(_LINE_IN_TEXT, "a text that no quote ends in its line, or a control character in one,")
        raise BrokenFileError(f"{where}: not JSON ({reason}); {mend}") from None


def parse_json_object(text: str | bytes, where: object, mend: str) -> dict[str, Any]:
    """As `parse_json`; anything but an object is refused, too."""
    value = parse_json(text, where, mend)
    if not isinstance(value, dict):
        raise BrokenFileError(f"{where}: {_kind(value)}, expected a JSON object; {mend}")
    return value


def read_json_object(path: Path, mend: str) -> dict[str, Any]:
    """The object that a file holds. Raises BrokenFileError where it holds none."""
    return parse_json_object(path.read_bytes(), path, mend)


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
