"""How a study's checkpoints and measurements ended."""

from bitladder.records import Item, MeasurementRecord, Outcome, PerformanceOutcome, RungRecord, Scenario
from bitladder.results import Results, item_name, same_contents
from bitladder.stats.performance import Timeline
from bitladder.stats.row import Leaf
from bitladder.unknown import Kind, Unknown

_TO_COME: tuple[Kind, ...] = ("not_made", "not_measured", "unplanned")
"""that a study, or another one that is merged with it, may still come to"""


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
    def unmade(self) -> Unknown | None:
        """Why there is no checkpoint."""
        return Unknown(kind="not_made") if self.record is None else _ended(self.record)

    def is_missing(self, item: Item) -> bool:
        """Whether the study has not come to it: neither its own end nor its rung's is known."""
        found = self.outcome(item)
        return isinstance(found, Unknown) and found.kind in _TO_COME

    def is_unplanned(self, item: Item) -> bool:
        """Whether it is missing since no part of a merged study plans it."""
        return self.is_missing(item) and (self.rung, item_name(item)) in self._unplanned

    def recorded(self, item: Item) -> MeasurementRecord | None:
        """Of its present checkpoint, however it ended."""
        return self._records.get(_key(item)) if self.unmade is None else None

    def outcome(self, item: Item) -> Outcome | Unknown:
        """What was measured."""
        return self._outcome(_key(item))

    def leaf(self, task: str) -> Leaf:
        found = self._outcome(("accuracy", task))
        assert isinstance(found, Leaf)  # an item's kind is its outcome's
        return found

    def _outcome(self, key: tuple[str, str]) -> Outcome | Unknown:
        if self.unmade is not None:
            return self.unmade
        record = self._records.get(key)
        if record is None:
            return self._missing(key[1])
        if (ended := _ended(record)) is not None:
            return ended
        if record.outcome is None or record.outcome.kind != record.item.kind:
            return Unknown("its record has no outcome", "failed")
        return record.outcome

    def _missing(self, name: str) -> Unknown:
        if self.same_as is not None:
            return Unknown(self.same_as, "same_content")
        if (self.rung, name) in self._unplanned:
            return Unknown(kind="unplanned")
        return Unknown(kind="elsewhere" if (self.rung, name) in self._elsewhere else "not_measured")

    def timeline(self, scenario: Scenario) -> Timeline | Unknown:
        """The same one each time, since every other rung is held against it."""
        outcome = self.outcome(scenario)
        if isinstance(outcome, Unknown):
            return outcome
        assert isinstance(outcome, PerformanceOutcome)  # an item's kind is its outcome's
        return self._timelines.setdefault(scenario.scenario, Timeline(outcome))


def _ended(record: RungRecord | MeasurementRecord) -> Unknown | None:
    """How it ended that did not end well."""
    return None if record.status == "ok" else Unknown(record.reason or "", record.status)


def _key(item: Item) -> tuple[str, str]:
    return item.kind, item_name(item)
