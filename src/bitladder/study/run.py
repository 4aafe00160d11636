"""Running a study, in the only process that writes its records.

The folder is locked. Each stage asks the rungs whose verdict the records leave open.
"""

import fcntl
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from bitladder.errors import UserError
from bitladder.executors.executor import Executor
from bitladder.executors.table import open_executor
from bitladder.files import make_folder, naming, require_own_folder
from bitladder.machine.cards import could_have_cards
from bitladder.machine.host import heed_quota
from bitladder.machine.libraries import forbid_hub_kernels
from bitladder.records import Divergence, Item, RungRecord, Settings
from bitladder.results import place_of
from bitladder.results.stages import stage_count, stage_item, staged_tasks
from bitladder.results.store import MERGE_FILE, Results, Store
from bitladder.study.estimate import estimate_study
from bitladder.study.messages import StudyProgress
from bitladder.study.plan import Kept, Missing, phase_items
from bitladder.study.prepare import Prepared, prepare
from bitladder.study.time_left import Telling, TimeLeft, advise
from bitladder.study.workers import WORKER, Weights, Workers

BEGUN = (".lock", "logs", "prompts", ".study.json.*.tmp")
"""what a study leaves that ended before its plan was made"""


def require_study_folder(out: Path) -> None:
    """Raise UserError for a file, and for a folder that holds something else than a study."""
    require_own_folder(out, "study", ("study.json", MERGE_FILE), BEGUN)


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Make the folder, and keep other studies out of it. Raises UserError for another's, or one that is in use."""
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


@dataclass(frozen=True)
class Asking:
    """The stages of a plan, counted from 0; none where each task is asked as a whole."""

    store: Store
    missing: Missing
    place: tuple[str, str]
    """where this study measures, whose records alone decide"""

    @property
    def stages(self) -> int:
        return stage_count(staged_tasks(self.missing.study))

    def by(self, stage: int) -> frozenset[str]:
        """The rungs that a stage asks."""
        from bitladder.summary.coverage import rungs_to_ask

        results = self.store.load()
        here = tuple(record for record in results.records if place_of(record) == self.place)
        return rungs_to_ask(replace(results, records=here), stage)

    def items_until(self, stage: int) -> tuple[Item, ...]:
        """Of this stage and of those before, which a rung may lack that was decided for a while."""
        tasks = staged_tasks(self.missing.study)
        parts = (stage_item(task, one) for one in range(stage + 1) for task in tasks)
        return tuple(part for part in parts if part is not None)

    def is_done(self, stage: int, asked: frozenset[str]) -> bool:
        """Whether these rungs have answered all until then."""
        items = self.items_until(stage)
        return not any(self.missing.of(self.missing.rungs[name], items) for name in asked)

    def next(self) -> frozenset[str]:
        """Whom the first stage asks that isn't done."""
        for stage in range(self.stages):
            asked = self.by(stage)
            if not self.is_done(stage, asked):
                return asked
        return frozenset()


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
    log = store.directory / "logs" / "workers.log"
    with_gpu, trusted = could_have_cards(), settings.trust_remote_code
    if not trusted:
        forbid_hub_kernels()  # on a CPU its layers are timed in this process
    with only_writer(out), open_executor(WORKER, log, with_gpu=with_gpu, trust_remote_code=trusted) as executor:
        store.remove_unfinished()
        if executor.remark is not None:
            progress.warn(executor.remark)
        if not store.has_study():
            executor.start()  # its imports take about as long as preparing does
        prepared = prepare(settings, store, progress)
        for prompts in prepared.prompts:
            store.write_prompts(prompts)
        run = StudyRun(prepared, store, progress, executor)
        with closing(run.workers):
            run.run(asked_from_s)
        return store.load()


