"""A process that has imported what a model needs, and forks one worker after the other.

A branch of it is forked too, prepares what its workers have in common, and forks them from there.

Importing torch and transformers takes longer than many a measurement. A fork begins where the imports ended, with
memory that is otherwise its own. The server never runs a tensor operation, so that no thread pool is lost in a fork,
and never asks the CUDA driver anything, which a fork could not use afterwards. A branch may run other people's code as
it prepares, and so has a fork tried out before it is used.

``multiprocessing``'s fork server runs the caller's ``__main__`` again, so that a script without a guard would begin
its study twice.
"""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from bitladder.errors import UserError
from bitladder.executors import serving
from bitladder.executors.executor import STDERR, Branch, Executor, preloaded, surroundings
from bitladder.executors.serving import BRANCH, FORK, NUMBER_BYTES, READY, REAP


class Forker(Executor):
    """Forks workers: the server, or a branch of it."""

    def __init__(self, log: Path | None) -> None:
        """``log`` has what the forking process itself prints; None: the standard error of this process."""
        self._log = log
        self._control, self._theirs = socket.socketpair()

    def close(self) -> None:
        self._control.close()
        self._theirs.close()

    def _begin(self, job: int, log: int, answers: int) -> int:
        self.start()
        with suppress(BrokenPipeError):  # it has ended, as its answer says
            socket.send_fds(self._control, [FORK], [job, log, answers])
        return self._receive_process_id()

    def _wait(self) -> int:
        return self._receive_number()

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
        """``target``: the module with ``work``.

        For branches it has ``prepare``, and ``try_out``: what a fork of them must be able to do.
        """
        super().__init__(log)
        self._target = target
        self._trusted = trust_remote_code
        self._modules = preloaded(with_gpu)
        self._with_gpu = with_gpu
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin to import, if that hasn't begun."""
        if self._process is None:
            self._process = self._start()

    def branch(self, preparation: str) -> "ForkedBranch":
        return ForkedBranch(self, preparation, self._log)

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
                    *(sys.executable, "-P", "-m", serving.__name__),
                    *(str(descriptor), str(self._trusted), self._target, *self._modules),
                ],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=(descriptor,),
                env=surroundings(self._with_gpu),
                start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the workers
            )

    def _open_log(self) -> BinaryIO:
        if self._log is None:
            return os.fdopen(os.dup(STDERR), "wb")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        return self._log.open("wb")

    def _end(self) -> int:
        return 0 if self._process is None else self._process.wait()


class ForkedBranch(Forker, Branch):
    """See `Executor.branch`. Ends with ``close``, or when its owner is gone."""

    def __init__(self, server: ForkServer, preparation: str, log: Path | None) -> None:
        super().__init__(log)
        self._server = server
        with self._theirs:
            self._process_id = server.begin_branch(self._theirs.fileno())
        self._code: int | None = None
        text = preparation.encode()
        with suppress(BrokenPipeError):
            self._control.sendall(len(text).to_bytes(NUMBER_BYTES, signed=True) + text)

    def wait_until_ready(self, timeout_s: float) -> str | None:
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
