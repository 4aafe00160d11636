"""Words for people: what is wrong with a value, lists cut short, text from outside made harmless, Markdown cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment
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


def describe_mismatch(error: ErrorDetails) -> str:
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


_COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, of which a terminal obeys ESC, CR and BEL; without tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # turn the order of what stands around them
    "\u2028\u2029\ud800-\udfff\ufffe\uffff]"  # line ends for some, and what is no character: vl-convert panics at some
)


def printable(text: str) -> str:
    """The text with controls, marks of direction and half characters as ``\\u001b``, as JSON may write them."""
    return _COMMANDS.sub(_code, text)


def one_line(text: str) -> str:
    """The same with line ends and tabs as such codes too: what it says can't pose as another line."""
    return re.sub(r"[\n\t]", _code, printable(text))


def _code(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def markdown_environment(package: str) -> Environment:
    """The templates of a package; text from outside goes through the filter `md`."""
    import markupsafe
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(package),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown is escaped by the filter
    )
    environment.filters["md"] = escape
    # Markdown within an HTML tag is no Markdown: its escapes would show, and let tags through.
    environment.filters["html"] = lambda text: str(markupsafe.escape(one_line(text)))
    return environment


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no tags, links, images, table breaks, headings, lists, rules or fences."""
    flat = printable(" ".join(text.split()))
    escaped = re.sub(r"([\\`*<|])", r"\\\1", flat)
    escaped = re.sub(r"\](?=[(\[])", r"]\\", escaped)  # of a link, and of one by reference
    return re.sub(r"^(?=[-+#=>~](?:[-+#=>~\s]|$)|\[[^\]]*\]:)", r"\\", escaped)  # last: what a reference is to
