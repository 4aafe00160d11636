"""What a study's parent and its workers say to each other, and what the study tells its user."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from bitladder.records import (
    AccuracyTask,
    Item,
    JournalEntry,
    LoadPolicy,
    Machine,
    MeasurementRecord,
    Prompts,
    Record,
    RungRecord,
    Status,
    TaskDocuments,
    TaskSources,
)


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


Phase = Literal["checkpoint", "audit", "divergence", "accuracy", "rescoring", "performance"]


class Recipe(Record):
    """What a rung's checkpoint is made from, and how."""

    model: str
    revision: str | None
    allow_partial: bool


class Job(Record):
    """One worker's work: a rung's checkpoint, a ready one's audit, or the items of one phase on either."""

    phase: Phase
    rung: str
    directory: str
    """the checkpoint's, to be made or to be read"""
    policy: LoadPolicy
    threads: int | None
    machine: Machine
    content_hash: str | None
    recipe: Recipe | None = None
    """of a checkpoint that is to be made"""
    sources: TaskSources | None = None
    """of a job that asks questions"""
    audited_bytes: int | None = None
    """in memory after one forward, which some formats unpack in; None before the audit"""
    items: tuple[Item, ...] = ()
    prompts: Prompts | None = None
    """of a performance or divergence job: the token ids that all its items use"""
    reference: str | None = None
    """of a divergence job: the file with the baseline's side, which the baseline's own job writes"""
    journals: str | None = None
    """folder of what measurements that have no record left, to be read alone"""


class Preparation(Record):
    """What workers of a study's accuracy have in common."""

    sources: TaskSources
    items: tuple[AccuracyTask, ...]
    """of the plan"""


class Started(Record):
    kind: Literal["started"] = "started"
    measurement_id: str


class TaskProgress(Record):
    kind: Literal["progress"] = "progress"
    done: int
    total: int


class Documents(Record):
    kind: Literal["documents"] = "documents"
    documents: TaskDocuments


class BatchDone(Record):
    """A batch of a measurement is computed."""

    kind: Literal["batch"] = "batch"
    measurement_id: str
    entry: JournalEntry


class Measured(Record):
    kind: Literal["measured"] = "measured"
    record: MeasurementRecord


class RungMade(Record):
    kind: Literal["rung"] = "rung"
    record: RungRecord


class Stopped(Record):
    """The worker cannot go on, by a cause it could name."""

    kind: Literal["stopped"] = "stopped"
    status: Status
    reason: str


class Refused(Record):
    """The machine refuses what any worker would need, such as a write: the study can't go on, and nothing is wrong with
    the rung."""

    kind: Literal["refused"] = "refused"
    reason: str


AnyMessage = Started | TaskProgress | Documents | BatchDone | Measured | RungMade | Stopped | Refused
Message = Annotated[AnyMessage, Field(discriminator="kind")]
MESSAGE: TypeAdapter[AnyMessage] = TypeAdapter(Message)
