"""Running one worker process: its messages, its log, its time limit, its end."""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bitladder.errors import UserError
from bitladder.executors.executor import Executor, Running
from bitladder.files import naming
from bitladder.records import Record, Status
from bitladder.study.job import MESSAGE, Job, Measured, Refused, Started, Stopped


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
