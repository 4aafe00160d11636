"""Words for people: what is wrong with a value that a user gave, and lists of names cut short."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "one name or several",
    "dict": "names with a value each",
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "more than {gt:g}",
    "less_than": "less than {lt:,}",
    "literal_error": "{expected}",
}
"""by pydantic's name of an error, or what it begins with"""


def describe_mismatch(error: "ErrorDetails") -> str:
    """What was found and what is expected."""
    context = error.get("ctx", {})
    if "error" in context:  # a message of ours says all
        return str(context["error"])
    kind = error["type"]
    expected = _EXPECTED.get(kind) or _EXPECTED.get(kind.partition("_")[0])
    told = f"expected {expected.format(**context)}" if expected else error["msg"].lower()
    return f"found {error['input']!r}, {told}"


def name_some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and that there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def first_line(error: BaseException, most: int = 200) -> str:
    """What an exception says in its first line, and in the next ones where that leads to them with a colon, cut to
    ``most`` characters; its name where it says nothing."""
    text = ""
    for line in filter(None, map(str.strip, str(error).splitlines())):
        text = f"{text} {line}".strip()
        if not line.endswith(":"):
            break
    text = text.rstrip(": ") or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"


def list_words(words: Sequence[str]) -> str:
    """Words as a sentence lists them: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