class StudyRun:
    """One run over the plan: what is missing, who is asked next, who runs it, and what is told are its parts."""

    def __init__(self, prepared: Prepared, store: Store, progress: StudyProgress, executor: Executor) -> None:
        self._store = store
        self._wanted = prepared.wanted
        self._kept = Kept(store, prepared.study)
        self.missing = Missing(prepared.study, self._kept)
        self.asked = Asking(store, self.missing, self._kept.place)
        self.telling = Telling(progress, _time_left(prepared, self.missing), store, self.missing, prepared.wanted.only)
        self.weights = Weights(prepared, store, self._kept, self.missing)
        self.workers = Workers(executor, prepared, store, self.missing, self.telling)

    def run(self, asked_from_s: float | None) -> None:
        """Raises UserError as `run_study`."""
        missing, telling = self.missing, self.telling
        _require_running(missing)
        advice = advise(missing.study, self._wanted.tasks.sources, telling.left, asked_from_s)
        if advice is not None:
            raise UserError(advice)
        self._write_study()
        telling.changed()
        same = missing.same
        telling.plan()
        asked = self.asked.next()
        telling.other_half(asked)
        self._make_absent(asked)
        telling.same(same)
        self._write_study()
        phases = phase_items(missing.study)
        first = [items for items in phases if isinstance(items[0], Divergence)]
        self._measure_phases(first)
        self._measure_stages()
        self._measure_phases(items for items in phases if items not in first)
        self.remove_given_up_journals()

    def remove_given_up_journals(self) -> None:
        """Those that nothing of this plan would go on from; none while some checkpoint could not be made."""
        kept = self.missing.identities
        if kept is not None:
            self._store.remove_journals(but=kept)

    def _write_study(self) -> None:
        if self.missing.bind_baseline() is not None:
            self._kept.remove_unbound(self.missing.rungs.values())
        self._store.write_study(self.missing.study)

    def _make_absent(self, asked: Collection[str]) -> None:
        absent = self.weights.absent(asked, self.telling.progress)
        self.weights.require_space(absent)
        self.telling.left.to_make(absent)
        for name in sorted(absent, key=lambda name: name != self.missing.study.baseline):
            self._make(name)
            _require_running(self.missing)

    def _make(self, name: str) -> RungRecord:
        self.weights.there.add(name)
        record = self.missing.rungs[name] = self.workers.make(name)
        return record

    def _measure_phases(self, phases: Iterable[tuple[Item, ...]]) -> None:
        for items in phases:
            for record in self.missing.baseline_first:
                self.workers.measure(record, items)

    def _measure_stages(self) -> None:
        """Ask stage after stage of those rungs whose verdict the records before leave open."""
        stages = self.asked.stages
        for stage in range(stages):
            asked = self.asked.by(stage)
            if not asked:
                break
            records = [record for record in self.missing.baseline_first if record.rung in asked]
            names = [record.rung for record in records]
            if not self.asked.is_done(stage, frozenset(names)):
                self.telling.progress.stage(stage + 1, stages, names)
            items = self.asked.items_until(stage)
            for record in records:
                if self.weights.are_needed(record, items):  # it had been decided, and is no longer
                    record = self._make(record.rung)
                if record.status == "ok":
                    self.workers.measure(record, items)
        if stages:
            self.telling.left.decided()
            self.telling.plan(staged=False)


def _require_running(missing: Missing) -> None:
    """Raise UserError where the baseline can't be run: nothing can be held against it, nor will another rung run.

    Of a checkpoint of ours an audit has an error of loading where the model's own forward fails, and nowhere else.
    """
    study = missing.study
    baseline = missing.rungs.get(study.baseline)
    audit = baseline.audit if baseline is not None else None
    for finding in audit.findings if audit is not None else ():
        if finding.check == "load" and finding.severity == "error":
            raise UserError(
                f"{study.source.model}: {finding.message}, already as {study.baseline}, which the other rungs are held "
                "against; give another model"
            )


def _time_left(prepared: Prepared, missing: Missing) -> TimeLeft:
    """As estimated, which takes a model's outline only where anything is missing."""
    left = missing.by_rung
    estimates = estimate_study(prepared, overhead_bytes={}) if any(left.values()) else ()
    return TimeLeft(missing.study, estimates, left)
