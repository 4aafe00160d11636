"""Recorded runs that never ran: complete result folders with known answers, timings and memory.

Outcomes are exact, not drawn: of n questions the baseline has ``round(right * n)`` right, and a rung gains and loses
``round(share * n)`` of them. Timings carry a small fixed ripple, so that intervals have a width.
"""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal
from unittest import mock

from bitladder.methods import BASELINE, find_rung
from bitladder.records import (
    AccuracyTask,
    Audit,
    Calibration,
    Divergence,
    Finding,
    Gpu,
    Item,
    Machine,
    Manifest,
    MeasurementRecord,
    Outcome,
    RungRecord,
    Scenario,
    Settings,
    Source,
    Status,
    StudyRecord,
    TaskGroup,
    hash_json,
    measurement_id,
)
from bitladder.results import item_name
from bitladder.results.store import Store
from bitladder.units import GIB
from replay_outcomes import (
    RungReplay,
    TaskReplay,
    accuracy_outcome,
    divergence_outcome,
    gpu_scoring,
    performance_outcome,
    task_documents,
)

RUNGS: dict[str, RungReplay] = {
    "bf16": RungReplay(0.0, 0.0, 0.20, 0.056, 5.0, 269 * 10**6, 1.02),
    "fp16": RungReplay(0.0, 0.0, 0.21, 0.060, 5.0, 269 * 10**6, 1.02),
    "int8": RungReplay(0.01, 0.01, 0.26, 0.170, 2.2, 163 * 10**6, 1.03),
    "fp4": RungReplay(0.01, 0.12, 0.17, 0.080, 2.3, 116 * 10**6, 1.14),
    "nf4": RungReplay(0.015, 0.03, 0.30, 0.165, 2.7, 116 * 10**6, 1.09),
}

BUILTIN_TASKS = (
    TaskReplay("bitladder_knowledge", "choice", 140, 0.80),
    TaskReplay("bitladder_language", "choice", 140, 0.70),
    TaskReplay("bitladder_arithmetic", "choice", 140, 0.60),
    TaskReplay("bitladder_prose", "rolling", 12),
)


def _row(name: str, title: str, *tasks: str, in_aggregate: bool = True) -> TaskGroup:
    return TaskGroup(name=name, title=title, tasks=tasks or (name,), pooling="documents", in_aggregate=in_aggregate)


BUILTIN_GROUPS = (
    _row("bitladder_knowledge", "Knowledge"),
    _row("bitladder_language", "Language"),
    _row("bitladder_arithmetic", "Arithmetic"),
    _row("bitladder_prose", "Prose", in_aggregate=False),
)

MMLU_SUBJECTS: dict[str, tuple[str, ...]] = {
    "mmlu_humanities": ("mmlu_philosophy", "mmlu_world_religions"),
    "mmlu_other": ("mmlu_marketing", "mmlu_nutrition"),
    "mmlu_social_sciences": ("mmlu_sociology", "mmlu_econometrics"),
    "mmlu_stem": ("mmlu_astronomy", "mmlu_abstract_algebra"),
}
PAPER_TASKS = (
    TaskReplay("arc_challenge", "choice", 120, 0.40, has_norm=True),
    TaskReplay("arc_easy", "choice", 120, 0.65, has_norm=True),
    TaskReplay("hellaswag", "choice", 120, 0.48, has_norm=True),
    TaskReplay("gsm8k", "generation", 100, 0.30),
    TaskReplay("gsm8k_cot", "generation", 100, 0.40),
    *(
        TaskReplay(subject, "choice", 30 + 10 * index, 0.42)
        for subjects in MMLU_SUBJECTS.values()
        for index, subject in enumerate(subjects)
    ),
)
PAPER_GROUPS = (
    _row("arc_challenge", "ARC-Challenge"),
    _row("arc_easy", "ARC-Easy"),
    TaskGroup(name="gsm8k", title="GSM8K", tasks=("gsm8k", "gsm8k_cot"), pooling="mean", in_aggregate=True),
    _row("hellaswag", "HellaSwag"),
    _row("mmlu", "MMLU", *(subject for subjects in MMLU_SUBJECTS.values() for subject in subjects)),
    *(
        _row(name, f"MMLU {name.removeprefix('mmlu_').replace('_', ' ')}", *subjects, in_aggregate=False)
        for name, subjects in MMLU_SUBJECTS.items()
    ),
)

