"""In which order a task's documents are asked, where asking stops once the comparison is decided."""

import hashlib

from bitladder.records.base import Record


class Order(Record):
    """One random order of a task's documents for all rungs, cut into stages.

    Documents of one cluster come together, and a question that several tasks ask comes at the same place in each.
    """

    seed: int
    stops: tuple[int, ...] = ()
    """of a plan: documents asked by the end of each stage, the last of all; not of a measurement, whose identity
    depends on its own documents alone"""
    chunk: tuple[int, int] | None = None
    """of a measurement: its documents' places in the order, from the first to before the second"""

    @property
    def chunks(self) -> tuple[tuple[int, int], ...]:
        """The places of each stage's documents; a stage may have none."""
        return tuple(zip((0, *self.stops), self.stops, strict=False))


PASSAGE = "passage "
"""begins the label of a cluster that is known by a text, which is the same in every task that quotes it"""


def order_key(seed: int, label: str) -> str:
    """What documents are sorted by; ``label`` is that of their cluster, else their hash."""
    return hashlib.sha256(f"{seed} {label}".encode()).hexdigest()
