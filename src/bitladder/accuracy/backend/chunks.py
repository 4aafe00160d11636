"""Requests in chunks, so that the next is tokenized and planned while the device works on those before."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from bitladder.accuracy.backend.seams import common_length

Item = TypeVar("Item")

_CHARACTERS_PER_TOKEN = 4
_FIRST = 0.25
"""budgets' worth of the first chunk: nothing happens on the device before it is ready"""
_LARGEST = 2.0
"""budgets' worth at most: a device takes about a thousand kernels in advance, the work of one or two batches"""


def split_requests(pairs: Sequence[tuple[str, str]], token_budget: int) -> list[tuple[int, int]]:
    """Starts and ends of chunks of (context, continuation) strings: a pure function of them and the token budget.

    The first is small and each twice as large as the one before, up to `_LARGEST`.
    What a string shares with the context before it counts once, as it is forwarded once. A context isn't parted from
    the next request's, where that is the same.
    """
    bounds = [0]
    budgets, characters = _FIRST, 0
    before = ""
    for index, (context, continuation) in enumerate(pairs):
        if context != before:
            if characters >= budgets * token_budget * _CHARACTERS_PER_TOKEN:
                bounds.append(index)
                budgets, characters = min(2 * budgets, _LARGEST), 0
            characters += len(context) - common_length(before, context)
            before = context
        characters += len(continuation)
    bounds.append(len(pairs))
    return list(itertools.pairwise(bounds)) if pairs else []


def made_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made by a thread while the one before is used; what making one raises is raised here."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="plans") as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # it isn't the end
