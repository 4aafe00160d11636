"""A worker: one process for one rung and phase. Gets a job, answers with messages.

What the worker can name (too large for memory, bad input) it reports; a bug ends it with its traceback, which the
parent records.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from bitladder.errors import DoesNotFitError, UserError, describe_machine_error
from bitladder.records import (
    AccuracyTask,
    Audit,
    Divergence,
    Item,
    Manifest,
    MeasurementRecord,
    Outcome,
    PerformanceOutcome,
    Record,
    Rescoring,
    RungRecord,
    Scenario,
    Status,
    hash_json,
    measurement_id,
)
from bitladder.study.messages import (
    BatchDone,
    Documents,
    Job,
    Measured,
    Preparation,
    Refused,
    RungMade,
    Started,
    Stopped,
    TaskProgress,
)

if TYPE_CHECKING:
    from bitladder.accuracy.samples import Journal

PROGRESS_INTERVAL_S = 0.5


class _Pipe:
    """The way back to the parent: one JSON line a message."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._last_progress_s = 0.0

    def send(self, message: Record) -> None:
        self._file.write(message.model_dump_json() + "\n")
        self._file.flush()

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._last_progress_s >= PROGRESS_INTERVAL_S:
            self._last_progress_s = now
            self.send(TaskProgress(done=done, total=total))


def work(job: str, answers: TextIO) -> None:
    """Do this `Job`, with messages as lines of ``answers``."""
    asked, pipe = Job.model_validate_json(job), _Pipe(answers)
    try:
        _PHASES[asked.phase](asked, pipe)
    except DoesNotFitError as error:
        pipe.send(Stopped(status="does_not_fit", reason=str(error)))
    except UserError as error:
        pipe.send(Stopped(status="failed", reason=str(error)))
    except OSError as error:
        reason = describe_machine_error(error)
        if reason is None:
            raise
        pipe.send(Refused(reason=reason))


def prepare(preparation: str) -> None:
    """Build the tasks that the workers forked from here ask: data is read and hashed once, not for every rung."""
    from bitladder.accuracy.evaluate import build_tasks

    found = Preparation.model_validate_json(preparation)
    build_tasks(found.items, found.sources)


def try_out() -> None:
    """Compute with all threads. Hangs where a task used some as it was built, raises where it used CUDA."""
    import torch

    if torch.cuda._is_in_bad_fork():
        raise RuntimeError("CUDA was used before the fork")
    ones = torch.ones(512, 512)
    float((ones @ ones + ones).sum())


def _make_checkpoint(job: Job, pipe: _Pipe) -> None:
    from bitladder.auditing import audit
    from bitladder.quantization import quantize

    recipe, trust = job.recipe, job.policy.trust_remote_code
    assert recipe is not None
    directory = Path(job.directory)
    checkpoint = quantize(
        recipe.model,
        job.rung,
        directory,
        revision=recipe.revision,
        trust_remote_code=trust,
        replace=True,
        allow_partial=recipe.allow_partial,
    )
    found = audit(directory, device=job.policy.device, trust_remote_code=trust)
    pipe.send(RungMade(record=_to_record(job.rung, found, checkpoint.manifest)))


def _audit_ready(job: Job, pipe: _Pipe) -> None:
    """A ready checkpoint has to load: nothing but its own library knows whether it can."""
    from bitladder.auditing import audit
    from bitladder.checkpoint.loading import require_memory
    from bitladder.checkpoint.scheme import own_manifest

    directory = Path(job.directory)
    require_memory(directory, job.policy.device)
    found = audit(directory, device=job.policy.device, trust_remote_code=job.policy.trust_remote_code)
    record = _to_record(job.rung, found, own_manifest(directory))
    if record.status == "ok" and found.loaded_bytes is None:
        reason = next(finding.message for finding in found.findings if finding.check == "load")
        record = record.model_copy(update={"status": "failed", "reason": reason})
    pipe.send(RungMade(record=record))


def _to_record(rung: str, found: Audit, manifest: Manifest | None) -> RungRecord:
    return RungRecord(
        rung=rung,
        status="ok" if found.passed else "refused",
        reason=None if found.passed else "; ".join(finding.message for finding in found.errors),
        content_hash=found.content_hash,
        manifest=manifest,
        audit=found,
    )


