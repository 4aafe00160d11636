"""Other people's libraries while a command works."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

_STDOUT, _STDERR = 1, 2


@contextmanager
def libraries_on_stderr() -> Iterator[None]:
    """Inside the block, what is printed goes to the standard error: GPTQModel greets, and the output is for results.

    What compilers and other child processes print goes there too, and what C code prints. Nothing is done where one
    of the two is closed.
    """
    if sys.stdout is None or sys.stderr is None:
        yield
        return
    _flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()  # what was printed inside, by those who hold the standard output themselves
        os.dup2(kept, _STDOUT)
        os.close(kept)


def _flush() -> None:
    """Python's buffers of the standard output, and C's."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None:
            stream.flush()
    ctypes.CDLL(None).fflush(None)
