"""Text from outside - names, paths, reasons, answers - made unable to command what shows it."""

import re

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
