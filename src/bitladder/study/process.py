"""Running one worker process: its messages, its log, its time limit, its end."""

import os
import selectors
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bitladder.errors import UserError
from bitladder.files import naming
from bitladder.forkserver import Forker
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

    def __init__(self, server: Forker, job: Job, log: Path, timeout_s: float) -> None:
        self.ended: Ended | None = None
        self.process_id: int | None = None
        self._server = server
        self._job = job
        self._log = log
        self._timeout_s = timeout_s
        self._in_flight: str | None = None

    def messages(self) -> Iterator[Record]:
        """Yields messages until the worker ends; the time limit is for each measurement, or for a checkpoint.

        Raises UserError where the machine refused it something.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        read_stdin, write_stdin = os.pipe()
        read_end, write_end = os.pipe()
        with (
            os.fdopen(read_end, "rb", buffering=0) as pipe,
            os.fdopen(write_stdin, "wb", buffering=0) as stdin,  # open as long as this process lives
        ):
            try:
                try:
                    with naming(self._log), self._log.open("wb") as log:
                        self.process_id = self._server.fork(read_stdin, log.fileno(), write_end)
                finally:
                    os.close(read_stdin)
                    os.close(write_end)
                with suppress(BrokenPipeError):  # it has ended already
                    stdin.write(self._job.model_dump_json().encode() + b"\n")
                yield from self._read(pipe.fileno())
            except BaseException:
                if self.process_id is not None:
                    self._kill()
                    self._server.wait()
                raise
            if self.ended is not None and self.ended.status == "timeout":
                self._kill()
            self._judge(self._server.wait())

    def _kill(self) -> None:
        assert self.process_id is not None
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self.process_id, signal.SIGKILL)

    def _read(self, descriptor: int) -> Iterator[Record]:
        deadline = time.monotonic() + self._timeout_s
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.ended = Ended("timeout", f"took longer than {self._timeout_s:g} s", self._in_flight)
                    return
                chunk = os.read(descriptor, 1 << 20)
                if not chunk:
                    return
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
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
            reason = self._last_log_line() or f"the worker ended with exit code {code}"
        self.ended = Ended("failed", f"{reason}; log: {self._log}", self._in_flight)

    def _last_log_line(self) -> str:
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""
