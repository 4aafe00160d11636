"""Executors by name. The plain one starts a Python process for each worker: slower, for where forking is impossible."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bitladder.errors import UnknownNameError
from bitladder.executors import executor
from bitladder.executors.executor import Executor, preloaded, surroundings
from bitladder.executors.forkserver import ForkServer


class Subprocesses(Executor):
    """Imports anew what a model needs, and prepares anew, in every worker."""

    remark = "every worker is a Python of its own, not a fork, and takes some seconds to begin"

    def __init__(self, target: str, log: object, *, with_gpu: bool, trust_remote_code: bool = False) -> None:
        """``target``: the module with ``work``. Nothing but its workers prints, and so ``log`` stays empty."""
        self._command: tuple[str, ...] = (sys.executable, "-P", "-m", executor.__name__, str(trust_remote_code), target)
        self._command += preloaded(with_gpu)
        self._surroundings = surroundings(with_gpu)
        self._process: subprocess.Popen[bytes] | None = None

    def _begin(self, job: int, log: int, answers: int) -> int:
        self._process = subprocess.Popen(
            self._command, stdin=job, stdout=answers, stderr=log, env=self._surroundings, start_new_session=True
        )
        return self._process.pid

    def _wait(self) -> int:
        assert self._process is not None
        return self._process.wait()


EXECUTORS: dict[str, Callable[..., Executor]] = {"forkserver": ForkServer, "subprocess": Subprocesses}
VARIABLE = "BITLADDER_EXECUTOR"


def executor_name() -> str:
    """That of the environment's ``BITLADDER_EXECUTOR``, else the fork server, where the system can fork."""
    return os.environ.get(VARIABLE) or ("forkserver" if hasattr(os, "fork") else "subprocess")


def open_executor(target: str, log: Path | None, *, with_gpu: bool, trust_remote_code: bool = False) -> Executor:
    """The executor of `executor_name`.

    ``target``: see `executor`; ``log`` has what isn't a worker's, None: the standard error of this process;
    ``with_gpu``: whether workers may find cards. Raises UnknownNameError.
    """
    name = executor_name()
    if name not in EXECUTORS:
        raise UnknownNameError(f"executor in {VARIABLE}", name, EXECUTORS)
    return EXECUTORS[name](target, log, with_gpu=with_gpu, trust_remote_code=trust_remote_code)
