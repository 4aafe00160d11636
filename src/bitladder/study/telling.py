"""What is told while a study runs: its plan, the time left, and what its user should know."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from bitladder.environment import BUSY_SHARE, busy_share
from bitladder.records import MeasurementRecord, Scenario
from bitladder.results import is_planned, not_measured_as
from bitladder.store import Store
from bitladder.study.missing import Missing
from bitladder.study.progress import StudyProgress, busy_warning
from bitladder.study.time_left import TimeLeft


@dataclass
class Telling:
    """Tells ``progress`` what follows from the plan and what is missing of it."""

    progress: StudyProgress
    left: TimeLeft
    store: Store
    missing: Missing
    only: Literal["accuracy", "performance"] | None = None
    """the half that is asked for"""
    warned: bool = False
    """that others keep the processors busy"""

    def changed(self) -> None:
        """Which ready checkpoints are no longer what was audited."""
        for name in self.missing.study.added:
            record = self.store.read_rung(name)
            if record is not None and not is_planned(self.missing.study, record):
                self.progress.warn(
                    f"{name}: its files have changed since its audit, which is made anew; nothing that was measured "
                    "of other weights is shown any more"
                )

    def same(self, told: Mapping[str, str]) -> None:
        """What is left out, and the plan anew where it was told with it, as it is before a checkpoint is made."""
        same = self.missing.same
        for name, other in same.items():
            self.progress.warn(f"{name}: {not_measured_as(other)}")
        if same != told:
            self.plan()

    def plan(self, *, staged: bool = True) -> None:
        """With all that the stages may ask, or with what they have asked."""
        missing = self.missing
        total = len(missing.measured) * len(missing.all_items)
        if not staged:
            total -= sum(len(missing.of(record, missing.staged_items)) for record in missing.measured)
        self.progress.time_left(self.left.seconds)
        self.progress.planned(total, missing.recorded)

    def measured(self, record: MeasurementRecord) -> None:
        self.left.measured(record.rung, record.item, record.duration_s)
        self.progress.time_left(self.left.seconds)
        self.progress.measured(record)

    def other_half(self, asked: Collection[str]) -> None:
        """With ``only`` the half that isn't asked for stays in the plan, and so is measured where something lacks."""
        missing, only = self.missing, self.only
        if only is None:
            return
        others = tuple(item for item in missing.whole_items if isinstance(item, Scenario) == (only == "accuracy"))
        is_asked = only == "performance" and bool(asked)
        if is_asked or any(missing.of(record, others) for record in missing.rungs.values()):
            half = "performance" if only == "accuracy" else "accuracy"
            self.progress.warn(
                f"--only {only}: {self.store.directory} has {half} in its plan too, which is measured where it is "
                f"missing; take another --out for {only} alone"
            )

    def busy_share(self) -> float:
        """How busy others keep the processors, told once where that spoils what is measured."""
        share = busy_share()
        if share > BUSY_SHARE and not self.warned:
            self.warned = True
            self.progress.warn(busy_warning(share))
        return share
