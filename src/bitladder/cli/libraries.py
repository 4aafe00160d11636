"""Other people's libraries while a command works."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

_STDOUT, _STDERR = 1, 2


@contextmanager
def libraries_on_stderr() -> Iterator[None]:
    """Inside the block, what is printed goes to the standard error: GPTQModel greets, and the output is for results.

    What compilers and other child processes print goes there too.
    """
    sys.stdout.flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, _STDOUT)
        os.close(kept)
