"""Other people's libraries while a command works."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def libraries_on_stderr() -> Iterator[None]:
    """Inside the block, what is printed goes to the standard error: GPTQModel greets, and the output is for results."""
    with redirect_stdout(sys.stderr):
        yield
