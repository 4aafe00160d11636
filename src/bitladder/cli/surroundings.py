"""What a command finds around it: standard streams that are closed or take ASCII alone, a folder that was deleted, and
names that are no text."""

import os
import sys
from pathlib import Path

from bitladder.errors import UserError

_PLACES = ("HOME", "BITLADDER_CACHE", "XDG_CACHE_HOME", "HF_HOME", "TMPDIR")
_NAMES = ("stdin", "stdout", "stderr")


def open_streams() -> None:
    """Open on nothing what of the three is closed, and let no character fail that the terminal can't show.

    A file that is opened next gets the lowest free number: without this a pipe or a log would become a child process's
    standard output.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets this number, the lowest that is free
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # ``\\u2026`` for what the encoding lacks, and ``\\udce9`` for a byte of a name that isn't UTF-8
            stream.reconfigure(errors="backslashreplace")


def require_names() -> None:
    """Raise UserError where the working folder was deleted, and for a name that is no text: none can stand in a record.

    A name is bytes to the system; what of it isn't in the encoding of names, UTF-8 on most machines, Python keeps as
    lone surrogates, which no JSON takes.
    """
    try:
        folder = str(Path.cwd())
    except FileNotFoundError:
        raise UserError("the folder that this runs in was deleted; change to another one") from None
    places = {"the folder that this runs in": folder, **{name: os.environ.get(name, "") for name in _PLACES}}
    for what, name in (*(("argument", argument) for argument in sys.argv[1:]), *places.items()):
        if not is_text(name):
            raise UserError(f"{what} {describe_name(name)}")


def is_text(name: str) -> bool:
    """Whether a name holds nothing that its encoding lacks."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def name_in(error: UnicodeEncodeError) -> str:
    """The name that could not be written, of a whole record what stands there between quotes."""
    text, start = error.object, error.start
    end = text.find('"', start)
    return text[text.rfind('"', 0, start) + 1 : end if end >= 0 else len(text)]


def describe_name(name: str) -> str:
    """A name that is no text, readable, and what to do about it."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        return f"'{shown}': not UTF-8; rename it, or give a link of another name"
    shown = name.encode("ascii", "backslashreplace").decode("ascii")
    return f"'{shown}': not {encoding}, the encoding of names here; set LC_ALL=C.UTF-8, or give a link of another name"
