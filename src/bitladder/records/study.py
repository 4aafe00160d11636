"""A study: its settings with every default, what this machine can do, the plan, and what became of each rung."""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from bitladder.records.base import SCHEMA_VERSION, Machine, Record
from bitladder.records.checkpoint import Audit, Manifest, Source
from bitladder.records.measurement import Item, Status
from bitladder.units import parse_bytes, parse_points

OUT = "study"
"""the folder of a study"""
RUNGS = ("bf16", "fp16", "int8", "fp4", "nf4")
SCENARIOS = ("batch1", "max-batch")
ACCURACY_BATCH_SIZE = 8
ACCURACY_BACKEND: Literal["hf", "bitladder"] = "bitladder"
TOKEN_BUDGET = {"cpu": 1024, "cuda": 32768}
"""tokens of one forward: where a CPU's matrix products are as fast as they get, and where a GPU's do"""
DIVERGENCE_WINDOWS = 32
DIVERGENCE_WINDOW_TOKENS = 128
"""4,096 tokens take two CPU cores about ten seconds a rung and 135 million weights. From 32 documents they give a mean
divergence to within a tenth, which tells rungs apart; documents, not tokens, are the independent samples."""
SEED = 1234
DEVICE = "auto"
REQUESTS = {"batch1": 200, "max-batch": 2000}
"""the published study's workloads"""
PROMPT_TOKENS = 128
NEW_TOKENS = 128
CPU_MAX_BATCH = 8
"""in main memory thousands of requests fit, and the search would say nothing about speed"""
HALF_WIDTH_TARGET = 0.02
TIME_LIMIT_S = 1800.0
TIMEOUT_S = 6 * 3600.0
ASKED_FROM_S = 1800.0
"""what a study on a CPU may be expected to take before it asks whether it is meant"""


def _text_by(parse: Callable[[str], float]) -> BeforeValidator:
    """What isn't text is taken as it is."""
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


_ScenarioName = Literal["batch1", "max-batch"]


def _requests(value: object) -> object:
    """Judged here, since pydantic says of a union's second type only what the first has against it."""
    by_name = dict(value) if isinstance(value, Mapping) else {"batch1": value}
    found = ",".join(f"{name}={number}" for name, number in by_name.items()) if isinstance(value, Mapping) else value
    try:
        numbers = {name: int(str(number)) for name, number in by_name.items()}
    except ValueError:
        numbers = {}
    if not numbers or min(numbers.values()) < 1 or not numbers.keys() <= set(SCENARIOS):
        raise ValueError(
            f"found {found!r}, expected a whole number from 1, or one by scenario ({', '.join(SCENARIOS)})"
        )
    return numbers if isinstance(value, Mapping) else numbers["batch1"]


