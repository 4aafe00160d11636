"""The three standard streams and the working folder as a command finds them: closed, in ASCII, or deleted."""

import os
import sys
from pathlib import Path
from typing import TextIO

from bitladder.errors import UserError

_NAMES = ("stdin", "stdout", "stderr")


def open_streams() -> None:
    """Open on nothing what of the three is closed, and let no character fail that the terminal can't show.

    A file that is opened next gets the lowest free number: without this a pipe or a log would become a child process's
    standard output.
    """
    for number, name in enumerate(_NAMES):
        if not _is_open(number):
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets this number, the lowest that is free
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for stream in (sys.stdout, sys.stderr):
        escape_unencodable(stream)


def escape_unencodable(stream: TextIO, encoding: str | None = None) -> None:
    """Write ``\\u2026`` for what the encoding lacks, and ``\\udce9`` for a byte of a name that isn't UTF-8."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding=encoding, errors="backslashreplace")


def require_folder() -> None:
    """Raise UserError where the working folder was deleted."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the folder that this runs in was deleted; change to another one") from None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
