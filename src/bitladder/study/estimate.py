"""What a study will take of disk, memory and time, from sizes and from the calibration's layer times."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.checkpoint.config import read_config
from bitladder.checkpoint.expected import Expected, expect, value_bytes
from bitladder.checkpoint.loading import predicted_load_bytes
from bitladder.checkpoint.scheme import found_scheme
from bitladder.checkpoint.skeleton import build_skeleton, head_weights
from bitladder.checkpoint.tensors import read_tensors
from bitladder.methods import BASELINE, find_rung, method_of
from bitladder.methods.method import kind_of
from bitladder.perf.memory import predict_working_memory
from bitladder.records import (
    AccuracyTask,
    Calibration,
    Divergence,
    Item,
    LayerRate,
    Rescoring,
    Scenario,
    Scheme,
    TaskSources,
)
from bitladder.study.prepare import Prepared
from bitladder.tasks.library import task_library

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FLOAT32_BYTES = 4
_LOGITS_AT_ONCE = 6
"""copies in FP32 that a comparison of two distributions makes: both, their logarithms, and what is summed"""


def phase_peaks(
    prepared: Prepared, skeleton: "PreTrainedModel", scheme: Scheme, expected: Expected, overhead_bytes: int | None
) -> dict[str, int]:
    """Bytes of main memory, or of a GPU, by what is planned; empty where the libraries' share isn't known."""
    from bitladder.accuracy.backend.plan import budget_on, token_bytes
    from bitladder.checkpoint.skeleton import head_weights, vocabulary_size
    from bitladder.perf.memory import predict_working_memory

    if overhead_bytes is None:
        return {}
    device = prepared.study.calibration.device
    on_cpu = device == "cpu"
    copies = method_of(scheme).loading_copies(device)
    held = overhead_bytes + expected.stored_bytes + copies * expected.packed_bytes
    widened = _FLOAT32_BYTES * head_weights(skeleton) if on_cpu else 0  # 16-bit products are computed so
    found = {}
    if on_cpu:  # which is where rungs are made: from the source in 16 bits
        found["quantizing"] = overhead_bytes + 2 * expected.parameters + expected.quantizing_bytes
    if any(isinstance(item, AccuracyTask | Rescoring) for item in prepared.study.items):
        one = token_bytes(skeleton, device.partition(":")[0])
        tokens = prepared.wanted.tasks.token_budget or budget_on(device.partition(",")[0], one)
        found["accuracy"] = held + widened + one * tokens
    for item in prepared.study.items:
        if isinstance(item, Divergence):
            logits = item.window_tokens * vocabulary_size(skeleton) * _FLOAT32_BYTES
            head = 2 * head_weights(skeleton) + widened  # the baseline's beside the rung's
            found["divergence"] = held + widened + head + _LOGITS_AT_ONCE * logits
        elif isinstance(item, Scenario):
            row = predict_working_memory(skeleton, value_bytes(scheme), item.prompt_tokens, item.new_tokens)
            found[item.scenario] = held + row.of_rows(item.batch_size_cap or 1).total_bytes
    return found


PROCESS_START_S = 3.0
"""forking, loading, and the monitor's start"""
_CHARACTERS_PER_TOKEN = 4.0
_GENERATED_TOKENS = 128
_SAMPLED_DOCUMENTS = 16
_CHOICES = 4
_FILLING_BATCH = 256
"""likely to fill the device, where only memory ends the search"""
_CODES = ("I8", "U8")
"""types of bitsandbytes' packed weights"""


@dataclass(frozen=True)
class RungEstimate:
    rung: str
    disk_bytes: int
    """that the study writes; a ready checkpoint is read where it lies"""
    peak_memory_bytes: int | None
    """at batch 1, the figure that ``--max-memory`` limits: libraries, weights, cache and activations of one request;
    None for another library's format, which may become dense, or where the libraries' share could not be found"""
    quantize_s: float
    """the audit's share included"""
    accuracy_s: float | None
    """divergence and what is scored again included; None for a ready checkpoint: no layer of its format was timed"""
    performance_s: float | None
    item_s: tuple[float | None, ...]
    """of each of the plan's items, in its order"""
    phase_bytes: Mapping[str, int] = field(default_factory=dict)
    """by what it does then, the most that a worker has of main memory or of the device; empty where that is unknown"""
    kept_bytes: Mapping[str, int] = field(default_factory=dict)
    """of a quantized rung, by kind of module: what stays in a floating type"""
    at_most: bool = False
    """whether the time limit is expected to end a scenario: it takes this long or less"""

    @property
    def total_s(self) -> float | None:
        if self.accuracy_s is None or self.performance_s is None:
            return None
        return self.quantize_s + self.accuracy_s + self.performance_s


@dataclass(frozen=True)
class TaskLoad:
    """An accuracy task's work: tokens to read, positions to score, tokens to write."""

    prefill_tokens: float
    scored_tokens: float
    generated_tokens: float