Ends = Mapping[tuple[str, str], tuple[Status, str]]
"""(rung, task or scenario) -> how that measurement ended, and why"""


def write_replay(
    directory: Path,
    *,
    suite: Literal["builtin", "paper"] = "builtin",
    rungs: Mapping[str, RungReplay] = RUNGS,
    tasks: tuple[TaskReplay, ...] | None = None,
    groups: tuple[TaskGroup, ...] | None = None,
    gpu: bool = False,
    only: Literal["accuracy", "performance"] | None = None,
    batch1_requests: int = 12,
    batches: int = 2,
    divergence: bool = False,
    ends: Ends | None = None,
    absent: Collection[tuple[str, str]] = (),
    broken_rungs: Mapping[str, tuple[Status, str]] | None = None,
) -> Path:
    """Write the result folder of a finished study and return it.

    `ends`: measurements that ended otherwise than well. `absent`: measurements that were planned and not made.
    `broken_rungs`: rungs whose checkpoint was refused (the audit has an error) or could not be made.
    """
    ends, broken_rungs = ends or {}, broken_rungs or {}
    tasks = tasks or (BUILTIN_TASKS if suite == "builtin" else PAPER_TASKS)
    groups = groups or (BUILTIN_GROUPS if suite == "builtin" else PAPER_GROUPS)
    device = "cuda:0" if gpu else "cpu"
    accuracy = [] if only == "performance" else [accuracy_item(task, device) for task in tasks]
    performance = [] if only == "accuracy" else scenario_items(device, batch1_requests, batches)
    study = StudyRecord(
        settings=Settings(
            model="builtin:smollm2-135m" if suite == "builtin" else "meta-llama/Llama-3.2-1B",
            rungs=tuple(rungs),
            only=only,
            suite=suite,
        ),
        suite=suite,
        baseline=BASELINE,
        source=source(suite),
        calibration=Calibration(
            device=device, threads=None if gpu else 2, max_batch_cap=None if gpu else 8, machine=machine(gpu)
        ),
        groups=groups if accuracy else (),
        items=(*([divergence_item(suite, device)] if divergence else []), *accuracy, *performance),
    )
    with mock.patch("os.fsync"):  # nothing here has to outlast a power cut
        store = Store(directory)
        store.write_study(study)
        for task in tasks if accuracy else ():
            store.write_documents(task_documents(task))
        for name, replay in rungs.items():
            rung = rung_record(name, replay, study.source, broken_rungs.get(name))
            store.write_rung(rung)
            if rung.status != "ok":
                continue
            for item in study.items:
                key = (name, item_name(item))
                if key not in absent:
                    store.write_measurement(_measurement(rung, replay, item, tasks, gpu, ends.get(key)))
    return directory


def write_broken_replay(directory: Path, *, gpu: bool = False) -> Path:
    """A study where much went wrong: no baseline checkpoint, fp4 does not fit, int8 failed in one task, nf4 refused."""
    return write_replay(
        directory,
        gpu=gpu,
        divergence=True,
        ends={
            ("int8", "divergence"): ("failed", "the baseline has no checkpoint to be held against"),
            ("int8", "bitladder_language"): ("failed", "RuntimeError: expected all tensors on one device"),
            ("fp4", "max-batch"): ("does_not_fit", "needs 9.1 GiB, 6.0 GiB free"),
            ("fp16", "bitladder_prose"): ("timeout", "no answer after 21600 s"),
        },
        absent={("fp16", "max-batch")},
        broken_rungs={
            "bf16": ("failed", "No space left on device"),
            "nf4": ("refused", "the audit found FP4 where NF4 was declared"),
        },
    )


def machine(gpu: bool = False) -> Machine:
    gpus = (Gpu(name="NVIDIA T4", total_memory_bytes=15 * GIB, compute_capability="7.5", driver="580.10"),)
    return Machine(
        cpu_model="Replayed CPU",
        cpu_count=2,
        total_memory_bytes=16 * GIB,
        platform="Linux-6.1-x86_64",
        gpus=gpus if gpu else (),
        versions={"torch": "2.11.0", "transformers": "5.17.0", "bitsandbytes": "0.50.2", "lm-eval": "0.4.13"},
    )


