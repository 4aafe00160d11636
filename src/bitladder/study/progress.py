"""What a study tells while it runs. The default says nothing; the command line shows a bar or plain lines."""

from collections.abc import Collection

from bitladder.records import MeasurementRecord, RungRecord


class StudyProgress:
    """Receives a study's events. Subclass to show them."""

    def preparing(self, what: str) -> None:
        """A step before the plan is made."""

    def warn(self, what: str) -> None:
        """The study goes on, but its figures will say less than they might."""

    def planned(self, measurements: int, finished: int) -> None:
        """``finished`` of ``measurements`` have a record already."""

    def time_left(self, seconds: float) -> None:
        """About so long from now on, as planned and at the pace so far; told before what changed it."""

    def phase(self, rung: str, what: str) -> None:
        """A worker begins."""

    def step(self, done: int, total: int) -> None:
        """Requests or questions done within the measurement in flight."""

    def rung(self, record: RungRecord) -> None:
        """A rung's checkpoint is made and audited, or not."""

    def stage(self, number: int, stages: int, rungs: Collection[str]) -> None:
        """Documents of a stage are asked of these rungs, where asking stops when decided; numbered from 1."""

    def measured(self, record: MeasurementRecord) -> None:
        """A measurement left its record."""


def busy_warning(share: float) -> str:
    return f"other programs keep {share:.0%} of the processors busy, and times measured now say little; end them first"
