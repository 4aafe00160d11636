"""Being a worker: a process that has its job on standard input, and ends when its owner does."""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from bitladder.executors.executor import RAISED
from bitladder.machine.libraries import forbid_hub_kernels


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


if __name__ == "__main__":  # of `subprocesses`: the answers are its standard output
    set_up(sys.argv[1])
    for name in sys.argv[3:]:
        import_module(name)
    channel = os.dup(1)
    os.dup2(2, 1)  # what others print is for the log
    end_after(lambda: work(sys.argv[2], channel))
