"""Python's collector of cycles, which looks through all objects again and again while millions of them are made."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No cycle is looked for in the block, and only among what it made after it: that took a quarter to a third of the
    time of tasks with thousands of questions."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
            gc.collect(1)
