"""One measurement: what was asked (the item), and the raw samples that came back."""

from typing import Annotated, Literal

from pydantic import Field

from bitladder.records.base import SCHEMA_VERSION, BadStatus, Machine, Record, hash_json
from bitladder.records.checkpoint import LoadPolicy
from bitladder.records.scoring import AccuracyOutcome, BatchPlan, Order

FULL_BATCHES = 3
"""of the largest batch at least: an interval from two batches is four times as wide as from three"""


EngineSettings = tuple[tuple[str, str | int | float | bool], ...]


class AccuracyTask(Record):
    """One lm-eval task, with all that could change its answers."""

    kind: Literal["accuracy"] = "accuracy"
    task: str
    task_hash: str
    """hash of lm-eval's resolved task configuration and of the documents that are asked"""
    limit: int | None
    num_fewshot: int | None
    """examples in each prompt; None: as the task says"""
    batch_size: int
    seed: int
    chat_template: bool
    device: str
    backend: str = "hf"
    """what scores and generates: ``hf``, lm-eval's own with log-probabilities in FP32, or ``bitladder``, ours"""
    token_budget: int | None = None
    """tokens a forward of the backend ``bitladder``, which decides what shares a batch"""
    harness_version: str
    order: Order | None = Field(default=None, exclude_if=lambda order: order is None)
    """None: all documents in one measurement, in the task's own order"""
    engine: str | None = Field(default=None, exclude_if=lambda engine: engine is None)
    """whose model the backend asks; None: the default's, whose settings there are none of"""
    engine_settings: EngineSettings = Field(default=(), exclude_if=lambda settings: not settings)


class Scenario(Record):
    """One performance scenario: the same prompts, prompt tokens and new tokens for every rung."""

    kind: Literal["performance"] = "performance"
    scenario: Literal["batch1", "max-batch"]
    batch_size_cap: int | None
    """1 for batch1; the search's upper end for max-batch, None where only memory ends it"""
    requests: int
    """stop after so many, or after the full batches if that is more"""
    prompt_tokens: int
    new_tokens: int
    prompts_hash: str
    seed: int
    device: str
    engine: str
    engine_settings: EngineSettings = Field(default=(), exclude_if=lambda settings: not settings)
    """name and value of each that moves its figures"""
    threads: int | None
    half_width_target: float
    """stop when the 95% interval of the rate is narrower than ± this share"""
    time_limit_s: float
    memory_limit_bytes: int | None = None
    """most memory the model may take of the device, or of each of several cards, as if it had no more; None: all"""

    def policy(self, of_study: LoadPolicy) -> LoadPolicy:
        """How a checkpoint is loaded for it."""
        return of_study.model_copy(update={"device": self.device, "memory_limit_bytes": self.memory_limit_bytes})

    def planned_requests(self, batch_size: int) -> int:
        """Requests at most: for max-batch at least three full batches."""
        if self.scenario == "batch1":
            return self.requests
        return max(self.requests, FULL_BATCHES * batch_size)


Way = Literal["second plan", "batch 1", "cached decoding"]
"""how documents are scored again: in other batches, each request in a forward of its own, or prefilled and decoded"""


class Rescoring(Record):
    """Some documents of a task, scored again in another way: do the choices depend on it?"""

    kind: Literal["rescoring"] = "rescoring"
    task: AccuracyTask
    """whose documents, prompts and, for a second plan, token budget these are"""
    way: Way
    documents: int
    """drawn with the task's seed; fewer are among more"""

    @property
    def device(self) -> str:
        return self.task.device


class Divergence(Record):
    """How far a rung's next-token distributions lie from the baseline's, at every token of some windows of text.

    Each window is forwarded by itself, so no batch size enters.
    """

    kind: Literal["divergence"] = "divergence"
    baseline_hash: str | None
    """content hash of the baseline's checkpoint; None in a plan that was made before it"""
    texts_hash: str
    """of the windows' token ids and documents"""
    windows: int
    window_tokens: int
    """a start-of-sequence token not counted"""
    device: str


