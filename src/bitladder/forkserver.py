"""A process that has imported what a model needs, and forks one worker after the other.

A branch of it is forked too, prepares what its workers have in common, and forks them from there.

Importing torch and transformers takes longer than many a measurement. A fork begins where the imports ended, with
memory that is otherwise its own. The server never runs a tensor operation, so that no thread pool is lost in a fork,
and never asks the CUDA driver anything, which a fork could not use afterwards. A branch may run other people's code as
it prepares, and so has a fork tried out before it is used.

``multiprocessing``'s fork server runs the caller's ``__main__`` again, so that a script without a guard would begin
its study twice.
"""

import ctypes
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, NoReturn, Self

from bitladder.errors import UserError
from bitladder.hub_kernels import forbid_hub_kernels

PRELOADED = ("torch", "torch.profiler", "transformers.models.auto.modeling_auto", "transformers.generation.utils")
"""What a deployed model needs too: nothing else, since a worker's resident memory is a result."""

CPU_PRELOADED = ("bitsandbytes", "transformers.modeling_layers", "bitladder.records")
"""What every worker imports too, where there is no driver that an import could ask for cards."""

NUMBER_BYTES = 8
FORK, BRANCH, REAP = b"f", b"b", b"r"
STDERR = 2
PR_SET_PDEATHSIG = 1
READY, UNFIT = 0, 1
"""What a branch tells when it has prepared."""
TRIAL_S = 5
"""What a fork may take to be tried out, which takes a fraction of a second."""
RAISED = 70
"""What a worker of ours ends with when it raised; any other code is that of a library that ended the process."""


class Forker:
    """Forks workers, one at a time: ``wait`` comes before the next ``fork``."""

    def __init__(self, log: Path | None) -> None:
        """``log`` has what the forking process itself prints; None: the standard error of this process."""
        self._log = log
        self._control, self._theirs = socket.socketpair()

    def start(self) -> None:
        """Begin to get ready, if that hasn't begun."""
        raise NotImplementedError

    def fork(self, stdin: int, log: int, messages: int) -> int:
        """A worker with these descriptors, leader of its process group. Returns its process id.

        Raises ConnectionError when the server has ended, UserError when it was killed, and OSError when the machine
        allows it no fork.
        """
        self.start()
        with suppress(BrokenPipeError):  # it has ended, as its answer says
            socket.send_fds(self._control, [FORK], [stdin, log, messages])
        return self._receive_process_id()

    def wait(self) -> int:
        """The worker's exit code, or the negative number of the signal that ended it."""
        return self._receive_number()

    def ask(self, job: str, log: int = STDERR) -> tuple[bytes, int]:
        """Fork a worker for ``job``, one line, that prints to ``log``. What it answered, and how it ended."""
        read_stdin, write_stdin = os.pipe()
        read_answer, write_answer = os.pipe()
        # the standard input stays open: a worker ends when this process does
        with os.fdopen(write_stdin, "wb", buffering=0) as stdin, os.fdopen(read_answer, "rb") as answers:
            try:
                self.fork(read_stdin, log, write_answer)
            finally:
                os.close(read_stdin)
                os.close(write_answer)
            with suppress(BrokenPipeError):
                stdin.write(job.encode() + b"\n")
            return answers.read(), self.wait()

    def close(self) -> None:
        self._control.close()
        self._theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self) -> int:
        """How the forking process ended, which it has: its exit code, or the negative number of the signal."""
        raise NotImplementedError

    def _receive_process_id(self) -> int:
        found = self._receive_number()
        if found < 0:
            raise OSError(-found, os.strerror(-found))
        return found

    def _receive_number(self) -> int:
        received = b""
        with suppress(ConnectionResetError):
            received = self._control.recv(NUMBER_BYTES, socket.MSG_WAITALL)
        if len(received) < NUMBER_BYTES:
            ended = "the process that starts the workers"
            code = self._end()
            if code < 0:
                raise UserError(
                    f"{ended} was killed (signal {-code}), for lack of memory if not by hand; "
                    "run the same command again to go on"
                )
            raise ConnectionError(f"{ended} has ended; log: {self._log or 'stderr'}")
        return int.from_bytes(received, signed=True)


