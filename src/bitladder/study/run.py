"""Running a study: the only writer of its records.

settings -> calibration -> plan -> a worker per rung and phase -> records. A study that was killed goes on where it
stopped: what has a record is not measured again.
"""

import fcntl
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from bitladder.driver import could_have_cards
from bitladder.environment import BUSY_SHARE, busy_share
from bitladder.errors import UserError
from bitladder.executors.executor import Branch, Executor
from bitladder.executors.table import open_executor
from bitladder.files import make_folder, naming, require_own_folder
from bitladder.hub_kernels import forbid_hub_kernels
from bitladder.processors import heed_quota
from bitladder.records import (
    AccuracyTask,
    Divergence,
    Item,
    MeasurementRecord,
    PerformanceOutcome,
    Prompts,
    Rescoring,
    RungRecord,
    Scenario,
    Settings,
    measurement_id,
)
from bitladder.results import is_planned, not_measured_as, place_of, same_contents
from bitladder.stages import measured_items, stage_count, stage_item, staged_tasks
from bitladder.store import MERGE_FILE, Results, Store
from bitladder.study.estimate import estimate_study
from bitladder.study.job import Batch, Documents, Job, Measured, Phase, Preparation, Progress, RungMade
from bitladder.study.kept import Kept
from bitladder.study.plan import bind_baseline, phase_items
from bitladder.study.prepare import Prepared, prepare
from bitladder.study.process import WORKER, Ended, Worker
from bitladder.study.progress import StudyProgress, busy_warning
from bitladder.study.time_left import TimeLeft, require_meant

BEGUN = (".lock", "logs", "prompts", ".study.json.*.tmp")
"""what a study leaves that ended before its plan was made"""


def run_study(
    settings: Settings, out: Path, progress: StudyProgress | None = None, *, asked_from_s: float | None = None
) -> Results:
    """Quantize, audit and measure every rung, resuming what ``out`` has. Returns all records of the plan.

    Raises UserError for bad input, where another process is writing to ``out``, and where a CPU is expected to take
    more than ``asked_from_s`` for what is left.
    """
    heed_quota()
    store = Store(out)
    progress = progress or StudyProgress()
    log = store.directory / "logs" / "forkserver.log"
    with_gpu, trusted = could_have_cards(), settings.trust_remote_code
    if not trusted:
        forbid_hub_kernels()  # on a CPU its layers are timed in this process
    with _only_writer(out), open_executor(WORKER, log, with_gpu=with_gpu, trust_remote_code=trusted) as executor:
        store.remove_unfinished()
        if executor.remark is not None:
            progress.warn(executor.remark)
        if not store.has_study():
            executor.start()  # its imports take about as long as preparing does
        prepared = prepare(settings, store, progress)
        for prompts in prepared.prompts:
            store.write_prompts(prompts)
        with closing(_Run(prepared, store, progress, executor)) as run:
            run.run(asked_from_s)
        return store.load()


def require_study_folder(out: Path) -> None:
    """Raise UserError for a file, and for a folder that holds something else than a study."""
    require_own_folder(out, "study", ("study.json", MERGE_FILE), BEGUN)


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    require_study_folder(out)
    make_folder(out)
    path = out / ".lock"
    lock = path.open("w", encoding="utf-8")
    try:
        try:
            with naming(path):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another study is writing here; wait for it, or use another --out") from None
        yield
    finally:
        with suppress(OSError):  # nothing is in it, and what went wrong before is to be told
            lock.close()


