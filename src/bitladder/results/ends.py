"""How a study's checkpoints and measurements ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from bitladder.records import AccuracyOutcome, Item, MeasurementRecord, Outcome, RungRecord
from bitladder.results import Results, item_name, same_contents
from bitladder.unknown import Kind, Unknown

_TO_COME: tuple[Kind, ...] = ("not_made", "not_measured", "unplanned")
"""that a study, or another one that is merged with it, may still come to"""


@dataclass(frozen=True)
class End:
    """What came of one measurement that is planned."""

    item: Item
    name: str
    record: MeasurementRecord | None
    """of the rung's present checkpoint, however it ended"""
    outcome: Outcome | Unknown
    is_planned: bool
    """False where no part of a merged study plans it"""

    @property
    def is_missing(self) -> bool:
        """Whether the study has not come to it: neither its own end nor its rung's is known."""
        return isinstance(self.outcome, Unknown) and self.outcome.kind in _TO_COME


@dataclass(frozen=True)
class Ends:
    """What came of one rung and of each of its measurements."""

    rung: str
    record: RungRecord | None
    unmade: Unknown | None
    """why there is no checkpoint"""
    same_as: str | None
    """the rung whose content this one's is, where nothing was measured of this one"""
    records: tuple[MeasurementRecord, ...]
    measurements: tuple[End, ...]
    """in the order of the plan"""

    @cached_property
    def answers(self) -> Mapping[str, AccuracyOutcome | Unknown]:
        """By task."""
        found = {end.name: end.outcome for end in self.measurements if end.item.kind == "accuracy"}
        return {task: one for task, one in found.items() if isinstance(one, AccuracyOutcome | Unknown)}


def read_ends(results: Results) -> dict[str, Ends]:
    """Of each planned rung."""
    same = same_contents(results.study, results.rungs)
    return {rung: _read(results, rung, same.get(rung)) for rung in results.study.rungs}


def _read(results: Results, rung: str, same_as: str | None) -> Ends:
    record, records = results.rungs.get(rung), results.of(rung)
    unmade = Unknown(kind="not_made") if record is None else _ended(record)
    same_as = None if records else same_as
    measured = {(one.item.kind, item_name(one.item)): one for one in records} if unmade is None else {}
    ends = []
    for item in results.study.items:
        name = item_name(item)
        found = measured.get((item.kind, name))
        outcome = _outcome(found) if found else unmade or _unmeasured(results, rung, name, same_as)
        ends.append(End(item, name, found, outcome, is_planned=(rung, name) not in results.unplanned))
    return Ends(rung, record, unmade, same_as, records, tuple(ends))


def _outcome(record: MeasurementRecord) -> Outcome | Unknown:
    if (ended := _ended(record)) is not None:
        return ended
    if record.outcome is None or record.outcome.kind != record.item.kind:
        return Unknown("its record has no outcome", "failed")
    return record.outcome


def _unmeasured(results: Results, rung: str, name: str, same_as: str | None) -> Unknown:
    if same_as is not None:
        return Unknown(same_as, "same_content")
    if (rung, name) in results.unplanned:
        return Unknown(kind="unplanned")
    return Unknown(kind="elsewhere" if (rung, name) in results.elsewhere else "not_measured")


def _ended(record: RungRecord | MeasurementRecord) -> Unknown | None:
    """How it ended that did not end well."""
    return None if record.status == "ok" else Unknown(record.reason or "", record.status)