class Prompts(Record):
    """Token ids of (windows, prompt_tokens), their hash, and the text they were cut from."""

    schema_version: int = SCHEMA_VERSION
    token_ids: tuple[tuple[int, ...], ...]
    prompts_hash: str
    origin: str
    documents: tuple[str, ...] = ()
    """of a divergence: which document each window was cut from"""

    def row(self, index: int) -> tuple[int, ...]:
        """The prompt of request ``index``; after the last window comes the first again."""
        return self.token_ids[index % len(self.token_ids)]


Item = Annotated[AccuracyTask | Rescoring | Scenario | Divergence, Field(discriminator="kind")]


def measurement_id(content_hash: str, item: AccuracyTask | Rescoring | Scenario | Divergence) -> str:
    """The identity of a measurement: hash of the checkpoint's content hash and the item."""
    return hash_json({"content_hash": content_hash, "item": item.model_dump(mode="json")})[:32]


class ChoiceScores(Record):
    """One document's choices, scored again; known by the hashes of its `DocumentOutcome`."""

    doc_hash: str
    prompt_hash: str
    loglikelihoods: tuple[float, ...]


class RescoringOutcome(Record):
    kind: Literal["rescoring"] = "rescoring"
    documents: tuple[ChoiceScores, ...]
    plan: BatchPlan | None
    """None where each request was scored by itself"""
    products: tuple[str, ...]
    """the matrix products that the first document was scored by, by name and number of rows"""
    remarks: tuple[str, ...] = ()
    """as in AccuracyOutcome"""


class WindowDivergence(Record):
    """One window, token by token; natural logarithms."""

    document: str
    """windows of one document resemble each other"""
    kl: tuple[float, ...]
    """Kullback-Leibler divergence of the rung's distribution from the baseline's, over the whole vocabulary"""
    agrees: tuple[bool, ...]
    """whether both have the same most likely token"""
    baseline_loglikelihoods: tuple[float, ...]
    """of the token that the text goes on with"""
    loglikelihoods: tuple[float, ...]


class DivergenceOutcome(Record):
    kind: Literal["divergence"] = "divergence"
    origin: str
    """which text"""
    windows: tuple[WindowDivergence, ...]
    remarks: tuple[str, ...] = ()
    """as in AccuracyOutcome"""


Status = Literal["ok", BadStatus]


class RequestSample(Record):
    """One request. Times are seconds since the measured part began; its steps are its batch's."""

    batch: int
    submitted_s: float
    status: Status
    prompt_tokens: int
    new_tokens: int


class BatchSample(Record):
    """One engine run over ``batch_size`` rows; every step gives each row one token."""

    batch_size: int
    started_s: float
    step_end_s: tuple[float, ...]
    """end of each step, taken after its own synchronization; the first step is the prefill"""


class CardSample(Record):
    """The driver's readings of one card; None where it has none, see PerformanceOutcome.unavailable."""

    gpu_utilisation_percent: float | None = None
    gpu_memory_bytes: int | None = None
    gpu_process_bytes: int | None = None
    """of the device, by the measured process"""
    gpu_power_w: float | None = None
    gpu_energy_j: float | None = None
    gpu_sm_clock_mhz: int | None = None
    gpu_throttle_bits: int | None = None


class ResourceSample(CardSample):
    """One reading of the monitor. GPU fields are None where there is no GPU.

    Of several cards memory, power and energy are sums, utilisation is the mean, the clock is the slowest card's and the
    throttle bits are those of any card.
    """

    time_s: float
    cpu_percent: float | None
    """of one core: 200 is two cores busy"""
    rss_bytes: int | None
    cards: tuple[CardSample, ...] = ()
    """each card's own readings where there are several"""