class _Run:
    """One run over the plan."""

    def __init__(self, prepared: Prepared, store: Store, progress: StudyProgress, executor: Executor) -> None:
        self._executor = executor
        self._asking: Branch | None = None
        """runs the workers that ask questions, with the tasks that all of them ask"""
        self._has_branches = True
        """or workers build their tasks themselves"""
        self._study = prepared.study
        self._added = prepared.added
        self._model = prepared.model
        self._store = store
        self._progress = progress
        self._kept = Kept(store, prepared.study)
        self._rungs = {name: self._kept.rung(name) for name in prepared.study.rungs}
        self._left = self._time_left()
        self._with_weights: set[str] = set()
        """whose checkpoint this run has made, or found to be what was audited"""
        self._warned = False

    def close(self) -> None:
        if self._asking is not None:
            self._asking.close()
            self._asking = None

    def run(self, asked_from_s: float | None) -> None:
        rungs = self._rungs
        self._require_running(rungs.get(self._study.baseline))
        require_meant(self._study, self._left, asked_from_s)
        self._write_study()
        self._tell_changed()
        same = self._same
        self._tell_plan()
        asked = self._asked_next()
        self._tell_other_half(asked)
        absent = [name for name, known in rungs.items() if known is None or self._lacks_weights(known, asked)]
        self._require_space(absent)
        self._left.to_make(absent)
        for name in sorted(absent, key=lambda name: name != self._study.baseline):
            rungs[name] = self._make_checkpoint(name)
            self._require_running(rungs.get(self._study.baseline))
        self._tell_same(same)
        self._write_study()
        phases = phase_items(self._study)
        first = [items for items in phases if isinstance(items[0], Divergence)]
        self._measure_phases(first)
        self._measure_stages()
        self._measure_phases(items for items in phases if items not in first)
        self._remove_given_up_journals()

    def _require_running(self, baseline: RungRecord | None) -> None:
        """Raise UserError where the baseline can't be run: nothing can be held against it, nor will another rung run.

        Of a checkpoint of ours an audit has an error of loading where the model's own forward fails, and nowhere else.
        """
        audit = baseline.audit if baseline is not None else None
        for finding in audit.findings if audit is not None else ():
            if finding.check == "load" and finding.severity == "error":
                raise UserError(
                    f"{self._study.source.model}: {finding.message}, already as {self._study.baseline}, which the "
                    "other rungs are held against; give another model"
                )

    def _remove_given_up_journals(self) -> None:
        """Those that nothing of this plan would go on from; none while some checkpoint could not be made."""
        kept: set[str] = set()
        for record in self._rungs.values():
            if record is None or record.content_hash is None:
                return
            missing = self._missing(record, self._whole_items + self._staged_items)
            kept.update(measurement_id(record.content_hash, item) for item in missing)
        self._store.remove_journals(but=kept)

    @property
    def _whole_items(self) -> tuple[Item, ...]:
        return tuple(item for item in self._study.items if measured_items(item) == (item,))

    @property
    def _staged_items(self) -> tuple[Item, ...]:
        return tuple(chain.from_iterable(map(measured_items, staged_tasks(self._study))))

    @property
    def _same(self) -> dict[str, str]:
        """Of each rung that is not measured, as far as the checkpoints are known, the one with its content."""
        return same_contents(self._study, self._rungs)

    def _measured_rungs(self) -> list[RungRecord | None]:
        same = self._same
        return [record for name, record in self._rungs.items() if name not in same]

    def _tell_changed(self) -> None:
        for name in self._study.added:
            record = self._store.read_rung(name)
            if record is not None and not is_planned(self._study, record):
                self._progress.warn(
                    f"{name}: its files have changed since its audit, which is made anew; nothing that was measured "
                    "of other weights is shown any more"
                )

    def _tell_same(self, told: Mapping[str, str]) -> None:
        """What is left out, and the plan anew where it was told with it, as it is before a checkpoint is made."""
        same = self._same
        for name, other in same.items():
            self._progress.warn(f"{name}: {not_measured_as(other)}")
        if same != told:
            self._tell_plan()

    def _tell_plan(self, *, staged: bool = True) -> None:
        """With all that the stages may ask, or with what they have asked."""
        rungs = self._measured_rungs()
        missing = [self._missing(record, self._whole_items) for record in rungs]
        total = len(rungs) * len(self._whole_items)
        left = sum(map(len, missing))
        by_rung = [len(self._missing(record, self._staged_items)) for record in rungs]
        total += len(rungs) * len(self._staged_items) - (0 if staged else sum(by_rung))
        self._progress.time_left(self._left.seconds)
        self._progress.planned(total, total - left - (sum(by_rung) if staged else 0))

    def _time_left(self) -> TimeLeft:
        items = self._whole_items + self._staged_items
        missing = {name: self._missing(record, items) for name, record in self._rungs.items()}
        estimates = (
            estimate_study(self._study, self._model.directory, self._added, overhead_bytes={})
            if any(missing.values())
            else ()
        )
        return TimeLeft(self._study, estimates, missing)

    def _tell_measured(self, record: MeasurementRecord) -> None:
        self._left.measured(record.rung, record.item, record.duration_s)
        self._progress.time_left(self._left.seconds)
        self._progress.measured(record)

    def _tell_other_half(self, asked: Collection[str]) -> None:
        """With ``only`` the half that isn't asked for stays in the plan, and so is measured where something lacks."""
        only = self._study.settings.only
        if only is None:
            return
        others = tuple(item for item in self._whole_items if isinstance(item, Scenario) == (only == "accuracy"))
        is_asked = only == "performance" and bool(asked)
        if is_asked or any(self._missing(record, others) for record in self._rungs.values()):
            half = "performance" if only == "accuracy" else "accuracy"
            self._progress.warn(
                f"--only {only}: {self._store.directory} has {half} in its plan too, which is measured where it is "
                f"missing; take another --out for {only} alone"
            )

    def _measure_phases(self, phases: Iterable[tuple[Item, ...]]) -> None:
        for items in phases:
            for record in self._baseline_first():
                self._measure(record, items)

    def _baseline_first(self) -> list[RungRecord]:
        """Checkpoints that can be measured, each content once. The baseline leaves what the others are held against."""
        made = [record for record in self._measured_rungs() if record is not None and record.status == "ok"]
        return sorted(made, key=lambda one: one.rung != self._study.baseline)

    def _measure_stages(self) -> None:
        """Ask stage after stage of those rungs whose verdict the records before leave open."""
        stages = stage_count(staged_tasks(self._study))
        for stage in range(stages):
            asked = self._asked_by(stage)
            if not asked:
                break
            items = self._items_until(stage)
            names = [record.rung for record in self._baseline_first() if record.rung in asked]
            if any(self._missing(self._rungs[name], items) for name in names):
                self._progress.stage(stage + 1, stages, names)
            for name in names:
                record = self._rungs[name]
                if record is not None and self._needs_weights(record, items):  # it had been decided, and is no longer
                    record = self._rungs[name] = self._make_checkpoint(name)
                if record is not None and record.status == "ok":
                    self._measure(record, items)
        if stages:
            self._left.decided()
            self._tell_plan(staged=False)

    def _items_until(self, stage: int) -> tuple[Item, ...]:
        """Of this stage and of those before, which a rung may lack that was decided for a while."""
        parts = (stage_item(task, one) for one in range(stage + 1) for task in staged_tasks(self._study))
        return tuple(part for part in parts if part is not None)

    def _asked_by(self, stage: int) -> frozenset[str]:
        from bitladder.stats.answered import rungs_to_ask

        results = self._store.load()
        here = tuple(record for record in results.records if place_of(record) == self._kept.place)
        return rungs_to_ask(replace(results, records=here), stage)

    def _asked_next(self) -> frozenset[str]:
        """Whom the first stage asks that isn't done."""
        for stage in range(stage_count(staged_tasks(self._study))):
            asked = self._asked_by(stage)
            if any(self._missing(self._rungs[name], self._items_until(stage)) for name in asked):
                return asked
        return frozenset()

    def _write_study(self) -> None:
        """With the baseline's content, as far as it is known: no plan knows it before it is made."""
        baseline = self._rungs.get(self._study.baseline)
        known = baseline.content_hash if baseline is not None and baseline.status == "ok" else None
        if known is not None:
            self._kept.remove_unbound(self._rungs.values())
        self._study = bind_baseline(self._study, known)
        self._store.write_study(self._study)

    def _needs_weights(self, record: RungRecord, items: tuple[Item, ...]) -> bool:
        """Whether something is left to measure and the checkpoint isn't there, or is no longer what was audited."""
        if record.status != "ok" or record.rung in self._with_weights or not self._missing(record, items):
            return False
        self._with_weights.add(record.rung)  # now, or when it is made
        if record.rung in self._added:
            return False
        return not self._kept.has_weights(record)

    def _lacks_weights(self, known: RungRecord, asked: Collection[str]) -> bool:
        items = self._whole_items + (self._staged_items if known.rung in asked else ())
        return self._needs_weights(known, items) or self._is_damaged(known)

    def _is_damaged(self, record: RungRecord) -> bool:
        differences = self._kept.damages(record)
        if differences:
            directory = self._store.checkpoint_directory(record.rung)
            self._progress.warn(f"{directory}: changed since its audit ({'; '.join(differences)}); making it again")
        return bool(differences)

    def _missing(self, record: RungRecord | None, items: tuple[Item, ...]) -> tuple[Item, ...]:
        return self._kept.missing(record, items, self._rungs)

    def _require_space(self, names: Collection[str]) -> None:
        """For all at once: a disk that is too small ends a study before hours of it."""
        from bitladder.checkpoint.space import require_space

        made = [name for name in names if name not in self._added]
        trust = self._study.settings.trust_remote_code
        require_space(self._model, made, self._store.directory, trust_remote_code=trust)

    def _make_checkpoint(self, name: str) -> RungRecord:
        source = self._study.added.get(name)
        self._with_weights.add(name)
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
        if not is_planned(self._study, record):
            raise UserError(
                f"{self._study.source.model}: its files have changed since the study began; run it again with "
                "another --out, or with the files that it began with"
            )
        self._store.write_rung(record)
        self._left.made(name)
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
                self._tell_measured(record)

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
                self._tell_measured(record)
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
        return Worker(self._executor_of(phase), job, log, self._study.settings.timeout_s)

    def _executor_of(self, phase: Phase) -> Executor:
        if phase == "performance":
            self.close()  # its memory is that of the model to measure
        if phase not in ("accuracy", "rescoring"):
            return self._executor
        if self._asking is None and self._has_branches:
            self._asking = self._executor.branch(self._preparation().model_dump_json())
            why = self._asking.wait_until_ready(self._study.settings.timeout_s) if self._asking is not None else None
            self._has_branches = self._asking is not None and why is None
            if why is not None:
                self.close()
                self._progress.warn(f"tasks are built for each rung anew, since building them once {why}")
        return self._asking or self._executor

    def _preparation(self) -> Preparation:
        """The tasks that some rung has yet to answer."""
        names = {
            item.task if isinstance(item, AccuracyTask) else item.task.task
            for record in self._rungs.values()
            for item in self._missing(record, self._whole_items + self._staged_items)
            if isinstance(item, AccuracyTask | Rescoring)
        }
        tasks = (item for item in self._study.items if isinstance(item, AccuracyTask) and item.task in names)
        return Preparation(settings=self._study.settings, items=tuple(tasks))

    def _prompts(self, item: Item | None) -> Prompts | None:
        if isinstance(item, Scenario):
            return self._store.read_prompts(item.prompts_hash)
        return self._store.read_prompts(item.texts_hash) if isinstance(item, Divergence) else None


def _with_busy_share(record: MeasurementRecord, share: float | None) -> MeasurementRecord:
    if not isinstance(record.outcome, PerformanceOutcome):
        return record
    return record.model_copy(update={"outcome": record.outcome.model_copy(update={"busy_share": share})})