def estimate_study(prepared: Prepared, overhead_bytes: Mapping[str, int]) -> tuple[RungEstimate, ...]:
    """One estimate a rung, then one for each ready checkpoint.

    ``overhead_bytes``: by method what `perf.overhead` found a measuring process to take beside its model.
    """
    loads = {
        item.task: _task_load(prepared.wanted.tasks.sources, item)
        for item in prepared.study.items
        if isinstance(item, AccuracyTask)
    }
    rungs = (_estimate_rung(prepared, rung, loads, overhead_bytes) for rung in prepared.wanted.rungs)
    return (*rungs, *(_estimate_ready(prepared, name, place, overhead_bytes) for name, place in prepared.added.items()))


def _estimate_ready(prepared: Prepared, name: str, directory: Path, overhead_bytes: Mapping[str, int]) -> RungEstimate:
    tensors = read_tensors(directory)
    scheme = found_scheme(read_config(directory), tensors)
    packed = (one.size_bytes for name, one in tensors.items() if kind_of(name, one) == "linear" and one.dtype in _CODES)
    skeleton = build_skeleton(directory, prepared.wanted.policy)
    return RungEstimate(
        rung=name,
        disk_bytes=0,
        peak_memory_bytes=_peak(
            prepared, skeleton, scheme, predicted_load_bytes(directory), sum(packed), overhead_bytes
        ),
        quantize_s=PROCESS_START_S,
        accuracy_s=None if any(isinstance(item, AccuracyTask) for item in prepared.study.items) else 0.0,
        performance_s=None if any(isinstance(item, Scenario) for item in prepared.study.items) else 0.0,
        item_s=(None,) * len(prepared.study.items),
    )


def _peak(
    prepared: Prepared,
    skeleton: "PreTrainedModel",
    scheme: Scheme,
    weights_bytes: int,
    packed_bytes: int,
    overhead_bytes: Mapping[str, int],
) -> int | None:
    libraries_bytes = overhead_bytes.get(scheme.method)
    if libraries_bytes is None:
        return None
    working = predict_working_memory(
        skeleton, value_bytes(scheme), prepared.wanted.workload.prompt_tokens, prepared.wanted.workload.new_tokens
    )
    copies = method_of(scheme).loading_copies(prepared.study.calibration.device)
    return libraries_bytes + weights_bytes + copies * packed_bytes + working.total_bytes


def _estimate_rung(
    prepared: Prepared, rung: str, loads: dict[str, TaskLoad], overhead_bytes: Mapping[str, int]
) -> RungEstimate:
    scheme = find_rung(rung).scheme
    expected = expect(prepared.model.directory, scheme, prepared.wanted.policy)
    skeleton = build_skeleton(prepared.model.directory, prepared.wanted.policy)
    head = head_weights(skeleton)
    clock = _Clock(prepared.study.calibration, rung, expected.parameters - head, head)
    item_s = {item: _item_s(prepared, item, loads, clock) for item in prepared.study.items}
    scenarios = [item for item in prepared.study.items if isinstance(item, Scenario)]
    asking = any(isinstance(item, AccuracyTask) for item in prepared.study.items)
    return RungEstimate(
        rung=rung,
        disk_bytes=expected.tensor_bytes,
        peak_memory_bytes=_peak(
            prepared, skeleton, scheme, expected.stored_bytes, expected.packed_bytes, overhead_bytes
        ),
        quantize_s=2 * PROCESS_START_S,
        accuracy_s=sum(seconds for item, seconds in item_s.items() if not isinstance(item, Scenario))
        + (PROCESS_START_S if asking else 0.0),
        performance_s=sum(item_s[item] for item in scenarios),
        item_s=tuple(item_s[item] for item in prepared.study.items),
        phase_bytes=phase_peaks(prepared, skeleton, scheme, expected, overhead_bytes.get(scheme.method)),
        kept_bytes=dict(expected.kept),
        at_most=any(_scenario_s(item, clock) > item.time_limit_s for item in scenarios),
    )


def _item_s(prepared: Prepared, item: Item, loads: Mapping[str, TaskLoad], clock: "_Clock") -> float:
    if isinstance(item, Divergence):  # the head runs twice: the rung's own, and the baseline's on its stored states
        tokens = item.windows * item.window_tokens
        return PROCESS_START_S + clock.packed_s(tokens, 2 * tokens)
    if isinstance(item, AccuracyTask):
        return _task_s(item, loads[item.task], clock)
    if isinstance(item, Rescoring):
        return _rescoring_s(prepared, item, loads[item.task.task], clock)
    return PROCESS_START_S + min(_scenario_s(item, clock), item.time_limit_s)


