"""What one replayed measurement leaves: questions and answers, batches and monitor readings."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from bitladder.records import (
    AccuracyOutcome,
    BatchProbe,
    BatchSample,
    Divergence,
    DivergenceOutcome,
    Document,
    DocumentOutcome,
    MemoryFigures,
    MetricInfo,
    PerformanceOutcome,
    ProductKernel,
    RequestSample,
    ResourceSample,
    Scenario,
    Scoring,
    TaskDocuments,
    WindowDivergence,
    hash_json,
)
from bitladder.units import GIB, MIB


@dataclass(frozen=True)
class RungReplay:
    """How one rung behaves: answers against the baseline's, seconds at batch 1 and at the largest batch, bytes."""

    gained: float
    """share of the questions that only this rung has right"""
    lost: float
    """share of the questions that only the baseline has right"""
    prefill_s: float
    step_s: float
    batch_slowdown: float
    """step time at the largest batch over that at batch 1"""
    loaded_bytes: int
    bits_per_byte: float


@dataclass(frozen=True)
class TaskReplay:
    """One leaf task: ``right`` is the baseline's share of right answers."""

    name: str
    kind: Literal["choice", "generation", "rolling"]
    documents: int
    right: float = 0.0
    has_norm: bool = False


NO_GPU = dict.fromkeys(
    (
        *(name for name in ResourceSample.model_fields if name.startswith("gpu_")),
        *("allocated_peak_bytes", "reserved_peak_bytes", "idle_device_bytes", "idle_powers_w"),
    ),
    "no GPU",
)


@cache
def task_documents(task: TaskReplay) -> TaskDocuments:
    def document(index: int) -> Document:
        letter = "ABCD"[index % 4]
        choices = tuple(f" {choice}" for choice in "ABCD") if task.kind == "choice" else None
        return Document(
            doc_hash=_doc_hash(task, index),
            prompt_hash=_prompt_hash(task, index),
            prompt=f"{task.name}, question {index}: which letter is {letter}?\nAnswer:",
            choices=choices,
            target=f" {letter}" if task.kind == "choice" else f"#### {index}",
            doc={"question": f"which letter is {letter}?", "index": index},
        )

    return TaskDocuments(
        task=task.name,
        documents_hash=hash_json(["documents", task.name, task.documents]),
        documents=tuple(document(index) for index in range(task.documents)),
    )


def accuracy_outcome(task: TaskReplay, replay: RungReplay) -> AccuracyOutcome:
    """What a rung answered; see the module for how many are right."""
    right = right_answers(task, replay)
    outcomes = [_document_outcome(task, replay, index, right[index]) for index in range(task.documents)]
    metrics = _metric_infos(task)
    results: dict[str, float] = {}
    for metric in metrics:
        values = [outcome.metrics[metric.key] for outcome in outcomes]
        pairs = [value for value in values if isinstance(value, tuple)]
        if pairs:
            mean = sum(total for total, _ in pairs) / sum(weight for _, weight in pairs)
            results[metric.key] = -mean / math.log(2)
        else:
            results[metric.key] = sum(value for value in values if not isinstance(value, tuple)) / len(values)
    return AccuracyOutcome(
        documents_hash=task_documents(task).documents_hash,
        output_type={"choice": "multiple_choice", "generation": "generate_until", "rolling": "loglikelihood_rolling"}[
            task.kind
        ],
        metrics=metrics,
        harness_results=results,
        documents=tuple(outcomes),
    )


def gpu_scoring(rung: str) -> Scoring:
    """As the backend ``bitladder`` scores on a GPU, but for one rung whose kernels aren't known."""
    unknown = "the rule of bitsandbytes 0.49.0 is not known" if rung == "int8-t0" else None
    kernels = {
        "i": [
            ProductKernel(kernel="INT8 by cuBLASLt, outlier columns apart", least_rows=1, most_rows=8192, products=2800)
        ],
        "4": [
            ProductKernel(kernel="matrix-vector", least_rows=1, most_rows=3, products=700),
            ProductKernel(kernel="dequantized, then cuBLAS", least_rows=700, most_rows=8192, products=2100),
        ],
        "b": [],
    }["4" if "4" in rung else "i" if "int" in rung else "b"]
    return Scoring(
        attention=("tree kernel in Triton",),
        shared=True,
        compiled=False,
        widened=False,
        row_kernel=True,
        forwards=400,
        least_rows=1,
        most_rows=8192,
        kernels=None if unknown else tuple(kernels),
        no_kernels_reason=unknown,
    )