def source(suite: str) -> Source:
    if suite == "paper":
        return Source(model="meta-llama/Llama-3.2-1B", kind="hub", revision="4e20de3", content_hash="5a" * 32)
    return Source(
        model="builtin:smollm2-135m",
        kind="builtin",
        revision=None,
        content_hash="5b" * 32,
        note="The source was already 4-bit (Q4_1): drops are against this baseline, not against the released model.",
    )


def rung_record(name: str, replay: RungReplay, origin: Source, broken: tuple[Status, str] | None = None) -> RungRecord:
    status, reason = broken or ("ok", None)
    if status not in ("ok", "refused"):
        return RungRecord(rung=name, status=status, reason=reason, content_hash=None, manifest=None, audit=None)
    content_hash = hashlib.sha256(f"{origin.model} {name}".encode()).hexdigest()
    scheme = find_rung(name).scheme
    findings = [Finding(check="stored_bytes", severity="info", message=f"{replay.loaded_bytes} bytes of tensors")]
    if status == "refused":
        findings.append(Finding(check="scheme", severity="error", message=reason or ""))
    return RungRecord(
        rung=name,
        status=status,
        reason=reason,
        content_hash=content_hash,
        manifest=Manifest(
            rung=name,
            scheme=scheme,
            source=origin,
            architecture="LlamaForCausalLM",
            quantizing_device="cpu",
            versions={"torch": "2.11.0"},
            recipe_hash=hash_json([name, origin.content_hash]),
            content_hash=content_hash,
            files={},
            bytes_by_dtype={scheme.stored_type: replay.loaded_bytes},
            parameters=134_515_008,
        ),
        audit=Audit(
            checkpoint=f"checkpoints/{name}",
            content_hash=content_hash,
            declared=scheme,
            declared_by="manifest",
            found=scheme,
            stored_bytes=replay.loaded_bytes,
            loaded_bytes=replay.loaded_bytes,
            findings=tuple(findings),
        ),
    )


def accuracy_item(task: TaskReplay, device: str = "cpu") -> AccuracyTask:
    return AccuracyTask(
        task=task.name,
        task_hash=hash_json(task.name),
        limit=None,
        num_fewshot=None,
        batch_size=8,
        seed=1234,
        chat_template=False,
        device=device,
        harness_version="0.4.13",
    )


def divergence_item(suite: str, device: str = "cpu") -> Divergence:
    """From the baseline's content, which `rung_record` makes of its name."""
    baseline = rung_record(BASELINE, RUNGS[BASELINE], source(suite))
    return Divergence(
        baseline_hash=baseline.content_hash, texts_hash="8c" * 32, windows=12, window_tokens=128, device=device
    )


def scenario_items(device: str = "cpu", batch1_requests: int = 12, batches: int = 2) -> list[Item]:
    def scenario(name: Literal["batch1", "max-batch"], cap: int, requests: int) -> Scenario:
        return Scenario(
            scenario=name,
            batch_size_cap=cap,
            requests=requests,
            prompt_tokens=32,
            new_tokens=16,
            prompts_hash="9d" * 32,
            seed=1234,
            device=device,
            engine="eager",
            threads=2,
            half_width_target=0.02,
            time_limit_s=1800.0,
        )

    return [scenario("batch1", 1, batch1_requests), scenario("max-batch", 8, 8 * batches)]


def _measurement(
    rung: RungRecord,
    replay: RungReplay,
    item: Item,
    tasks: tuple[TaskReplay, ...],
    gpu: bool,
    end: tuple[Status, str] | None,
) -> MeasurementRecord:
    assert rung.content_hash is not None
    status, reason = end or ("ok", None)
    outcome: Outcome | None = None
    if status == "ok" and isinstance(item, Divergence):
        outcome = divergence_outcome(item, replay)
    elif status == "ok" and isinstance(item, AccuracyTask):
        outcome = accuracy_outcome(next(task for task in tasks if task.name == item.task), replay)
        outcome = outcome.model_copy(update={"scoring": gpu_scoring(rung.rung) if gpu else None})
    elif status == "ok" and isinstance(item, Scenario):
        outcome = performance_outcome(item, replay, gpu)
    return MeasurementRecord(
        measurement_id=measurement_id(rung.content_hash, item),
        rung=rung.rung,
        content_hash=rung.content_hash,
        item=item,
        status=status,
        reason=reason,
        machine=machine(gpu),
        started_at="2026-01-01T00:00:00Z",
        duration_s=42.0,
        outcome=outcome,
    )
