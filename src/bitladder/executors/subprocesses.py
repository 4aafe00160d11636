"""Each worker is a Python of its own: slower to begin than a fork, and possible everywhere."""

import subprocess
import sys

from bitladder.executors import working
from bitladder.executors.executor import Executor, preloaded, surroundings


class Subprocesses(Executor):
    """Imports anew what a model needs, and prepares anew, in every worker."""

    remark = "every worker is a Python of its own, not a fork, and takes some seconds to begin"

    def __init__(self, target: str, log: object, *, with_gpu: bool, trust_remote_code: bool = False) -> None:
        """``target``: the module with ``work``. Nothing but its workers prints, and so ``log`` stays empty."""
        self._command: tuple[str, ...] = (sys.executable, "-P", "-m", working.__name__, str(trust_remote_code), target)
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