class MemoryFigures(Record):
    """Memory under names that don't mix: None where it has no meaning, with the reason in ``unavailable``."""

    loaded_bytes: int
    """parameters, buffers and quantization state after the warm-up's forward"""
    idle_process_bytes: int
    """resident before the model was loaded"""
    peak_process_bytes: int
    """highest resident size while measuring"""
    allocated_peak_bytes: int | None = None
    """of torch's allocator; this and what follows is of several cards the sum"""
    reserved_peak_bytes: int | None = None
    idle_device_bytes: int | None = None
    """device memory in use before this process used it; device minus idle is the study's VRAM"""


class BatchProbe(Record):
    """One step of the search for the largest batch."""

    batch_size: int
    fits: bool
    how: Literal["predicted", "run"]
    needed_bytes: int | None
    """for a run on a GPU: of the device, of several cards their sum, the context included, as the driver says;
    where it doesn't, torch, and then with what others have in use"""
    available_bytes: int | None
    card_needed_bytes: tuple[int, ...] = ()
    """of each card where a run was spread over several"""
    card_available_bytes: tuple[int, ...] = ()
    duration_s: float | None = None
    """loading included; None where it was predicted"""
    reason: str | None = None
    """why it did not run, where that was not memory"""
    ran_out: str | None = None
    """what was said of memory where a run ended for want of it"""


class PerformanceOutcome(Record):
    kind: Literal["performance"] = "performance"
    engine: str
    launch: dict[str, str | int | float | bool | None]
    """how the engine was set up: attention, threads, dtype, cache"""
    batch_size: int
    batch_search: tuple[BatchProbe, ...]
    load_time_s: float
    warmup: tuple[BatchSample, ...]
    batches: tuple[BatchSample, ...]
    requests: tuple[RequestSample, ...]
    stopped_by: Literal["requests", "precision", "time_limit", "out_of_memory"]
    hook_s_per_step: float
    """cost of the time stamp itself: the mean difference of ``hook_pairs``, without them what stamping took"""
    hook_pairs: tuple[tuple[float, float], ...] = ()
    """on a GPU: seconds a step of a run with stamps, and of one without, in turn"""
    memory: MemoryFigures
    resources: tuple[ResourceSample, ...]
    processor_s: float | None = None
    """that the measuring thread had of the processors in the measured part"""
    waited_s: float | None = None
    """the most that one thread of the process was ready and waited for a processor meanwhile; None: not counted"""
    busy_share: float | None = None
    """of all processors, by other programs just before it began; None where nobody looked"""
    idle_powers_w: tuple[float, ...] = ()
    """readings of the GPU at rest, of several their sum, before anything of this measurement ran on it"""
    idle_power_w: float | None = Field(default=None, exclude_if=lambda value: value is None)
    """of records of before those readings: of the GPU after the search for the batch, which says nothing"""
    unavailable: dict[str, str]
    """field name -> why it is None"""


Outcome = Annotated[
    AccuracyOutcome | RescoringOutcome | PerformanceOutcome | DivergenceOutcome, Field(discriminator="kind")
]


_DISTURBED_BEFORE = "disturbed: "
"""how the reason begins in records that were written before `MeasurementRecord.disturbed`"""


class MeasurementRecord(Record):
    """What one measurement left, whatever its end."""

    schema_version: int = SCHEMA_VERSION
    measurement_id: str
    rung: str
    """the name it had when measured; identity is the content hash"""
    content_hash: str
    item: Item
    status: Status
    reason: str | None = None
    disturbed: bool = Field(default=False, exclude_if=lambda disturbed: not disturbed)
    """whether it failed since something else held it up; records from before this field was kept lack it"""
    machine: Machine
    started_at: str
    """UTC, ISO 8601"""
    duration_s: float
    """of all its runs where it went on from a journal, each but the last up to its last entry there"""
    outcome: Outcome | None = None

    @property
    def was_disturbed(self) -> bool:
        """Whether something else held it up, in records from before `disturbed` too."""
        return self.disturbed or (self.reason or "").startswith(_DISTURBED_BEFORE)
