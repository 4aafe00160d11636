"""A study: what was asked, what this machine can do, the plan, and what became of each rung."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field

from bitladder import defaults
from bitladder.records.base import SCHEMA_VERSION, Machine, Record
from bitladder.records.checkpoint import Audit, Manifest, Source
from bitladder.records.measurement import Item, Status
from bitladder.units import parse_bytes, parse_points


def _bytes(value: object) -> object:
    return parse_bytes(value) if isinstance(value, str) else value


def _points(value: object) -> object:
    return parse_points(value) if isinstance(value, str) else value


_Scenario = Literal["batch1", "max-batch"]


def _requests(value: object) -> object:
    """Judged here, since pydantic says of a union's second type only what the first has against it."""
    by_name = dict(value) if isinstance(value, Mapping) else {"batch1": value}
    found = ",".join(f"{name}={number}" for name, number in by_name.items()) if isinstance(value, Mapping) else value
    try:
        numbers = {name: int(str(number)) for name, number in by_name.items()}
    except ValueError:
        numbers = {}
    if not numbers or min(numbers.values()) < 1 or not numbers.keys() <= set(defaults.SCENARIOS):
        raise ValueError(
            f"found {found!r}, expected a whole number from 1, or one by scenario ({', '.join(defaults.SCENARIOS)})"
        )
    return numbers if isinstance(value, Mapping) else numbers["batch1"]


class Settings(Record):
    """The user's settings: the flags of ``bitladder study`` and the keys of study.yaml."""

    model: str
    revision: str | None = None
    rungs: tuple[str, ...] = defaults.RUNGS
    add: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], str] = Field(default_factory=dict)
    """ready checkpoints, Hub ids or directories by name, measured beside the rungs"""
    only: Literal["accuracy", "performance"] | None = None
    suite: str | None = None
    """named set of tasks: ``paper`` or ``builtin``; the default is ``builtin`` for a builtin model, else ``paper``"""
    tasks: tuple[str, ...] = ()
    """lm-eval task or group names, or folders of task YAML; replaces the suite"""
    datasets: str | None = None
    """mirror in Hub layout; None: the Hub or its cache"""
    limit: int | None = Field(default=None, ge=1)
    """documents a task"""
    limits: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """documents of one task, where it differs from ``limit``"""
    num_fewshot: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=defaults.ACCURACY_BATCH_SIZE, ge=1)
    """rows of one accuracy batch, equal for all rungs"""
    backend: Literal["hf", "bitladder"] = defaults.ACCURACY_BACKEND
    """lm-eval's own way of asking, or ours"""
    token_budget: int | None = Field(default=None, ge=64)
    """tokens of one forward of the backend ``bitladder``; by default `defaults.TOKEN_BUDGET` of the device"""
    chat_template: bool = False
    divergence: bool = True
    """beside accuracy, measure how far each rung's next-token distributions lie from the baseline's"""
    divergence_windows: int = Field(default=defaults.DIVERGENCE_WINDOWS, ge=2)
    """windows of text for it, of `defaults.DIVERGENCE_WINDOW_TOKENS` tokens"""
    batch_dependence: bool = False
    """score some documents again in other batches, at batch 1 and by cached decoding"""
    max_drop: Annotated[float, BeforeValidator(_points)] | None = Field(
        default=None, gt=0, exclude_if=lambda value: value is None
    )
    """points, or text such as 1pt, that a rung's aggregate may lose: what the verdicts are held against; by default the
    suite's"""
    until_decided: bool = Field(default=False, exclude_if=lambda value: not value)
    """ask each rung, in stages, only as many documents as its verdict against ``max_drop`` takes"""
    seed: int = Field(default=defaults.SEED, ge=0, lt=2**32)
    device: str = defaults.DEVICE
    scenarios: tuple[_Scenario, ...] = ("batch1", "max-batch")
    requests: Annotated[int | dict[_Scenario, int], BeforeValidator(_requests)] | None = None
    """cap on the requests of a scenario, for all of them or by name; by default `defaults.REQUESTS`"""
    prompt_tokens: int = Field(default=defaults.PROMPT_TOKENS, ge=1)
    new_tokens: int = Field(default=defaults.NEW_TOKENS, ge=2)
    max_batch_cap: int | None = Field(default=None, ge=1)
    """upper end of the search for the largest batch; by default none on a GPU, `defaults.CPU_MAX_BATCH` on a CPU"""
    half_width_target: float = Field(default=defaults.HALF_WIDTH_TARGET, gt=0, lt=1)
    time_limit_s: float = Field(default=defaults.TIME_LIMIT_S, gt=0)
    """a performance measurement ends after so long, with what it has"""
    memory_limit: Annotated[int, BeforeValidator(_bytes)] | None = Field(default=None, gt=0)
    """bytes, or a size such as 15GiB: measure performance as if the device (or each of several cards) had no more"""
    timeout_s: float = Field(default=defaults.TIMEOUT_S, gt=0)
    """a worker is killed when a single measurement takes longer"""
    trust_remote_code: bool = False
    allow_partial: bool = Field(default=False, exclude_if=lambda value: not value)
    """take a rung whose method leaves much of the weights as they are, such as a mixture's experts"""


class LayerRate(Record):
    """How long one of the model's linear layers takes on one rung."""

    rung: str
    rows: int
    s_per_weight: float
    """seconds of one call with so many rows, over the layer's number of weights"""
    widened: bool = False
    """as the accuracy backend ``bitladder`` runs it, whose 16-bit products are FP32 where the CPU has none"""


class Calibration(Record):
    """What this machine can do, found once before the plan."""

    device: str
    """resolved, e.g. ``cpu``, ``cuda:0``, or ``cuda:0,1`` for cards that share each model"""
    threads: int | None
    max_batch_cap: int | None
    machine: Machine
    layer_rates: tuple[LayerRate, ...] = ()


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
    added: dict[str, Source] = Field(default_factory=dict)
    """ready checkpoints by name, as found; they come after the ladder's rungs"""

    @property
    def rungs(self) -> tuple[str, ...]:
        """All that is measured, in order."""
        return (*self.settings.rungs, *self.added)

    def with_rungs(self, rungs: Iterable[str], added: Mapping[str, Source]) -> Self:
        """The same study of these rungs: the ladder's, and ready checkpoints."""
        settings = {"rungs": tuple(rungs), "add": {name: source.model for name, source in added.items()}}
        return self.model_copy(update={"settings": self.settings.model_copy(update=settings), "added": dict(added)})


class MergeRecord(Record):
    """``merge.json``: the result folders that were joined, each under the hash of what it holds, in the order given."""

    schema_version: int = SCHEMA_VERSION
    parts: tuple[Annotated[str, Field(pattern="^[0-9a-f]{16}$")], ...] = Field(min_length=1)


class RungRecord(Record):
    """What became of one rung's checkpoint in a study."""

    schema_version: int = SCHEMA_VERSION
    rung: str
    status: Status
    reason: str | None = None
    content_hash: str | None
    manifest: Manifest | None
    audit: Audit | None
    source: Source | None = None
    """of a ready checkpoint: the files that were audited"""
