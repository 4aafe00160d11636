"""The process that forks workers, and its branches: see `forkserver`, which starts it."""

import ctypes
import errno
import gc
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

from bitladder.executors.executor import end_after, set_up, work

NUMBER_BYTES = 8
FORK, BRANCH, REAP = b"f", b"b", b"r"
PR_SET_PDEATHSIG = 1
READY, UNFIT = 0, 1
"""What a branch tells when it has prepared."""
TRIAL_S = 5
"""What a fork may take to be tried out, which takes a fraction of a second."""


def _serve(control: socket.socket, target: str) -> None:
    """Fork what the owner asks for, until it is gone."""
    gc.freeze()  # a collection in a worker would copy every page that the fork shares
    while True:
        try:
            request, descriptors, _, _ = socket.recv_fds(control, len(FORK), 3)
        except ConnectionResetError:  # the owner was killed
            return
        if not request:
            return
        if request == REAP:
            _tell_end(control, int.from_bytes(control.recv(NUMBER_BYTES, socket.MSG_WAITALL), signed=True))
            continue
        try:
            process_id = os.fork()
        except OSError as error:  # too many processes, or too little memory: the owner tells it
            process_id = -(error.errno or errno.EAGAIN)
        if not process_id:
            control.close()
            if request == BRANCH:
                _branch(target, *descriptors)
            _work(target, *descriptors)
        if request == FORK and process_id > 0:
            os.setpgid(process_id, process_id)
        _close(*descriptors)
        control.sendall(process_id.to_bytes(NUMBER_BYTES, signed=True))
        if request == FORK and process_id > 0:
            _tell_end(control, process_id)


def _tell_end(control: socket.socket, process_id: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1])
    with suppress(BrokenPipeError):  # the owner is gone, as the next request will say
        control.sendall(code.to_bytes(NUMBER_BYTES, signed=True))


def _branch(target: str, descriptor: int) -> None:
    """Be a branch, and end."""
    end_after(lambda: _prepare_and_serve(target, descriptor))


def _prepare_and_serve(target: str, descriptor: int) -> None:
    _end_with_parent()
    with socket.socket(fileno=descriptor) as control:
        length = int.from_bytes(control.recv(NUMBER_BYTES, socket.MSG_WAITALL), signed=True)
        module = import_module(target)
        module.prepare(control.recv(length, socket.MSG_WAITALL).decode())
        fit = _does_a_fork_work(module.try_out)
        control.sendall((READY if fit else UNFIT).to_bytes(NUMBER_BYTES, signed=True))
        if fit:
            _serve(control, target)


def _end_with_parent() -> None:
    """Be killed when the server ends, as it does with its owner, whatever other people's code is doing here."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _does_a_fork_work(try_out: Callable[[], None]) -> bool:
    """Whether a fork of this process does so and ends well, in time: it hangs where it misses a thread."""
    process_id = os.fork()
    if not process_id:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends it in the midst of anything
        signal.alarm(TRIAL_S)
        end_after(try_out)
    return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]) == 0


def _close(*descriptors: int) -> None:
    """Some disks tell only now that they can't keep a log, which is nothing that a worker's end depends on."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def _work(target: str, job: int, log: int, answers: int) -> None:
    """Be a worker, and end."""
    os.setpgid(0, 0)
    for source, standard in ((job, 0), (log, 1), (log, 2)):
        os.dup2(source, standard)
    _close(job, log)
    end_after(lambda: work(target, answers))


if __name__ == "__main__":
    _, number, trusted, *served = sys.argv
    set_up(trusted)
    for name in served[1:]:
        import_module(name)
    # Python warns of the threads that NumPy and Arrow keep, which make theirs anew in a fork
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    with socket.socket(fileno=int(number)) as channel:
        _serve(channel, served[0])