def _measure_divergence(job: Job, pipe: _Pipe) -> None:
    from bitladder.accuracy.divergence import measure_divergence

    _set_threads(job.threads)
    windows, reference = job.prompts, job.reference
    assert windows is not None
    assert reference is not None

    for item in job.items:
        assert isinstance(item, Divergence)
        run = partial(
            measure_divergence,
            Path(job.directory),
            item,
            windows,
            Path(reference),
            is_baseline=job.content_hash == item.baseline_hash,
            policy=job.policy,
            progress=pipe.progress,
        )
        _measure(job, item, pipe, run)


def _measure_accuracy(job: Job, pipe: _Pipe) -> None:
    from bitladder.accuracy.evaluate import evaluate
    from bitladder.accuracy.rescoring import rescore
    from bitladder.checkpoint.loading import load_tokenizer
    from bitladder.perf.engines import find_engine

    _set_threads(job.threads)
    directory, sources = Path(job.directory), job.sources
    assert sources is not None
    first = job.items[0]
    task = first.task if isinstance(first, Rescoring) else first
    assert isinstance(task, AccuracyTask)
    answering = find_engine(task.engine).answering
    assert answering is not None  # as planned
    model = answering(directory, job.policy)
    tokenizer = load_tokenizer(directory, job.policy)

    def run(item: AccuracyTask, journal: "Journal | None") -> Outcome:
        outcome, documents = evaluate(model, tokenizer, item, sources, pipe.progress, journal)
        pipe.send(Documents(documents=documents))
        return outcome

    for item in job.items:
        assert isinstance(item, AccuracyTask | Rescoring)
        if isinstance(item, Rescoring):
            _measure(job, item, pipe, partial(rescore, model, tokenizer, item, sources, pipe.progress))
        else:
            journal = _journal(job, item, pipe)
            _measure(job, item, pipe, partial(run, item, journal), journal)


def _journal(job: Job, item: AccuracyTask, pipe: _Pipe) -> "Journal | None":
    from bitladder.accuracy.samples import Journal, read_entries

    if job.journals is None or job.content_hash is None:
        return None
    identity = measurement_id(job.content_hash, item)
    entries = read_entries(Path(job.journals) / f"{identity}.jsonl")
    key = hash_json([job.machine.identity, job.policy.device, job.threads])
    return Journal(entries, key, lambda entry: pipe.send(BatchDone(measurement_id=identity, entry=entry)))


def _measure_performance(job: Job, pipe: _Pipe) -> None:
    from bitladder.perf.measure import measure

    _set_threads(job.threads)
    prompts = job.prompts
    assert prompts is not None

    directory, policy = Path(job.directory), job.policy
    for item in job.items:
        assert isinstance(item, Scenario)
        run = partial(
            measure, directory, item, prompts, policy, audited_bytes=job.audited_bytes, progress=pipe.progress
        )
        _measure(job, item, pipe, run)


def _measure(job: Job, item: Item, pipe: _Pipe, run: Callable[[], Outcome], journal: "Journal | None" = None) -> None:
    """Run one item and send its record: ok, or an outcome that has a name."""
    from bitladder.perf.batches import find_disturbance

    assert job.content_hash is not None
    identity = measurement_id(job.content_hash, item)
    pipe.send(Started(measurement_id=identity))
    started_at, started = datetime.now(UTC), time.perf_counter()
    outcome: Outcome | None = None
    status: Status = "ok"
    reason = disturbance = None
    try:
        outcome = run()
        disturbance = find_disturbance(outcome, job.policy.device) if isinstance(outcome, PerformanceOutcome) else None
        if disturbance is not None:
            status, reason = "failed", disturbance  # its samples stay in the record, and no figure is made of them
    except DoesNotFitError as error:
        status, reason = "does_not_fit", str(error)
    except UserError as error:
        status, reason = "failed", str(error)
    pipe.send(
        Measured(
            record=MeasurementRecord(
                measurement_id=identity,
                rung=job.rung,
                content_hash=job.content_hash,
                item=item,
                status=status,
                reason=reason,
                disturbed=disturbance is not None,
                machine=job.machine,
                started_at=started_at.isoformat(timespec="seconds"),
                duration_s=time.perf_counter() - started + (journal.earlier_s if journal else 0.0),
                outcome=outcome,
            )
        )
    )


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


_PHASES = {
    "checkpoint": _make_checkpoint,
    "audit": _audit_ready,
    "divergence": _measure_divergence,
    "accuracy": _measure_accuracy,
    "rescoring": _measure_accuracy,  # where only that is left
    "performance": _measure_performance,
}
