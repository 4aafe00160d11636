"""A study: what was asked, what this machine can do, the plan, and what became of each rung."""

from typing import Literal

from pydantic import Field

from bitladder.records.base import SCHEMA_VERSION, Machine, Record
from bitladder.records.checkpoint import Audit, Manifest, Source
from bitladder.records.measurement import Item, Status


class Settings(Record):
    """The user's settings: the flags of ``bitladder study`` and the keys of study.yaml. Every default stands here."""

    model: str
    revision: str | None = None
    rungs: tuple[str, ...] = ("bf16", "fp16", "int8", "fp4", "nf4")
    only: Literal["accuracy", "performance"] | None = None
    suite: str | None = None
    """named set of tasks: ``paper`` or ``builtin``; the default is ``builtin`` for a builtin model, else ``paper``"""
    tasks: tuple[str, ...] = ()
    """lm-eval task or group names, or folders of task YAML; replaces the suite"""
    datasets: str | None = None
    """mirror in Hub layout; None: the Hub or its cache"""
    limit: int | None = Field(default=None, ge=1)
    """documents a task"""
    limits: dict[str, int] = Field(default_factory=dict)
    """documents of one task, where it differs from ``limit``"""
    num_fewshot: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=8, ge=1)
    """rows of one accuracy batch, equal for all rungs"""
    chat_template: bool = False
    seed: int = 1234
    device: str = "auto"
    scenarios: tuple[Literal["batch1", "max-batch"], ...] = ("batch1", "max-batch")
    requests: int | None = Field(default=None, ge=1)
    """cap on the requests of a scenario; the default is 200 for batch1 and 2,000 for max-batch"""
    prompt_tokens: int = Field(default=128, ge=1)
    new_tokens: int = Field(default=128, ge=2)
    max_batch_cap: int | None = Field(default=None, ge=1)
    """upper end of the search for the largest batch; the default is none on a GPU and 8 on a CPU"""
    half_width_target: float = Field(default=0.02, gt=0, lt=1)
    time_limit_s: float = Field(default=1800.0, gt=0)
    """a performance measurement ends after so long, with what it has"""
    timeout_s: float = Field(default=6 * 3600.0, gt=0)
    """a worker is killed when a single measurement takes longer"""
    trust_remote_code: bool = False


class Calibration(Record):
    """What this machine can do, found once before the plan."""

    device: str
    """resolved, e.g. ``cpu`` or ``cuda:0``"""
    threads: int | None
    max_batch_cap: int | None
    machine: Machine


class TaskGroup(Record):
    """A score that is made of several tasks' scores."""

    name: str
    title: str
    tasks: tuple[str, ...]
    """leaf tasks"""
    pooling: Literal["documents", "mean"]
    """``documents``: all documents in one pot (MMLU); ``mean``: mean of the parts on the same questions (GSM8K)"""
    in_aggregate: bool


class StudyRecord(Record):
    """``study.json``: effective settings and the plan. All rungs get the same items."""

    schema_version: int = SCHEMA_VERSION
    settings: Settings
    suite: str
    """``paper``, ``builtin`` or ``custom``"""
    baseline: str
    source: Source
    calibration: Calibration
    groups: tuple[TaskGroup, ...]
    """table rows, in order; every leaf task is in at least one"""
    items: tuple[Item, ...]


class RungRecord(Record):
    """What became of one rung's checkpoint in a study."""

    schema_version: int = SCHEMA_VERSION
    rung: str
    status: Status
    reason: str | None = None
    content_hash: str | None
    manifest: Manifest | None
    audit: Audit | None
