"""Running a study: the only writer of its records.

settings -> calibration -> plan -> a worker per rung and phase -> records. A study that was killed goes on where it
stopped: what has a record is not measured again.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from bitladder.environment import BUSY_SHARE, busy_share, describe_machine
from bitladder.errors import UserError
from bitladder.files import require_own_folder
from bitladder.forkserver import ForkServer
from bitladder.records import (
    Divergence,
    Item,
    MeasurementRecord,
    PerformanceOutcome,
    Prompts,
    RungRecord,
    Scenario,
    Settings,
    Status,
    measurement_id,
)
from bitladder.store import MERGE_FILE, Results, Store
from bitladder.study.job import Batch, Documents, Job, Measured, Phase, Progress, RungMade
from bitladder.study.plan import bind_baseline, phase_items
from bitladder.study.prepare import Prepared, prepare
from bitladder.study.process import WORKER, Ended, Worker
from bitladder.study.progress import StudyProgress, busy_warning

BEGUN = (".lock", "logs")
"""what a study leaves that ended before its plan was made"""

RETRIED: tuple[Status, ...] = ("failed", "timeout", "does_not_fit")
"""Outcomes that a second run tries again: their cause may have gone."""


def run_study(settings: Settings, out: Path, progress: StudyProgress | None = None) -> Results:
    """Quantize, audit and measure every rung, resuming what ``out`` has. Returns all records of the plan.

    Raises UserError for bad input, or where another process is writing to ``out``.
    """
    store = Store(out)
    progress = progress or StudyProgress()
    log = store.directory / "logs" / "forkserver.log"
    with _only_writer(out), ForkServer(WORKER, log, with_gpu=bool(describe_machine().gpus)) as server:
        store.remove_unfinished()
        if not store.has_study():
            server.start()  # its imports take about as long as preparing does
        prepared = prepare(settings, store, progress)
        for prompts in prepared.prompts:
            store.write_prompts(prompts)
        _Run(prepared, store, progress, server).run()
        return store.load()


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    require_own_folder(out, "study", ("study.json", MERGE_FILE), BEGUN)
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another study is writing here; wait for it, or use another --out") from None
        yield


class _Run:
    """One run over the plan."""

    def __init__(self, prepared: Prepared, store: Store, progress: StudyProgress, server: ForkServer) -> None:
        self._server = server
        self._study = prepared.study
        self._added = prepared.added
        self._store = store
        self._progress = progress
        self._rungs: dict[str, RungRecord | None] = {}
        self._finished: set[str] = set()
        self._warned = False

    def run(self) -> None:
        rungs = self._rungs = {name: self._known_rung(name) for name in self._study.rungs}
        self._write_study()
        total = len(rungs) * len(self._study.items)
        missing = sum(len(self._missing(record, self._study.items)) for record in rungs.values())
        self._progress.planned(total, total - missing)
        for name, known in rungs.items():
            rungs[name] = known if known and not self._needs_weights(known) else self._make_checkpoint(name)
        self._write_study()
        for items in phase_items(self._study):
            # the baseline first: it leaves what a divergence is from
            for record in sorted(filter(None, rungs.values()), key=lambda one: one.rung != self._study.baseline):
                if record.status == "ok":
                    self._measure(record, items)

    def _write_study(self) -> None:
        """With the baseline's content, as far as it is known: no plan knows it before it is made."""
        baseline = self._rungs.get(self._study.baseline)
        known = baseline.content_hash if baseline is not None and baseline.status == "ok" else None
        self._study = bind_baseline(self._study, known)
        self._store.write_study(self._study)

    def _known_rung(self, name: str) -> RungRecord | None:
        """The stored record, if it is of the present recipe and needs no second try."""
        from bitladder.checkpoint.quantize import expected_recipe_hash

        record = self._store.read_rung(name)
        if name in self._added:  # an audit costs little, and what it refused may be put right by another library
            same = record is not None and record.source == self._study.added[name]
            return record if record is not None and same and record.status == "ok" else None
        if record is None or record.status in RETRIED or record.manifest is None:
            return None
        recipe = expected_recipe_hash(self._study.source, name)
        return record if record.manifest.recipe_hash == recipe else None

    def _needs_weights(self, record: RungRecord) -> bool:
        """Whether something is left to measure and the checkpoint isn't there, or is no longer what was audited."""
        if record.status != "ok" or record.rung in self._added or not self._missing(record, self._study.items):
            return False
        from bitladder.checkpoint.manifest import read_manifest, verify_files

        directory = self._store.checkpoint_directory(record.rung)
        found = read_manifest(directory)
        return found is None or found.content_hash != record.content_hash or bool(verify_files(directory, found))

    def _missing(self, record: RungRecord | None, items: tuple[Item, ...]) -> tuple[Item, ...]:
        """Items without a record that counts."""
        if record is None or record.content_hash is None:
            return items
        return tuple(
            item
            for item in items
            if self._is_missing(measurement_id(record.content_hash, item)) or self._lacks_reference(record, item)
        )

    def _lacks_reference(self, record: RungRecord, item: Item) -> bool:
        """Whether this is the baseline, and what a divergence is from has to be made again for another rung."""
        if not isinstance(item, Divergence) or record.rung != self._study.baseline:
            return False
        if self._store.reference_file(item).is_file():
            return False
        others = [one for name, one in self._rungs.items() if name != record.rung]
        return any(
            one is None or one.content_hash is None or self._is_missing(measurement_id(one.content_hash, item))
            for one in others
        )

    def _is_missing(self, identity: str) -> bool:
        if identity not in self._finished:
            record = self._store.read_measurement(identity)
            if record is None or record.status in RETRIED:
                return True
            self._finished.add(identity)
        return False

    def _make_checkpoint(self, name: str) -> RungRecord:
        source = self._study.added.get(name)
        self._progress.phase(name, "audit" if source else "quantize and audit")
        record = RungRecord(
            rung=name, status="failed", reason="the worker sent no record", content_hash=None, manifest=None, audit=None
        )
        worker = self._worker("audit" if source else "checkpoint", name, None, ())
        for message in worker.messages():
            if isinstance(message, RungMade):
                record = message.record
        if worker.ended is not None:
            record = record.model_copy(update={"status": worker.ended.status, "reason": worker.ended.reason})
        record = record.model_copy(update={"source": source})
        self._store.write_rung(record)
        self._progress.rung(record)
        return record

    def _measure(self, rung: RungRecord, items: tuple[Item, ...]) -> None:
        """Measure what is missing; a worker that ended badly costs its measurement in flight, not the rest."""
        assert rung.content_hash is not None
        left = {measurement_id(rung.content_hash, item): item for item in self._missing(rung, items)}
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
                    machine=self._study.calibration.machine,
                    started_at=started_at.isoformat(timespec="seconds"),
                    duration_s=time.perf_counter() - started,
                )
                self._store.write_measurement(record)
                self._progress.measured(record)

    def _run_worker(self, rung: RungRecord, left: dict[str, Item]) -> Ended | None:
        """One worker over ``left``, from which each measurement that leaves a record is removed."""
        first = next(iter(left.values()))
        self._progress.phase(rung.rung, first.scenario if isinstance(first, Scenario) else first.kind)
        busy = self._busy_share() if isinstance(first, Scenario) else None
        audited_bytes = rung.audit.loaded_bytes if rung.audit else None
        worker = self._worker(first.kind, rung.rung, rung.content_hash, tuple(left.values()), audited_bytes)
        for message in worker.messages():
            if isinstance(message, Progress):
                self._progress.step(message.done, message.total)
            elif isinstance(message, Documents):
                self._store.write_documents(message.documents)
            elif isinstance(message, Batch):
                self._store.add_to_journal(message.measurement_id, message.entry)
            elif isinstance(message, Measured):
                record = _with_busy_share(message.record, busy)
                self._store.write_measurement(record)
                self._store.remove_journal(record.measurement_id)
                left.pop(record.measurement_id)
                self._progress.measured(record)
        return worker.ended

    def _busy_share(self) -> float:
        """How busy others keep the processors, told once where that spoils what is measured."""
        share = busy_share()
        if share > BUSY_SHARE and not self._warned:
            self._warned = True
            self._progress.warn(busy_warning(share))
        return share

    def _worker(
        self,
        phase: Phase,
        rung: str,
        content_hash: str | None,
        items: tuple[Item, ...],
        audited_bytes: int | None = None,
    ) -> Worker:
        calibration = self._study.calibration
        first = items[0] if items else None
        job = Job(
            phase=phase,
            rung=rung,
            directory=str(self._added.get(rung) or self._store.checkpoint_directory(rung)),
            settings=self._study.settings,
            device=calibration.device,
            threads=calibration.threads,
            machine=calibration.machine,
            content_hash=content_hash,
            audited_bytes=audited_bytes,
            items=items,
            prompts=self._prompts(first),
            reference=str(self._store.reference_file(first)) if isinstance(first, Divergence) else None,
            journals=str(self._store.journals),
        )
        log = self._store.directory / "logs" / f"{rung}-{phase}.log"
        return Worker(self._server, job, log, self._study.settings.timeout_s)

    def _prompts(self, item: Item | None) -> Prompts | None:
        if isinstance(item, Scenario):
            return self._store.read_prompts(item.prompts_hash)
        return self._store.read_prompts(item.texts_hash) if isinstance(item, Divergence) else None


def _with_busy_share(record: MeasurementRecord, share: float | None) -> MeasurementRecord:
    if not isinstance(record.outcome, PerformanceOutcome):
        return record
    return record.model_copy(update={"outcome": record.outcome.model_copy(update={"busy_share": share})})