class _Clock:
    """Seconds of a forward pass, from the times of one layer."""

    def __init__(self, calibration: Calibration, rung: str, layer_weights: int, head_weights: int) -> None:
        rest = BASELINE if find_rung(rung).method.quantizes else rung
        self._layers = [rate for rate in calibration.layer_rates if rate.rung == rung]
        self._head = [rate for rate in calibration.layer_rates if rate.rung == rest]
        self._layer_weights = layer_weights
        self._head_weights = head_weights

    def forward_s(self, rows: float, scored_rows: float) -> float:
        """All layers over ``rows`` tokens, the head over ``scored_rows``."""
        layers = self._layer_weights * s_per_weight(self._layers, rows)
        return layers + self._head_weights * s_per_weight(self._head, scored_rows)

    def packed_s(self, tokens: float, scored_tokens: float) -> float:
        """The same for many packed tokens, as our own backend runs them."""
        layers, head = (next(rate for rate in rates if rate.widened) for rates in (self._layers, self._head))
        layers_s = self._layer_weights * layers.s_per_weight * tokens / layers.rows
        return layers_s + self._head_weights * head.s_per_weight * scored_tokens / head.rows


def s_per_weight(rates: list[LayerRate], rows: float) -> float:
    """Linear between the measured numbers of rows, and beyond the last as between the last two."""
    points = sorted((rate.rows, rate.s_per_weight) for rate in rates if not rate.widened)
    for (left, left_s), (right, right_s) in pairwise(points):
        if rows <= right or right == points[-1][0]:
            return max(left_s + (right_s - left_s) * (rows - left) / (right - left), 0.0)
    raise ValueError("the calibration has no layer times for this rung")


def _task_s(item: AccuracyTask, load: TaskLoad, clock: _Clock) -> float:
    batch_tokens = 64.0 * item.batch_size
    if item.backend == "bitladder":
        seconds = clock.packed_s(load.prefill_tokens, load.scored_tokens)
    else:  # lm-eval's own runs the head over every position of a batch
        seconds = load.prefill_tokens / batch_tokens * clock.forward_s(batch_tokens, batch_tokens)
    return seconds + load.generated_tokens / item.batch_size * clock.forward_s(item.batch_size, item.batch_size)


def _rescoring_s(prepared: Prepared, item: Rescoring, load: TaskLoad, clock: _Clock) -> float:
    """At batch 1 each of about four choices reads the question, unless they are one token; decoded, each further token
    is a step."""
    count = task_library(prepared.wanted.tasks.sources).count(item.task.task, item.task.limit)
    prefill, scored = load.prefill_tokens / count, load.scored_tokens / count
    if item.way == "second plan":
        return item.documents * clock.packed_s(prefill, scored)
    if item.way == "batch 1":
        forwards = _CHOICES if scored > _CHOICES else 1
        return item.documents * forwards * clock.forward_s(prefill, scored / _CHOICES)
    steps = max(scored - _CHOICES, 0.0)
    return item.documents * (clock.forward_s(prefill, 1) + steps * clock.forward_s(1, 1))


def _scenario_s(scenario: Scenario, clock: _Clock) -> float:
    """As if there were no time limit."""
    batch = scenario.batch_size_cap or _FILLING_BATCH
    runs = max(-(-scenario.requests // batch), 1 if batch == 1 else 2)
    run_s = clock.forward_s(batch * scenario.prompt_tokens, batch) + scenario.new_tokens * clock.forward_s(batch, batch)
    return (runs + 0.5) * run_s


def _task_load(sources: TaskSources, item: AccuracyTask) -> TaskLoad:
    """Work of one task, from the length of its first documents."""
    library = task_library(sources)
    task = library.task(item.task)
    count = library.count(item.task, item.limit)
    sample = list(library.documents(item.task, min(count, _SAMPLED_DOCUMENTS)))
    with library.reading(item.task):
        return _load_of(task, item, count, sample)


def _load_of(task: Any, item: AccuracyTask, count: int, sample: list[Any]) -> TaskLoad:
    characters = sum(len(str(task.doc_to_text(document))) for document in sample) / max(len(sample), 1)
    tokens = (1 + (item.num_fewshot or 0)) * characters / _CHARACTERS_PER_TOKEN
    if task.OUTPUT_TYPE == "generate_until":
        return TaskLoad(count * tokens, count, float(count * _GENERATED_TOKENS))
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        text = sum(len(str(task.doc_to_target(document))) for document in sample) / max(len(sample), 1)
        text_tokens = count * text / _CHARACTERS_PER_TOKEN
        return TaskLoad(text_tokens, text_tokens, 0.0)
    choices = [task.doc_to_choice(document) for document in sample] if task.OUTPUT_TYPE == "multiple_choice" else []
    choice_tokens = [len(str(choice)) / _CHARACTERS_PER_TOKEN for options in choices for choice in options]
    scored = count * sum(choice_tokens) / max(len(sample), 1)
    one_token = all(" " not in str(choice).strip() for options in choices for choice in options)
    # our own backend reads a prompt once for all its choices
    prompts = 1 if one_token or not choices or item.backend == "bitladder" else len(choices[0])
    return TaskLoad(count * tokens * prompts + (0 if one_token else scored), scored, 0.0)
