"""What runs workers, and what being one is: a process that takes one job, a line of text, and answers it with lines.

A worker calls ``work(job, answers)`` of the module that is its executor's target, ``answers`` being a file of text.
"""

import os
import selectors
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import BinaryIO, NoReturn, Self

from bitladder.machine.libraries import forbid_hub_kernels

STDERR = 2
RAISED = 70
"""What a worker of ours ends with when it raised; any other code is that of a library that ended the process."""


PRELOADED = ("torch", "torch.profiler", "transformers.models.auto.modeling_auto", "transformers.generation.utils")
"""What a deployed model needs too: nothing else, since a worker's resident memory is a result."""

CPU_PRELOADED = ("bitsandbytes", "transformers.modeling_layers", "bitladder.records")
"""What every worker imports too, where there is no driver that an import could ask for cards."""


class Executor:
    """Runs workers, one at a time: `Running.wait` comes before the next `submit`.

    One more needs `_begin` and `_wait`, and a row in `table.EXECUTORS`.
    """

    remark: str | None = None
    """what a user has to be told of workers that run like this"""

    def start(self) -> None:
        """Begin to get ready, if that takes a while and hasn't begun."""

    def submit(self, job: str, log: BinaryIO | None = None) -> "Running":
        """A worker at this job, one line, that prints to ``log``; None: to the standard error of this process.

        Raises ConnectionError when what starts workers has ended, UserError when it was killed, and OSError when the
        machine allows no process.
        """
        read_job, write_job = os.pipe()
        read_answers, write_answers = os.pipe()
        # the job's pipe stays open: a worker ends when this process does
        running = Running(self, os.fdopen(write_job, "wb", buffering=0), os.fdopen(read_answers, "rb", buffering=0))
        try:
            try:
                running.process_id = self._begin(read_job, STDERR if log is None else log.fileno(), write_answers)
            finally:
                os.close(read_job)
                os.close(write_answers)
            running.send(job)
        except BaseException:
            running.close()
            raise
        return running

    def ask(self, job: str, log: BinaryIO | None = None) -> tuple[bytes, int]:
        """What a worker answered, and how it ended, as `submit` and `Running.wait` have it."""
        with self.submit(job, log) as running:
            return b"\n".join(iter(running.receive, None)), running.wait()

    def branch(self, preparation: str) -> "Branch | None":
        """What runs workers from where the target's function ``prepare`` left, which got this; closed before this is.

        None: each worker prepares for itself. Raises as `submit`.
        """
        return None

    def close(self) -> None:
        """No more workers are run."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, job: int, log: int, answers: int) -> int:
        """Start a worker, leader of its process group, that has these descriptors. Returns its process id."""
        raise NotImplementedError

    def _wait(self) -> int:
        """How the worker ended, once it has: its exit code, or the negative number of the signal that ended it."""
        raise NotImplementedError


class Branch(Executor):
    """See `Executor.branch`. It prepares meanwhile: `wait_until_ready` comes before its first `submit`."""

    def wait_until_ready(self, timeout_s: float) -> str | None:
        """None once it runs workers; else why it can't."""
        raise NotImplementedError


class Running:
    """A worker at its job. Leaving it as a context ends it, if it hasn't ended."""

    def __init__(self, executor: Executor, job: BinaryIO, answers: BinaryIO) -> None:
        self.process_id: int | None = None
        self._executor = executor
        self._job = job
        self._answers = answers
        self._lines: list[bytes] = []
        self._pending = b""
        self._code: int | None = None

    def send(self, job: str) -> None:
        with suppress(BrokenPipeError):  # it has ended already
            self._job.write(job.encode() + b"\n")

    def receive(self, timeout_s: float | None = None) -> bytes | None:
        """The next line that it answers, without its end; None when there are no more. Raises TimeoutError."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while not self._lines:
                left_s = None if end_s is None else max(0.0, end_s - time.monotonic())
                if not selector.select(left_s):
                    raise TimeoutError
                chunk = os.read(self._answers.fileno(), 1 << 20)
                if not chunk:
                    return None  # what it was writing when it was ended is no line
                *lines, self._pending = (self._pending + chunk).split(b"\n")
                self._lines = lines[::-1]
        return self._lines.pop()

    def end(self) -> None:
        """Kill it, and all that it has started in its process group."""
        if self.process_id is not None and self._code is None:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.process_id, signal.SIGKILL)

    def wait(self) -> int:
        """How it ended, once it has: its exit code, or the negative number of the signal that ended it."""
        if self._code is None:
            self._code = self._executor._wait()
        return self._code

    def close(self) -> None:
        try:
            if self.process_id is not None:
                self.end()
                self.wait()
        finally:
            self._job.close()
            self._answers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def preloaded(with_gpu: bool) -> tuple[str, ...]:
    """What is imported before a worker has its job, however it is run: what it holds at rest is a result too."""
    return PRELOADED if with_gpu else PRELOADED + CPU_PRELOADED


def surroundings(with_gpu: bool) -> dict[str, str]:
    """The environment of workers, and of what forks them."""
    # a torch that is built for CUDA would look for cards at an import, and no fork could use it after
    hidden = {} if with_gpu else {"CUDA_VISIBLE_DEVICES": ""}
    # NVML counts cards without starting CUDA
    return {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", **hidden}


def set_up(trusted: str) -> None:
    """Before any import that a model needs. ``trusted``: of the command line, whether remote code may run."""
    for stream in (sys.stdout, sys.stderr):  # logs, which every locale can have
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    if trusted != str(True):
        forbid_hub_kernels()


def work(target: str, answers: int) -> None:
    """Do the job on standard input as this module does, with its answers to this descriptor."""
    job = _take_job()
    with os.fdopen(answers, "w", encoding="utf-8") as file:
        import_module(target).work(job, file)


def _take_job() -> str:
    """The line on standard input, which the owner then holds open: with it ends the worker."""
    job = sys.stdin.buffer.readline().decode().rstrip("\n")
    threading.Thread(target=_end_with_owner, daemon=True).start()
    return job


def _end_with_owner() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def end_after(do: Callable[[], None]) -> NoReturn:
    """Be a process of its own for as long as this takes."""
    code = 0
    try:
        do()
    except BaseException:  # whatever it is, it must not go on as a second server
        code = RAISED
        with suppress(OSError):  # what can't be logged, as on a full disk, is no other end
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)  # without the clean-up of threads that only the server had


if __name__ == "__main__":  # of `table.Subprocesses`: the answers are its standard output
    set_up(sys.argv[1])
    for name in sys.argv[3:]:
        import_module(name)
    channel = os.dup(1)
    os.dup2(2, 1)  # what others print is for the log
    end_after(lambda: work(sys.argv[2], channel))