class ForkServer(Forker):
    """Starts with the first worker or before, by ``start``; ends with ``close``, or when its owner is gone."""

    def __init__(self, target: str, log: Path | None, *, with_gpu: bool, trust_remote_code: bool = False) -> None:
        """``target``: the module whose function ``work`` every worker calls with its descriptor for messages.

        For branches it has ``prepare``, and ``try_out``: what a fork of them must be able to do.
        """
        super().__init__(log)
        self._target = target
        self._trusted = trust_remote_code
        self._modules = PRELOADED if with_gpu else PRELOADED + CPU_PRELOADED
        # a torch that is built for CUDA would look for cards at the others' imports, and no fork could use it after
        self._hidden = {} if with_gpu else {"CUDA_VISIBLE_DEVICES": ""}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to import, if that hasn't begun."""
        if self._process is None:
            self._process = self._start()

    def branch(self, preparation: str) -> "Branch":
        """What forks workers from where the target's function ``prepare`` left, which got this; closed before this is.

        It prepares meanwhile: `Branch.wait_until_ready` comes before its first `fork`. Raises as `fork`.
        """
        return Branch(self, preparation, self._log)

    def begin_branch(self, theirs: int) -> int:
        """Fork a process that serves on this descriptor. Returns its process id."""
        self.start()
        with suppress(BrokenPipeError):
            socket.send_fds(self._control, [BRANCH], [theirs])
        return self._receive_process_id()

    def reap(self, process_id: int) -> int:
        """How a branch ended, which has or is about to: its exit code, or the negative number of the signal."""
        with suppress(BrokenPipeError):
            self._control.sendall(REAP + process_id.to_bytes(NUMBER_BYTES, signed=True))
        return self._receive_number()

    def close(self) -> None:
        super().close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it may still be importing, and a branch preparing
            self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        descriptor = self._theirs.fileno()
        with self._theirs, self._open_log() as file:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    __name__,
                    str(descriptor),
                    str(self._trusted),
                    self._target,
                    *self._modules,
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=(descriptor,),
                # NVML counts cards without starting CUDA
                env={**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1", **self._hidden},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the workers
            )

    def _open_log(self) -> BinaryIO:
        if self._log is None:
            return os.fdopen(os.dup(STDERR), "wb")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        return self._log.open("wb")

    def _end(self) -> int:
        return 0 if self._process is None else self._process.wait()


class Branch(Forker):
    """See `ForkServer.branch`. Ends with ``close``, or when its owner is gone."""

    def __init__(self, server: ForkServer, preparation: str, log: Path | None) -> None:
        super().__init__(log)
        self._server = server
        with self._theirs:
            self._process_id = server.begin_branch(self._theirs.fileno())
        self._code: int | None = None
        text = preparation.encode()
        with suppress(BrokenPipeError):
            self._control.sendall(len(text).to_bytes(NUMBER_BYTES, signed=True) + text)

    def start(self) -> None:
        """It has begun."""

    def wait_until_ready(self, timeout_s: float) -> str | None:
        """None once it forks workers; else why it can't, so that the server has to."""
        self._control.settimeout(timeout_s)
        try:
            found = self._receive_number()
        except TimeoutError:
            return f"took longer than {timeout_s:g} s"
        except UserError:
            return "ended by a signal, for lack of memory if not by hand"
        except ConnectionError:
            return f"failed; log: {self._log or 'stderr'}"
        finally:
            self._control.settimeout(None)
        return None if found == READY else "started threads, or CUDA, that a fork of the process can't use"

    def close(self) -> None:
        super().close()
        if self._code is None:
            with suppress(ProcessLookupError, ConnectionError, UserError):  # the server is gone, and it with that
                os.kill(self._process_id, signal.SIGKILL)  # it may still be preparing
                self._end()

    def _end(self) -> int:
        if self._code is None:
            self._code = self._server.reap(self._process_id)
        return self._code


def take_job() -> str:
    """The line that a worker gets on standard input, which its owner then holds open: with it ends the worker."""
    job = sys.stdin.buffer.readline().decode()
    threading.Thread(target=_end_with_owner, daemon=True).start()
    return job


def _end_with_owner() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


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
    _end_after(lambda: _prepare_and_serve(target, descriptor))


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
        _end_after(try_out)
    return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]) == 0


def _close(*descriptors: int) -> None:
    """Some disks tell only now that they can't keep a log, which is nothing that a worker's end depends on."""
    for descriptor in descriptors:
        with suppress(OSError):
            os.close(descriptor)


def _work(target: str, stdin: int, log: int, messages: int) -> None:
    """Be a worker, and end."""
    os.setpgid(0, 0)
    for source, standard in ((stdin, 0), (log, 1), (log, 2)):
        os.dup2(source, standard)
    _close(stdin, log)
    _end_after(lambda: import_module(target).work(messages))


def _end_after(do: Callable[[], None]) -> NoReturn:
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


if __name__ == "__main__":
    _, number, trusted, *served = sys.argv
    for stream in (sys.stdout, sys.stderr):  # logs, which every locale can have
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    if trusted != str(True):
        forbid_hub_kernels()
    for name in served[1:]:
        import_module(name)
    # Python warns of the threads that NumPy and Arrow keep, which make theirs anew in a fork
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    with socket.socket(fileno=int(number)) as channel:
        _serve(channel, served[0])
