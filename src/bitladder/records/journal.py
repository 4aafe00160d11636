"""What is kept of a measurement for as long as it has no record."""

from bitladder.records.base import Record


class JournalEntry(Record):
    """What one batch of a measurement gave."""

    key: str
    """what it was computed with: an entry of another machine isn't used"""
    plan: str
    batch: int
    values: str
    """base64 of FP32, (2, targets): log-probability, and 1 where the target is the first choice"""
    elapsed_s: float
    """that the measurement had taken by then, in all its runs"""
