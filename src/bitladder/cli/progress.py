"""Progress of a study on stderr: a bar on a terminal, plain lines elsewhere."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bitladder.records import AccuracyTask, MeasurementRecord, RungRecord
from bitladder.study.progress import StudyProgress
from bitladder.units import format_bytes, format_seconds


class TerminalProgress(StudyProgress):
    """Shows a study's events; use as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._study = self._bars.add_task("study", total=None)
        self._current = self._bars.add_task("", total=None, visible=False)

    def __enter__(self) -> "TerminalProgress":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def planned(self, measurements: int, finished: int) -> None:
        self._bars.update(self._study, total=measurements, completed=finished)
        already = f", {finished} already done" if finished else ""
        self._say(f"{measurements} measurements{already}")

    def phase(self, rung: str, what: str) -> None:
        self._bars.update(self._current, description=f"{rung}: {what}", total=None, completed=0, visible=True)

    def step(self, done: int, total: int) -> None:
        self._bars.update(self._current, completed=done, total=total)

    def rung(self, record: RungRecord) -> None:
        if record.audit is not None and record.status == "ok":
            warnings = sum(finding.severity == "warning" for finding in record.audit.findings)
            note = f", {warnings} warnings" if warnings else ""
            self._say(f"{record.rung}: {format_bytes(record.audit.stored_bytes)}, audit passed{note}")
        else:
            self._say(f"{record.rung}: {record.status}: {record.reason}")

    def measured(self, record: MeasurementRecord) -> None:
        self._bars.advance(self._study)
        name = record.item.task if isinstance(record.item, AccuracyTask) else record.item.scenario
        end = format_seconds(record.duration_s) if record.status == "ok" else f"{record.status}: {record.reason}"
        self._say(f"{record.rung}: {name}: {end}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False)
