"""Who runs what: a worker for each checkpoint, and for each rung and phase; what they leave is written here."""

import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bitladder.errors import UserError
from bitladder.executors.executor import Branch, Executor, Running
from bitladder.files import naming
from bitladder.quantization import require_space
from bitladder.records import (
    Divergence,
    Item,
    MeasurementRecord,
    PerformanceOutcome,
    Record,
    RungRecord,
    Scenario,
    Status,
    measurement_id,
)
from bitladder.results import is_planned
from bitladder.results.store import Store
from bitladder.study.messages import (
    MESSAGE,
    BatchDone,
    Documents,
    Job,
    Measured,
    Phase,
    Preparation,
    Refused,
    RungMade,
    Started,
    Stopped,
    StudyProgress,
    TaskProgress,
)
from bitladder.study.plan import Kept, Missing
from bitladder.study.prepare import Prepared
from bitladder.study.time_left import Telling


@dataclass
class Weights:
    """Knows of each rung whether its checkpoint is there, and still what was audited."""

    prepared: Prepared
    store: Store
    kept: Kept
    missing: Missing
    there: set[str] = field(default_factory=set)
    """whose checkpoint this run has made, or found to be what was audited"""

    def absent(self, asked: Collection[str], progress: StudyProgress) -> list[str]:
        """What has to be made before anything is measured; ``asked``: whom the next stage asks."""
        return [
            name
            for name, known in self.missing.rungs.items()
            if known is None
            or self.are_needed(known, self.missing.all_items if name in asked else self.missing.whole_items)
            or self.is_damaged(known, progress)
        ]

    def are_needed(self, record: RungRecord, items: tuple[Item, ...]) -> bool:
        """Whether something is left to measure and the checkpoint isn't there, or is no longer what was audited."""
        if record.status != "ok" or record.rung in self.there or not self.missing.of(record, items):
            return False
        self.there.add(record.rung)  # now, or when it is made
        return record.rung not in self.prepared.added and not self.kept.has_weights(record)

    def is_damaged(self, record: RungRecord, progress: StudyProgress) -> bool:
        differences = self.kept.damages(record)
        if differences:
            directory = self.store.checkpoint_directory(record.rung)
            progress.warn(f"{directory}: changed since its audit ({'; '.join(differences)}); making it again")
        return bool(differences)

    def require_space(self, names: Collection[str]) -> None:
        """For all at once: a disk that is too small ends a study before hours of it."""
        made = [name for name in names if name not in self.prepared.added]
        require_space(self.prepared.model, made, self.store.directory, self.prepared.wanted.policy)


@dataclass(frozen=True)
class Ended:
    """How a worker ended that did not end well."""

    status: Status
    reason: str
    in_flight: str | None
    """id of the measurement that it was busy with"""


WORKER = "bitladder.study.worker"