class Settings(Record):
    """The user's settings: what a field's description says is the help of its flag of ``bitladder study``, whose name
    is the field's, as is that of its key in study.yaml."""

    model: str = Field(description="Hub id, directory, or builtin:smollm2-135m. May stand in --config instead.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hub model.")
    rungs: tuple[str, ...] = Field(default=RUNGS, description="Comma-separated rungs of the ladder.")
    add: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], str] = Field(
        default_factory=dict,
        description="NAME=SOURCE: a ready checkpoint, Hub id or directory, to measure beside the rungs. May be "
        "repeated.",
    )
    only: Literal["accuracy", "performance"] | None = Field(default=None, description="accuracy or performance.")
    suite: str | None = Field(
        default=None, description="paper or builtin. (default: builtin for a built-in model, else paper)"
    )
    tasks: tuple[str, ...] = Field(
        default=(), description="Comma-separated lm-eval tasks, groups or YAML folders instead of a suite."
    )
    datasets: str | None = Field(
        default=None,
        json_schema_extra={"format": "path"},
        description="Mirror of data sets in Hub layout, read offline.",
    )
    """None: the Hub or its cache"""
    limit: int | None = Field(default=None, ge=1, description="Questions a task.")
    limits: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="Questions of single tasks, such as gsm8k_cot=2,arc_easy=50."
    )
    num_fewshot: int | None = Field(default=None, ge=0, description="Examples a prompt; by default as each task says.")
    batch_size: int = Field(
        default=ACCURACY_BATCH_SIZE, ge=1, description="Rows of an accuracy batch of the backend hf."
    )
    """equal for all rungs"""
    backend: Literal["hf", "bitladder"] = Field(
        default=ACCURACY_BACKEND,
        description="Who asks the questions: bitladder (ours, faster) or hf (lm-eval's own).",
    )
    token_budget: int | None = Field(
        default=None,
        ge=64,
        description="Tokens a forward of the backend bitladder. (default: {cpu}, on a GPU {cuda})".format(
            **TOKEN_BUDGET
        ),
    )
    chat_template: bool = Field(default=False, description="Apply the chat template.")
    divergence: bool = Field(
        default=True,
        description="Measure the divergence from the baseline, or leave it out; it takes seconds a rung. "
        "(default: measure)",
    )
    divergence_windows: int = Field(
        default=DIVERGENCE_WINDOWS,
        ge=2,
        description=f"Windows of {DIVERGENCE_WINDOW_TOKENS} tokens that it is measured on.",
    )
    batch_dependence: bool = Field(
        default=False,
        description="Score some questions again in other batches, at batch 1 and by cached decoding: how many choices "
        "depend on that? Not with --backend hf.",
    )
    max_drop: Annotated[float, _text_by(parse_points)] | None = Field(
        default=None,
        gt=0,
        exclude_if=lambda value: value is None,
        description="Most points of the aggregate below the baseline, such as 1pt.",
    )
    """what the verdicts are held against; by default the suite's"""
    until_decided: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="Ask in stages, of each rung only as many questions as its verdict against --max-drop takes.",
    )
    seed: int = Field(default=SEED, ge=0, lt=2**32, description="Seed of everything drawn.")
    device: str = Field(
        default=DEVICE,
        description="auto, cpu, cuda:N, or cuda:N,M to spread each model over cards, as auto does where one is too "
        "small.",
    )
    engine: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Engine that runs the model: for its speed, and for its answers where it gives any. An unknown "
        "name tells which there are.",
    )
    scenarios: tuple[_ScenarioName, ...] = Field(default=("batch1", "max-batch"), description="Comma-separated.")
    requests: Annotated[int | dict[_ScenarioName, int], BeforeValidator(_requests)] | None = Field(
        default=None,
        description="Cap on a scenario's requests, such as 20 or batch1=20,max-batch=400; the largest batch runs "
        "whole, and three times at least. (default: {batch1}, {max-batch})".format(**REQUESTS),
    )
    prompt_tokens: int = Field(default=PROMPT_TOKENS, ge=1, description="Tokens of a prompt.")
    new_tokens: int = Field(default=NEW_TOKENS, ge=2, description="Tokens generated a request.")
    max_batch_cap: int | None = Field(
        default=None,
        ge=1,
        description=f"Upper end of the search for the largest batch. (default: {CPU_MAX_BATCH} on a CPU)",
    )
    half_width_target: float = Field(
        default=HALF_WIDTH_TARGET,
        gt=0,
        lt=1,
        description="A scenario ends early once its rate is known within this share of itself.",
    )
    time_limit_s: float = Field(default=TIME_LIMIT_S, gt=0, description="A performance measurement ends after so long.")
    memory_limit: Annotated[int, _text_by(parse_bytes)] | None = Field(
        default=None,
        gt=0,
        description="Measure performance as if the device, or each of several cards, had no more memory, such as "
        "15GiB.",
    )
    """bytes"""
    timeout_s: float = Field(default=TIMEOUT_S, gt=0, description="A worker is killed when a measurement takes longer.")
    trust_remote_code: bool = Field(
        default=False, description="Run code that comes with the model, or with tasks of your own."
    )
    allow_partial: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="Take rungs that leave much of the weights as they are, such as a mixture's experts.",
    )


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
    """``documents``: all documents in one pool (MMLU); ``mean``: mean of the parts on the same questions (GSM8K)"""
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
