"""Tasks that are asked in stages: the measurements of one are written apart, and read as one record."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from bitladder.records import (
    AccuracyOutcome,
    AccuracyTask,
    Item,
    MeasurementRecord,
    Order,
    StudyRecord,
    hash_json,
    join_scorings,
    measurement_id,
    order_key,
)

STAGE_SHARES = (0.15, 0.45, 1.0)
"""of a row's clusters, that are asked by the end of each stage: of such shares and errors (`stats.looks`) those that
asked fewest questions where a rung equals the baseline, simulated by `benchmarks/until_decided.py`"""
FEWEST_CLUSTERS = 200
"""of the largest row: of fewer, the first stages would decide next to nothing and yet take their part of the error"""


def shares_for(clusters: int) -> tuple[float, ...]:
    """The stages of a study whose largest row has so many clusters."""
    return STAGE_SHARES if clusters >= FEWEST_CLUSTERS else (1.0,)


def row_stops(clusters: int, shares: Sequence[float] = STAGE_SHARES) -> list[int]:
    """Clusters of a row that are asked by the end of each stage, at least one in the first."""
    return [max(round(share * clusters), 1) for share in shares]


def staged_tasks(study: StudyRecord) -> tuple[AccuracyTask, ...]:
    """The tasks of a plan that are asked in stages; empty where each is asked as a whole."""
    return tuple(item for item in study.items if isinstance(item, AccuracyTask) and item.order is not None)


def stage_count(tasks: Sequence[AccuracyTask]) -> int:
    return max((len(task.order.stops) for task in tasks if task.order), default=0)


def measured_items(item: Item) -> tuple[Item, ...]:
    """What an item of a plan is measured by: itself, or an item for each stage."""
    if not isinstance(item, AccuracyTask) or item.order is None:
        return (item,)
    return tuple(part for stage in range(len(item.order.stops)) if (part := stage_item(item, stage)) is not None)


def stage_item(task: AccuracyTask, stage: int) -> AccuracyTask | None:
    """What asks the documents of one stage, counted from 0; None where it has none of this task."""
    assert task.order is not None
    start, stop = task.order.chunks[stage]
    if start == stop:
        return None
    return task.model_copy(update={"order": Order(seed=task.order.seed, chunk=(start, stop))})


def read_as_one(items: Iterable[Item], records: Iterable[MeasurementRecord]) -> Iterator[MeasurementRecord]:
    """The records, with those of one task's stages on one machine as one: of ``items``, the plan's.

    A measurement counts where all before it are there. One that did not end well ends the record.
    """
    wholes = {part: item for item in items for part in measured_items(item) if part != item}
    found: dict[tuple[Item, str, str], list[MeasurementRecord]] = {}
    for record in records:
        whole = wholes.get(record.item, record.item)
        found.setdefault((whole, record.rung, f"{record.machine.identity} {record.item.device}"), []).append(record)
    for (item, *_), parts in found.items():
        if not isinstance(item, AccuracyTask) or item.order is None:
            yield from parts
        else:
            joined = _join(item, item.order.seed, {part.item: part for part in parts})
            if joined is not None:
                yield joined


def _join(item: AccuracyTask, seed: int, by_item: dict[Item, MeasurementRecord]) -> MeasurementRecord | None:
    parts = [by_item[part] for part in takewhile(by_item.__contains__, measured_items(item))]
    bad = next((part for part in parts if part.status != "ok"), None)
    last = bad or (parts[-1] if parts else None)
    if last is None:
        return None
    return last.model_copy(
        update={
            "item": item,
            "measurement_id": measurement_id(last.content_hash, item),
            "started_at": parts[0].started_at,
            "duration_s": sum(part.duration_s for part in parts),
            "outcome": None if bad else _join_outcomes([part.outcome for part in parts], seed),
        }
    )


def _join_outcomes(outcomes: Sequence[object], seed: int) -> AccuracyOutcome | None:
    """With the documents in the order of the stages. None where a record that ended well lacks its own."""
    known = [outcome for outcome in outcomes if isinstance(outcome, AccuracyOutcome)]
    if len(known) < len(outcomes):
        return None
    documents = sorted(
        (document for one in known for document in one.documents),
        key=lambda document: order_key(seed, document.cluster or document.doc_hash),
    )
    first, *others = known
    if not others:
        return first.model_copy(update={"documents": tuple(documents)})
    metrics = tuple(metric for metric in first.metrics if all(metric in one.metrics for one in others))
    means = [metric.key for metric in metrics if metric.aggregation == "mean"]
    return first.model_copy(
        update={
            "documents_hash": hash_json([one.documents_hash for one in known]),
            "metrics": metrics,
            "harness_results": {
                key: sum(one.harness_results[key] * len(one.documents) for one in known) / len(documents)
                for key in means
                if all(key in one.harness_results for one in known)
            },
            "documents": tuple(documents),
            "remarks": tuple(dict.fromkeys(remark for one in known for remark in one.remarks)),
            "truncated_documents": sum(one.truncated_documents for one in known),
            "plans": tuple(plan for one in known for plan in one.plans),
            "scoring": join_scorings(one.scoring for one in known),
        }
    )


def take_stages(item: AccuracyTask, outcome: AccuracyOutcome, stages: int) -> AccuracyOutcome:
    """What was answered in the first so many stages."""
    assert item.order is not None
    documents = item.order.stops[stages - 1] if stages else 0
    if documents >= len(outcome.documents):
        return outcome
    return outcome.model_copy(update={"documents": outcome.documents[:documents], "harness_results": {}})


def stages_done(item: AccuracyTask, outcome: AccuracyOutcome) -> int:
    """How many stages an outcome answers whole."""
    assert item.order is not None
    return sum(stop <= len(outcome.documents) for stop in item.order.stops)


@dataclass(frozen=True)
class Staging:
    """What a plan asks in stages, and how many rungs share the error."""

    tasks: Mapping[str, AccuracyTask]
    rungs: int
    """held against the baseline, whatever became of them"""

    @classmethod
    def of(cls, study: StudyRecord) -> "Staging | None":
        """None where every document is asked. A merged study's tasks may have fewer stages: their last are empty."""
        tasks = staged_tasks(study)
        stages = stage_count(tasks)
        padded = {task.task: _padded(task, stages) for task in tasks}
        return cls(padded, max(len(study.rungs) - 1, 1)) if tasks else None

    @cached_property
    def stages(self) -> int:
        return stage_count(tuple(self.tasks.values()))

    @cached_property
    def documents(self) -> tuple[int, ...]:
        """Asked by the end of each stage, of all tasks."""
        orders = [task.order for task in self.tasks.values() if task.order]
        return tuple(sum(order.stops[stage] for order in orders) for stage in range(self.stages))


def _padded(task: AccuracyTask, stages: int) -> AccuracyTask:
    assert task.order is not None
    stops = task.order.stops
    padded = (*stops, *stops[-1:] * (stages - len(stops)))
    return task.model_copy(update={"order": task.order.model_copy(update={"stops": padded})})
