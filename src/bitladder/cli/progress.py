"""Progress of a study on stderr: a bar on a terminal, plain lines elsewhere; other libraries are kept quiet."""

import ctypes
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stdout

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from bitladder.cli.terminal import Terminal
from bitladder.records import MeasurementRecord, RungRecord
from bitladder.results import item_name
from bitladder.study.messages import StudyProgress
from bitladder.text.words import one_line
from bitladder.units import counted, format_bytes, format_left, format_seconds

_STDOUT, _STDERR = 1, 2


@contextmanager
def libraries_on_stderr() -> Iterator[None]:
    """Inside the block, what is printed goes to the standard error: GPTQModel greets, and the output is for results.

    What compilers and other child processes print goes there too, and what C code prints. Nothing is done where one
    of the two is closed.
    """
    if sys.stdout is None or sys.stderr is None:
        yield
        return
    _flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()  # what was printed inside, by those who hold the standard output themselves
        os.dup2(kept, _STDOUT)
        os.close(kept)


def _flush() -> None:
    """Python's buffers of the standard output, and C's."""
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None:
            stream.flush()
    ctypes.CDLL(None).fflush(None)


LINE_INTERVAL_S = 30.0
"""between two lines on one measurement, where there is no bar"""


class _Countdown(ProgressColumn):
    """What is left of the study beside what has elapsed; nothing once it takes longer than was expected."""

    def __init__(self, left: Callable[[], str]) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        return Text(self._left() if task.fields.get("whole") else "")


class TerminalProgress(StudyProgress):
    """Shows a study's events; use as a context manager."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end_s: float | None = None
        """when the study is expected to end, by that clock"""
        self._console = Terminal(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _Countdown(self._left),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._study = self._bars.add_task("study", total=None, visible=False, whole=True)
        self._current = self._bars.add_task("", total=None, visible=False)
        self._last_line_s = clock()
        self._what = ""
        self._total = self._done = 0

    def __enter__(self) -> "TerminalProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def preparing(self, what: str) -> None:
        self._begin(what)

    def warn(self, what: str) -> None:
        self._say(f"warning: {what}")

    def planned(self, measurements: int, finished: int) -> None:
        self._total, self._done = measurements, finished
        self._bars.update(self._study, total=measurements, completed=finished, visible=True)
        already = f", {finished:,} already done" if finished else ""
        self._say(f"{counted(measurements, 'measurement')}{already}{self._comma_left()}")

    def time_left(self, seconds: float) -> None:
        self._end_s = self._clock() + seconds

    def phase(self, rung: str, what: str) -> None:
        self._begin(f"{rung}: {what}")

    def step(self, done: int, total: int) -> None:
        self._bars.update(self._current, completed=done, total=total)
        if not self._console.is_terminal and self._clock() - self._last_line_s >= LINE_INTERVAL_S:
            self._say(f"{self._what}: {done:,} of {total:,}")

    def rung(self, record: RungRecord) -> None:
        if record.audit is not None and record.status == "ok":
            checks = dict.fromkeys(one.check for one in record.audit.findings if one.severity == "warning")
            note = f"; warnings: {', '.join(checks)}, see the report" if checks else ""
            self._say(f"{record.rung}: {format_bytes(record.audit.stored_bytes)} on disk, audit passed{note}")
        else:
            self._say(f"{record.rung}: {record.status}: {record.reason}")

    def stage(self, number: int, stages: int, rungs: Collection[str]) -> None:
        self._say(f"stage {number} of at most {stages} asks {', '.join(rungs)}")

    def measured(self, record: MeasurementRecord) -> None:
        self._bars.advance(self._study)
        self._done += 1
        end = format_seconds(record.duration_s) if record.status == "ok" else f"{record.status}: {record.reason}"
        place = f"{self._done:,} of {self._total:,}{self._comma_left()}"
        self._say(f"{record.rung}: {item_name(record.item)}: {end} ({place})")

    def _left(self) -> str:
        """Empty where nothing is known, or nothing is left of what was expected."""
        left_s = 0.0 if self._end_s is None else self._end_s - self._clock()
        return f"about {format_left(left_s)} left" if left_s > 0 else ""

    def _comma_left(self) -> str:
        left = self._left()
        return f", {left}" if left else ""

    def _begin(self, what: str) -> None:
        """What takes a while; without a bar a line of its own."""
        self._what = what
        self._bars.update(self._current, description=what, total=None, completed=0, visible=True)
        if not self._console.is_terminal:
            self._say(f"{what} ...")

    def _say(self, line: str) -> None:
        self._last_line_s = self._clock()
        self._console.print(one_line(line), soft_wrap=True)