def divergence_outcome(item: Divergence, replay: RungReplay) -> DivergenceOutcome:
    """Two windows a document; as far from the baseline as a rung has answers that it lost, with a ripple."""
    windows = []
    for window in range(item.windows):
        own = [math.sin(37.0 * window + token) for token in range(item.window_tokens - 1)]
        kl = [replay.lost * (1 + wave + 0.3 * math.cos(window // 2)) ** 2 for wave in own]
        baseline = [-3.0 - wave for wave in own]
        windows.append(
            WindowDivergence(
                document=f"article {window // 2 + 1}",
                kl=tuple(kl),
                agrees=tuple(one < 0.2 for one in kl),
                baseline_loglikelihoods=tuple(baseline),
                loglikelihoods=tuple(before - one for before, one in zip(baseline, kl, strict=True)),
            )
        )
    return DivergenceOutcome(origin="replayed text", windows=tuple(windows))


def right_answers(task: TaskReplay, replay: RungReplay) -> list[bool]:
    right_count = round(task.right * task.documents)
    right = [index < right_count for index in range(task.documents)]
    for index in range(min(round(replay.lost * task.documents), right_count)):
        right[index] = False
    for index in range(min(round(replay.gained * task.documents), task.documents - right_count)):
        right[right_count + index] = True
    return right


def performance_outcome(scenario: Scenario, replay: RungReplay, gpu: bool = False) -> PerformanceOutcome:
    """Batches of the scenario's cap until its requests are done; a full one's steps take ``step_s`` times a ripple."""
    batch_size = scenario.batch_size_cap or 8
    slowdown = 1.0 if batch_size == 1 else replay.batch_slowdown
    speed = 0.05 if gpu else 1.0
    batches: list[BatchSample] = []
    requests: list[RequestSample] = []
    clock = 0.0
    while len(requests) < scenario.requests:
        rows = min(batch_size, scenario.requests - len(requests))
        ripple = 1 + 0.01 * math.sin(1.7 * len(batches))
        started = clock + 0.001
        submitted = started if batch_size == 1 else 0.0
        prefill = replay.prefill_s * speed * ripple * (1.0 if batch_size == 1 else batch_size / 1.6)
        step = replay.step_s * speed * ripple * slowdown
        ends = tuple(started + prefill + step * index for index in range(scenario.new_tokens))
        requests += [
            RequestSample(
                batch=len(batches),
                submitted_s=submitted,
                status="ok",
                prompt_tokens=scenario.prompt_tokens,
                new_tokens=scenario.new_tokens,
            )
            for _ in range(rows)
        ]
        batches.append(BatchSample(batch_size=rows, started_s=started, step_end_s=ends))
        clock = ends[-1] + 0.001
    idle = 365 * MIB
    peak = idle + replay.loaded_bytes + 40 * MIB * batch_size
    return PerformanceOutcome(
        engine="eager",
        launch={"attention": "sdpa", "threads": scenario.threads, "use_cache": True},
        batch_size=batch_size,
        batch_search=()
        if batch_size == 1
        else (
            BatchProbe(batch_size=8, fits=True, how="predicted", needed_bytes=peak, available_bytes=8 * GIB),
            *(
                [BatchProbe(batch_size=9, fits=False, how="run", needed_bytes=None, available_bytes=8 * GIB)]
                if gpu
                else []
            ),
        ),
        load_time_s=0.4 + replay.loaded_bytes / 10**9,
        warmup=(BatchSample(batch_size=batch_size, started_s=0.0, step_end_s=(0.5, 0.6)),),
        batches=tuple(batches),
        requests=tuple(requests),
        stopped_by="requests",
        hook_s_per_step=2e-6,
        memory=MemoryFigures(
            loaded_bytes=replay.loaded_bytes,
            idle_process_bytes=idle,
            peak_process_bytes=peak,
            allocated_peak_bytes=peak - idle - 10 * MIB if gpu else None,
            reserved_peak_bytes=peak - idle if gpu else None,
            idle_device_bytes=300 * MIB if gpu else None,
        ),
        resources=tuple(
            _resource_sample(index, clock, peak, peak - idle if gpu else None) for index in range(int(clock / 0.25) + 2)
        ),
        idle_powers_w=(45.0,) * 5 if gpu else (),
        unavailable={} if gpu else NO_GPU,
    )


def _resource_sample(index: int, end_s: float, peak_bytes: int, device_bytes: int | None) -> ResourceSample:
    time_s = min(0.25 * index, end_s)
    swing = 0.9 + 0.1 * (index % 2)
    sample = ResourceSample(time_s=time_s, cpu_percent=190.0 - index % 3, rss_bytes=int(peak_bytes * swing))
    if device_bytes is None:
        return sample
    return sample.model_copy(
        update={
            "gpu_utilisation_percent": 80.0 + index % 5,
            "gpu_memory_bytes": 300 * MIB + int(device_bytes * swing),
            "gpu_process_bytes": int(device_bytes * swing),
            "gpu_power_w": 60.0 + index % 4,
            "gpu_energy_j": 1000.0 + 61.0 * time_s,
            "gpu_sm_clock_mhz": 1590,
            "gpu_throttle_bits": 0,
        }
    )


def _metric_infos(task: TaskReplay) -> tuple[MetricInfo, ...]:
    if task.kind == "rolling":
        return (MetricInfo(name="bits_per_byte", filter="none", aggregation="bits_per_byte", higher_is_better=False),)
    if task.kind == "generation":
        return tuple(
            MetricInfo(name="exact_match", filter=name, aggregation="mean", higher_is_better=True)
            for name in ("strict-match", "flexible-extract")
        )
    names = ("acc", "acc_norm") if task.has_norm else ("acc",)
    return tuple(MetricInfo(name=name, filter="none", aggregation="mean", higher_is_better=True) for name in names)


def _document_outcome(task: TaskReplay, replay: RungReplay, index: int, right: bool) -> DocumentOutcome:
    loglikelihoods: tuple[float, ...] | None = None
    greedy: tuple[bool, ...] | None = None
    text: str | None = None
    metrics: dict[str, float | tuple[float, float]]
    if task.kind == "rolling":
        size_bytes = 900.0 + 50 * index
        loglikelihood = -replay.bits_per_byte * math.log(2) * size_bytes * (1 + 0.02 * math.cos(index))
        loglikelihoods, metrics = (loglikelihood,), {"bits_per_byte,none": (loglikelihood, size_bytes)}
    elif task.kind == "generation":
        text = f"#### {index if right else index + 1}"
        metrics = {
            "exact_match,strict-match": float(right),
            "exact_match,flexible-extract": float(right or index % 7 == 0),
        }
    else:
        chosen = index % 4 if right else (index + 1) % 4
        loglikelihoods = tuple(-0.4 if choice == chosen else -2.0 - 0.1 * choice for choice in range(4))
        greedy = tuple(choice == chosen for choice in range(4))
        metrics = {"acc,none": float(right)}
        if task.has_norm:
            metrics["acc_norm,none"] = float(right or index % 11 == 0)
    return DocumentOutcome(
        doc_hash=_doc_hash(task, index),
        prompt_hash=_prompt_hash(task, index),
        loglikelihoods=loglikelihoods,
        greedy=greedy,
        text=text,
        target=index % 4 if task.kind == "choice" else None,
        metrics=metrics,
    )


@cache
def _doc_hash(task: TaskReplay, index: int) -> str:
    return hash_json(["doc", task.name, index])


@cache
def _prompt_hash(task: TaskReplay, index: int) -> str:
    return hash_json(["prompt", task.name, index])
