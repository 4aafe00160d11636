"""A study that stopped when decided and never ran: replayed answers, in the order and the stages of a real one."""

from functools import cache
from pathlib import Path

from bitladder.records import (
    AccuracyOutcome,
    AccuracyTask,
    DocumentOutcome,
    MeasurementRecord,
    Order,
    Settings,
    TaskDocuments,
    hash_json,
    measurement_id,
    order_key,
)
from bitladder.results.stages import row_stops, stage_count, stage_item, staged_tasks
from bitladder.results.store import Store
from bitladder.summary.coverage import rungs_to_ask
from replay import machine, write_replay
from replay_outcomes import RungReplay, TaskReplay, accuracy_outcome, task_documents

_outcome, _documents = cache(accuracy_outcome), cache(task_documents)

TASKS = tuple(TaskReplay(f"bitladder_{name}", "choice", 500, 0.7) for name in ("knowledge", "language", "arithmetic"))
"""flips are of the first documents of each, which the order scatters"""
SEED = 1234


def rung(gained: float, lost: float) -> RungReplay:
    return RungReplay(gained, lost, 0.2, 0.06, 5.0, 269 * 10**6, 1.02)


RUNGS = {
    "bf16": rung(0.0, 0.0),
    "fp16": rung(0.005, 0.005),
    "int8": rung(0.01, 0.058),
    "fp4": rung(0.02, 0.20),
}
"""nothing, hardly anything, about the margin of 5 points, and far beyond"""


STOPS = tuple(row_stops(TASKS[0].documents))


def write_plan(
    directory: Path, rungs: dict[str, RungReplay] = RUNGS, stops: tuple[int, ...] = STOPS, **settings: object
) -> Store:
    """A planned study with its checkpoints, and nothing answered."""
    everything = [(name, task.name) for name in rungs for task in TASKS]
    write_replay(directory, rungs=rungs, tasks=(*TASKS, PROSE), only="accuracy", absent=everything)
    store = Store(directory)
    study = store.read_study()
    items = tuple(
        item.model_copy(update={"order": Order(seed=SEED, stops=stops)})
        if isinstance(item, AccuracyTask) and item.task != PROSE.name
        else item
        for item in study.items
    )
    values = study.settings.model_dump() | {"until_decided": True} | settings
    store.write_study(study.model_copy(update={"items": items, "settings": Settings.model_validate(values)}))
    return store


PROSE = TaskReplay("bitladder_prose", "rolling", 12)


def answer(store: Store, rungs: dict[str, RungReplay] = RUNGS, stages: int | None = None) -> list[frozenset[str]]:
    """Let the study run, at most so many stages of it; whom each stage asked."""
    study = store.read_study()
    asked: list[frozenset[str]] = []
    for stage in range(stage_count(staged_tasks(study)) if stages is None else stages):
        names = rungs_to_ask(store.load(), stage)
        if not names:
            break
        asked.append(names)
        for name in names:
            for task in staged_tasks(study):
                for earlier in range(stage + 1):
                    write_chunk(store, name, rungs[name], task, earlier)
    return asked


def write_chunk(store: Store, name: str, replay: RungReplay, task: AccuracyTask, stage: int) -> None:
    record, item = store.read_rung(name), stage_item(task, stage)
    assert record is not None and record.content_hash is not None and item is not None and item.order is not None
    assert item.order.chunk is not None
    identity = measurement_id(record.content_hash, item)
    if store.read_measurement(identity) is not None:
        return
    whole = next(one for one in TASKS if one.name == task.task)
    outcome, documents = _outcome(whole, replay), _documents(whole)
    order = sorted(range(whole.documents), key=lambda number: order_key(SEED, outcome.documents[number].doc_hash))
    chosen = sorted(order[slice(*item.order.chunk)])
    documents_hash = hash_json([whole.name, chosen])
    store.write_documents(
        TaskDocuments(
            task=whole.name,
            documents_hash=documents_hash,
            documents=tuple(documents.documents[number] for number in chosen),
        )
    )
    store.write_measurement(
        MeasurementRecord(
            measurement_id=identity,
            rung=name,
            content_hash=record.content_hash,
            item=item,
            status="ok",
            machine=machine(),
            started_at="2026-01-01T00:00:00Z",
            duration_s=2.0,
            outcome=_part(outcome, tuple(outcome.documents[number] for number in chosen), documents_hash),
        )
    )


def _part(outcome: AccuracyOutcome, documents: tuple[DocumentOutcome, ...], documents_hash: str) -> AccuracyOutcome:
    right = [document.metrics["acc,none"] for document in documents]
    mean = sum(one for one in right if isinstance(one, float)) / len(right)
    return outcome.model_copy(
        update={
            "documents": documents,
            "documents_hash": documents_hash,
            "harness_results": {"acc,none": mean},
        }
    )
