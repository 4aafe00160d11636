"""How a study's checkpoints and measurements ended."""

from bitladder.records import AccuracyOutcome, Item, MeasurementRecord, PerformanceOutcome, RungRecord, Scenario
from bitladder.results import Results, item_name, not_measured_as, same_contents
from bitladder.stats.performance import Timeline
from bitladder.stats.row import Leaf
from bitladder.stats.summary import End, describe_end

NOT_MADE = "not made yet; run the study again to go on"
NOT_MEASURED = "not measured yet; run the study again to go on"
NOT_HERE = "not measured on this machine"
NOT_PLANNED = "measured by none of the merged studies"


class Ends:
    """What came of one rung and of each of its measurements."""

    def __init__(self, results: Results, rung: str) -> None:
        self.rung = rung
        self.record: RungRecord | None = results.rungs.get(rung)
        self._records = {_key(record.item): record for record in results.of(rung)}
        self._elsewhere = results.elsewhere
        self._unplanned = results.unplanned
        self._timelines: dict[str, Timeline] = {}
        self.same_as = None if self._records else same_contents(results.study, results.rungs).get(rung)
        """the rung whose content this one's is, where nothing was measured of this one"""

    @property
    def status(self) -> End:
        return "missing" if self.record is None else self.record.status

    @property
    def reason(self) -> str | None:
        return NOT_MADE if self.record is None else self.record.reason

    def is_missing(self, item: Item) -> bool:
        """Whether the study has not come to it: neither its own end nor its rung's is known."""
        return self.measurement(item)[2] in (NOT_MADE, NOT_MEASURED, NOT_PLANNED)

    def is_unplanned(self, item: Item) -> bool:
        """Whether it is missing since no part of a merged study plans it."""
        return self.is_missing(item) and (self.rung, item_name(item)) in self._unplanned

    def measurement(self, item: Item) -> tuple[MeasurementRecord | None, End, str | None]:
        """Its record if there is one, how it ended, and why not well."""
        if self.status != "ok":
            return None, self.status, self.reason
        record = self._records.get(_key(item))
        if record is None:
            return None, "missing", self._missing(item_name(item))
        if record.status == "ok" and record.outcome is None:
            return record, "failed", "its record has no outcome"
        return record, record.status, record.reason

    def leaf(self, task: str) -> Leaf:
        record = self._records.get(("accuracy", task)) if self.status == "ok" else None
        if record is not None and isinstance(record.outcome, AccuracyOutcome) and record.status == "ok":
            return record.outcome
        if record is not None:
            return describe_end(record.status, record.reason)
        return self._missing(task) if self.status == "ok" else describe_end(self.status, self.reason)

    def _missing(self, name: str) -> str:
        if self.same_as is not None:
            return not_measured_as(self.same_as)
        if (self.rung, name) in self._unplanned:
            return NOT_PLANNED
        return NOT_HERE if (self.rung, name) in self._elsewhere else NOT_MEASURED

    def performance(self, scenario: Scenario) -> PerformanceOutcome | None:
        record, status, _ = self.measurement(scenario)
        if record is None or status != "ok" or not isinstance(record.outcome, PerformanceOutcome):
            return None
        return record.outcome

    def timeline(self, scenario: Scenario) -> Timeline | None:
        """Of `performance`; the same one each time, since every other rung is held against it."""
        outcome = self.performance(scenario)
        if outcome is None:
            return None
        return self._timelines.setdefault(scenario.scenario, Timeline(outcome))


def _key(item: Item) -> tuple[str, str]:
    return item.kind, item_name(item)
