"""Which executors there are, and which one is used."""

import os
from collections.abc import Callable
from pathlib import Path

from bitladder.errors import UnknownNameError
from bitladder.executors.executor import Executor
from bitladder.executors.forkserver import ForkServer
from bitladder.executors.subprocesses import Subprocesses

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