class Worker:
    """One worker process. Iterate over its messages; afterwards ``ended`` says what went wrong, if anything."""

    def __init__(self, executor: Executor, job: Job, log: Path, timeout_s: float) -> None:
        self.ended: Ended | None = None
        self.process_id: int | None = None
        self._executor = executor
        self._job = job
        self._log = log
        self._timeout_s = timeout_s
        self._in_flight: str | None = None

    def messages(self) -> Iterator[Record]:
        """Yields messages until the worker ends; the time limit is for each measurement, or for a checkpoint.

        Raises UserError where the machine refused it something.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with naming(self._log), self._log.open("wb") as log:
            running = self._executor.submit(self._job.model_dump_json(), log)
        with running:
            self.process_id = running.process_id
            yield from self._read(running)
            self._judge(running.wait())

    def _read(self, running: Running) -> Iterator[Record]:
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                line = running.receive(deadline - time.monotonic())
            except TimeoutError:
                self.ended = Ended("timeout", f"took longer than {self._timeout_s:g} s", self._in_flight)
                running.end()
                return
            if line is None:
                return
            message = MESSAGE.validate_json(line)
            if isinstance(message, Started):
                self._in_flight = message.measurement_id
                deadline = time.monotonic() + self._timeout_s
            elif isinstance(message, Measured):
                self._in_flight = None
            elif isinstance(message, Stopped):
                self.ended = Ended(message.status, message.reason, self._in_flight)
            elif isinstance(message, Refused):
                raise UserError(f"{self._job.rung}, {self._job.phase}: {message.reason}")
            yield message

    def _judge(self, code: int) -> None:
        if self.ended is not None or code == 0:
            return
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (often the system running out of memory)" if name == "SIGKILL" else ""
            reason = f"the worker was ended by {name}{hint}"
        else:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            reason = next(filter(None, map(str.strip, reversed(lines))), f"the worker ended with exit code {code}")
        self.ended = Ended("failed", f"{reason}; log: {self._log}", self._in_flight)


@dataclass
class Workers:
    """Runs a plan's workers, one at a time."""

    executor: Executor
    prepared: Prepared
    store: Store
    missing: Missing
    telling: Telling
    asking: Branch | None = None
    """runs the workers that ask questions, with the tasks that all of them ask"""
    has_branches: bool = True
    """or workers build their tasks themselves"""

    def close(self) -> None:
        if self.asking is not None:
            self.asking.close()
            self.asking = None

    def make(self, name: str) -> RungRecord:
        """Quantize and audit, or audit a ready checkpoint. Raises UserError where it is of other files than planned."""
        study = self.missing.study
        source = study.added.get(name)
        self.telling.progress.phase(name, "audit" if source else "quantize and audit")
        record = RungRecord(
            rung=name, status="failed", reason="the worker sent no record", content_hash=None, manifest=None, audit=None
        )
        worker = self._worker("audit" if source else "checkpoint", name)
        for message in worker.messages():
            if isinstance(message, RungMade):
                record = message.record
        if worker.ended is not None:
            record = record.model_copy(update={"status": worker.ended.status, "reason": worker.ended.reason})
        record = record.model_copy(update={"source": source})
        if not is_planned(study, record):
            raise UserError(
                f"{study.source.model}: its files have changed since the study began; run it again with "
                "another --out, or with the files that it began with"
            )
        self.store.write_rung(record)
        self.telling.left.made(name)
        self.telling.progress.rung(record)
        return record

    def measure(self, rung: RungRecord, items: tuple[Item, ...]) -> None:
        """Measure what is missing; a worker that ended badly costs its measurement in flight, not the rest."""
        assert rung.content_hash is not None
        left = {measurement_id(rung.content_hash, item): item for item in self.missing.of(rung, items)}
        while left:
            started_at, started = datetime.now(UTC), time.perf_counter()
            before = len(left)
            ended = self._run_worker(rung, left)
            if ended is None:
                return
            if ended.in_flight is None and len(left) < before:
                continue  # it ended between two measurements
            # without one in flight the worker could not even begin, and a second would not either
            lost = [ended.in_flight] if ended.in_flight in left else list(left)
            for identity in lost:
                record = MeasurementRecord(
                    measurement_id=identity,
                    rung=rung.rung,
                    content_hash=rung.content_hash,
                    item=left.pop(identity),
                    status=ended.status,
                    reason=ended.reason,
                    machine=self.missing.study.calibration.machine,
                    started_at=started_at.isoformat(timespec="seconds"),
                    duration_s=time.perf_counter() - started,
                )
                self.store.write_measurement(record)
                self.telling.measured(record)

    def _run_worker(self, rung: RungRecord, left: dict[str, Item]) -> Ended | None:
        """One worker over ``left``, from which each measurement that leaves a record is removed."""
        first = next(iter(left.values()))
        self.telling.progress.phase(rung.rung, first.scenario if isinstance(first, Scenario) else first.kind)
        busy = self.telling.busy_share() if isinstance(first, Scenario) else None
        worker = self._worker(first.kind, rung.rung, rung, tuple(left.values()))
        for message in worker.messages():
            if isinstance(message, TaskProgress):
                self.telling.progress.step(message.done, message.total)
            elif isinstance(message, Documents):
                self.store.write_documents(message.documents)
            elif isinstance(message, BatchDone):
                self.store.add_to_journal(message.measurement_id, message.entry)
            elif isinstance(message, Measured):
                record = message.record
                if isinstance(record.outcome, PerformanceOutcome):
                    outcome = record.outcome.model_copy(update={"busy_share": busy})
                    record = record.model_copy(update={"outcome": outcome})
                self.store.write_measurement(record)
                self.store.remove_journal(record.measurement_id)
                left.pop(record.measurement_id)
                self.telling.measured(record)
        return worker.ended

    def _worker(self, phase: Phase, name: str, rung: RungRecord | None = None, items: tuple[Item, ...] = ()) -> Worker:
        """``rung``: its record, once it is made."""
        calibration = self.missing.study.calibration
        first = items[0] if items else None
        texts = first.prompts_hash if isinstance(first, Scenario) else None
        if isinstance(first, Divergence):
            texts = first.texts_hash
        job = Job(
            phase=phase,
            rung=name,
            directory=str(self.prepared.added.get(name) or self.store.checkpoint_directory(name)),
            policy=self.prepared.wanted.policy.model_copy(update={"device": calibration.device}),
            recipe=self.prepared.wanted.recipe,
            sources=self.prepared.wanted.tasks.sources,
            threads=calibration.threads,
            machine=calibration.machine,
            content_hash=rung.content_hash if rung else None,
            audited_bytes=rung.audit.loaded_bytes if rung and rung.audit else None,
            items=items,
            prompts=self.store.read_prompts(texts) if texts else None,
            reference=str(self.store.reference_file(first)) if isinstance(first, Divergence) else None,
            journals=str(self.store.journals),
        )
        log = self.store.directory / "logs" / f"{name}-{phase}.log"
        return Worker(self._executor_of(phase), job, log, self.prepared.wanted.timeout_s)

    def _executor_of(self, phase: Phase) -> Executor:
        if phase == "performance":
            self.close()  # its memory is that of the model to measure
        if phase not in ("accuracy", "rescoring"):
            return self.executor
        if self.asking is None and self.has_branches:
            preparation = Preparation(sources=self.prepared.wanted.tasks.sources, items=self.missing.tasks)
            self.asking = self.executor.branch(preparation.model_dump_json())
            why = self.asking.wait_until_ready(self.prepared.wanted.timeout_s) if self.asking is not None else None
            self.has_branches = self.asking is not None and why is None
            if why is not None:
                self.close()
                self.telling.progress.warn(f"tasks are built for each rung anew, since building them once {why}")
        return self.asking or self.executor
