"""The measuring side of the monitor: starts it, stops it, reads what it wrote."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bitladder.perf.monitor import INTERVAL_S, MonitorStart, open_gpu
from bitladder.records import ResourceSample

STOP_TIMEOUT_S = 5.0
IDLE_READINGS, IDLE_INTERVAL_S = 5, 0.1


class Watch:
    """What the monitor saw; complete once ``watching`` has ended."""

    def __init__(self) -> None:
        self._samples: tuple[ResourceSample, ...] = ()
        self._unavailable: dict[str, str] = {}
        self._failure: str | None = None

    def between(self, started_s: float, ended_s: float) -> tuple[tuple[ResourceSample, ...], dict[str, str]]:
        """Readings between two times of ``time.perf_counter``, counted from the first, and why fields are None.

        A monitor that failed costs its readings, not the measurement: the reason then stands under ``resources``.
        """
        samples = tuple(
            sample.model_copy(update={"time_s": sample.time_s - started_s})
            for sample in self._samples
            if started_s <= sample.time_s <= ended_s
        )
        unavailable = dict(self._unavailable)
        if self._failure:
            unavailable["resources"] = self._failure
        elif not samples:
            unavailable["resources"] = f"measured for {ended_s - started_s:.2f} s, one reading takes {INTERVAL_S} s"
        return samples, unavailable

    def read(self, lines: bytes, failure: str | None) -> None:
        """Take in what the monitor wrote; a last line that it could not finish is left out."""
        whole = [line for line in lines.splitlines(keepends=True) if line.endswith(b"\n")]
        if whole:
            self._unavailable = MonitorStart.model_validate_json(whole[0]).unavailable
        self._samples = tuple(ResourceSample.model_validate_json(line) for line in whole[1:])
        self._failure = failure


@contextmanager
def watching(gpu: str | None, *, pid: int | None = None, interval_s: float = INTERVAL_S) -> Iterator[Watch]:
    """Run the monitor on a process (this one by default) while the block runs.

    It writes to a file, not a pipe: nobody has to read while the measurement runs.
    """
    command = [sys.executable, "-P", "-m", "bitladder.perf.monitor", str(pid or os.getpid())]
    command += ["--interval", str(interval_s), *(["--gpu", gpu] if gpu is not None else [])]
    watch = Watch()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=errors)
        assert process.stdin is not None
        try:
            yield watch
        finally:
            process.stdin.close()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            output.seek(0)
            errors.seek(0)
            watch.read(output.read(), _failure(process.returncode, errors.read()))


def _failure(returncode: int, errors: bytes) -> str | None:
    if returncode == 0:
        return None
    said = errors.decode(errors="replace").strip().splitlines()
    return f"the monitor ended with {returncode}" + (f": {said[-1]}" if said else "")


def gpu_of(device: str) -> str | None:
    """NVML's index or UUID of a torch device, None for a CPU.

    ``CUDA_VISIBLE_DEVICES`` renumbers torch's devices, never NVML's. Where it isn't set the two agree as long as
    all GPUs are of one kind, or ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[int(index or 0)] if visible else index or "0"


def device_capacity_bytes(gpu: str | None) -> int | None:
    """All memory of that GPU, None without one or where the driver doesn't say."""
    reader, _ = open_gpu(gpu)
    return reader.capacity_bytes() if reader else None


def idle_power_w(gpu: str | None) -> float | None:
    """Mean power of that GPU over half a second, None without one or where the driver doesn't say."""
    reader, _ = open_gpu(gpu)
    if reader is None:
        return None
    readings = []
    for _ in range(IDLE_READINGS):
        time.sleep(IDLE_INTERVAL_S)
        readings.append(reader.read().get("gpu_power_w"))
    known = [reading for reading in readings if reading is not None]
    return sum(known) / len(known) if known else None


def device_bytes(gpu: str | None) -> int | None:
    """Memory in use on that GPU by all processes, None without a GPU or where the driver doesn't say."""
    reader, _ = open_gpu(gpu)
    value = reader.read().get("gpu_memory_bytes") if reader else None
    return None if value is None else int(value)
