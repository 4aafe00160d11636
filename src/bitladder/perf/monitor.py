"""A process beside the measured one that reads what it and its GPU use.

``python -m bitladder.perf.monitor PID [--gpu INDEX_OR_UUID]`` writes a ``MonitorStart`` line, then one
``ResourceSample`` line a reading, with times of ``time.perf_counter`` (one clock for all processes of a machine). It
ends when its standard input does or PID is gone, so it never outlives the process that started it.
"""

import argparse
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from bitladder.records import Record, ResourceSample

INTERVAL_S = 0.2


class MonitorStart(Record):
    """The first line: which readings this machine can't give, and why."""

    unavailable: dict[str, str]


class GpuReader:
    """Readings of one GPU through NVML. What the driver refuses stands in ``unavailable`` with the driver's reason."""

    def __init__(self, gpu: str, nvml: Any, process_id: int | None = None) -> None:
        """``process_id``: whose share of the memory is read."""
        nvml.nvmlInit()
        self._nvml = nvml
        self._handle = (
            nvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdigit() else nvml.nvmlDeviceGetHandleByUUID(gpu)
        )
        self._readings: dict[str, Callable[[Any], float | int]] = {
            "gpu_utilisation_percent": lambda handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "gpu_memory_bytes": lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).used,
            "gpu_power_w": lambda handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,  # from mW
            "gpu_energy_j": lambda handle: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,  # from mJ
            "gpu_sm_clock_mhz": lambda handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "gpu_throttle_bits": nvml.nvmlDeviceGetCurrentClocksEventReasons,
        }
        self._process_id = process_id
        self.unavailable: dict[str, str] = {}
        self.read()

    def read(self) -> dict[str, float | int]:
        """Readings by field name of ResourceSample; one that the driver once refused is not asked for again."""
        values: dict[str, float | int] = {}
        process_bytes = self._process_bytes()
        if process_bytes is not None:
            values["gpu_process_bytes"] = process_bytes
        for name in self._readings.keys() - self.unavailable.keys():
            try:
                values[name] = self._readings[name](self._handle)
            except self._nvml.NVMLError as error:
                self.unavailable[name] = f"NVML: {error}"
        return values

    def _process_bytes(self) -> int | None:
        """None until the process uses the GPU, and in a container, where the driver's process ids are others."""
        if self._process_id is None:
            return None
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError:
            return None
        found = [process.usedGpuMemory for process in processes if process.pid == self._process_id]
        return int(found[0]) if found and found[0] is not None else None

    def capacity_bytes(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).total)


GPU_FIELDS = tuple(name for name in ResourceSample.model_fields if name.startswith("gpu_"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pid", type=int)
    parser.add_argument("--gpu")
    parser.add_argument("--interval", type=float, default=INTERVAL_S)
    arguments = parser.parse_args()
    # Ctrl-C reaches the whole process group; the measuring side decides when this ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = threading.Event()
    threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    try:
        _monitor(psutil.Process(arguments.pid), arguments.gpu, arguments.interval, stop)
    except psutil.NoSuchProcess:
        return


def _wait_for_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def _monitor(process: psutil.Process, gpu: str | None, interval_s: float, stop: threading.Event) -> None:
    reader, unavailable = open_gpu(gpu, process.pid)
    print(MonitorStart(unavailable=unavailable).model_dump_json(), flush=True)
    process.cpu_percent()  # psutil counts from the call before
    while not stop.wait(interval_s):
        sample = ResourceSample(
            time_s=time.perf_counter(),
            cpu_percent=process.cpu_percent(),
            rss_bytes=process.memory_info().rss,
            **(reader.read() if reader else {}),  # type: ignore[arg-type]
        )
        print(sample.model_dump_json(), flush=True)


def open_gpu(gpu: str | None, process_id: int | None = None) -> tuple[GpuReader | None, dict[str, str]]:
    """A reader of that GPU if there is one, and why fields are None."""
    if gpu is None:
        return None, dict.fromkeys(GPU_FIELDS, "no GPU")
    import pynvml

    try:
        reader = GpuReader(gpu, pynvml, process_id)
    except pynvml.NVMLError as error:
        return None, dict.fromkeys(GPU_FIELDS, f"NVML: {error}")
    return reader, dict(reader.unavailable)


if __name__ == "__main__":
    main()
