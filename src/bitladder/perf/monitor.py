"""A process beside the measured one that reads what it and its GPUs use.

``python -m bitladder.perf.monitor PID [--gpu INDEX_OR_UUID]...`` writes a ``MonitorStart`` line, again where that
changes, and one ``ResourceSample`` line a reading, with times of ``time.perf_counter`` (one clock for all processes of
a machine). It ends when its standard input does or PID is gone, so it never outlives the process that started it.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import reduce
from operator import or_
from typing import Any

import psutil

from bitladder.machine.cards import DIVIDED, ask, find_handle, is_divided, open_nvml
from bitladder.records import CardSample, Record, ResourceSample

INTERVAL_S = 0.2


GPU_FIELDS = tuple(CardSample.model_fields)


class MonitorStart(Record):
    """The first line, and one where something changed: which readings this machine can't give, and why."""

    unavailable: dict[str, str]


_NVML_CLOCK_SM = 1
_READINGS: dict[str, tuple[str, tuple[int, ...], Callable[[Any], float | int]]] = {
    "gpu_utilisation_percent": ("nvmlDeviceGetUtilizationRates", (), lambda rates: rates.gpu),
    "gpu_memory_bytes": ("nvmlDeviceGetMemoryInfo", (), lambda memory: memory.used),
    "gpu_power_w": ("nvmlDeviceGetPowerUsage", (), lambda power_mw: power_mw / 1000),
    "gpu_energy_j": ("nvmlDeviceGetTotalEnergyConsumption", (), lambda energy_mj: energy_mj / 1000),
    "gpu_sm_clock_mhz": ("nvmlDeviceGetClockInfo", (_NVML_CLOCK_SM,), int),
    "gpu_throttle_bits": ("nvmlDeviceGetCurrentClocksEventReasons", (), int),
}
"""NVML's function, what it takes beside the card, and what to make of its answer"""

_PROCESS_BYTES = "gpu_process_bytes"


class GpuReader:
    """Readings of one GPU through NVML. What the driver refuses stands in ``unavailable`` with the driver's reason."""

    def __init__(self, gpu: str, nvml: Any, process_id: int | None = None) -> None:
        """``gpu``: a card's number, or a card's or slice's UUID. ``process_id``: whose share of the memory is read."""
        self._nvml = nvml
        self._process_id = process_id
        self._handle, reason, _ = find_handle(nvml, gpu)
        if reason is None and is_divided(nvml, self._handle):
            reason = DIVIDED
        self.unavailable: dict[str, str] = {} if reason is None else dict.fromkeys(GPU_FIELDS, reason)
        self.read()

    def read(self) -> dict[str, float | int]:
        """Readings by field name of CardSample; one that the driver once refused is not asked for again."""
        values: dict[str, float | int] = {}
        process_bytes = self._process_bytes()
        if process_bytes is not None:
            values[_PROCESS_BYTES] = process_bytes
        for name in _READINGS.keys() - self.unavailable.keys():
            question, arguments, convert = _READINGS[name]
            answer = self._ask(name, question, *arguments)
            if answer is not None:
                values[name] = convert(answer)
        return values

    def _process_bytes(self) -> int | None:
        """None until the process uses the GPU, and in a container, where the driver's process ids are others."""
        if self._process_id is None or _PROCESS_BYTES in self.unavailable:
            return None
        processes = self._ask(_PROCESS_BYTES, "nvmlDeviceGetComputeRunningProcesses") or ()
        found = [process.usedGpuMemory for process in processes if process.pid == self._process_id]
        return int(found[0]) if found and found[0] is not None else None

    def _ask(self, field: str, question: str, *arguments: int) -> Any:
        answer = ask(self._nvml, question, self._handle, *arguments)
        if answer.reason is not None:
            self.unavailable[field] = answer.reason
        return answer.value

    def capacity_bytes(self) -> int | None:
        """All memory of the GPU, None where the driver doesn't say."""
        field = "gpu_memory_bytes"
        memory = None if field in self.unavailable else self._ask(field, "nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.total)


_JOINED: dict[str, Callable[[list[Any]], float | int]] = {
    "gpu_utilisation_percent": lambda values: sum(values) / len(values),
    "gpu_sm_clock_mhz": min,
    "gpu_throttle_bits": lambda values: reduce(or_, values),
}
"""how several cards' readings become one; all others are added"""


def join_cards(readings: Sequence[dict[str, float | int]]) -> dict[str, float | int]:
    """One reading of several cards: memory, power and energy are sums, utilisation is the mean, the clock is the
    slowest card's and the throttle bits are those of any card.

    A field that a card did not give is left out, but for the process's memory, which a card has none of until it is
    used.
    """
    joined: dict[str, float | int] = {}
    for name in GPU_FIELDS:
        values = [reading[name] for reading in readings if name in reading]
        if values and (len(values) == len(readings) or name == "gpu_process_bytes"):
            joined[name] = _JOINED.get(name, sum)(values)
    return joined


def reasons_of(readers: Sequence[GpuReader]) -> dict[str, str]:
    """Why a field is None: the first card's reason that has one."""
    return {name: why for reader in reversed(readers) for name, why in reader.unavailable.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pid", type=int)
    parser.add_argument("--gpu", action="append", default=[])
    parser.add_argument("--interval", type=float, default=INTERVAL_S)
    arguments = parser.parse_args()
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    # Ctrl-C reaches the whole process group; the measuring side decides when this ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = threading.Event()
    threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    with suppress(psutil.NoSuchProcess):
        _monitor(psutil.Process(arguments.pid), arguments.gpu, arguments.interval, stop)


def _wait_for_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def _monitor(process: psutil.Process, gpus: Sequence[str], interval_s: float, stop: threading.Event) -> None:
    readers, unavailable = open_gpus(gpus, process.pid)
    told = _tell_unavailable(unavailable)
    process.cpu_percent()  # psutil counts from the call before
    while not stop.wait(interval_s):
        now_s = time.perf_counter()
        cpu_percent, rss_bytes = process.cpu_percent(), process.memory_info().rss
        cards = [reader.read() for reader in readers]
        if readers and reasons_of(readers) != told:  # a card may be lost midway
            told = _tell_unavailable(reasons_of(readers))
        sample = ResourceSample(
            time_s=now_s,
            cpu_percent=cpu_percent,
            rss_bytes=rss_bytes,
            cards=tuple(CardSample.model_validate(card) for card in cards) if len(cards) > 1 else (),
            **join_cards(cards),  # type: ignore[arg-type]
        )
        print(sample.model_dump_json(), flush=True)


def _tell_unavailable(unavailable: dict[str, str]) -> dict[str, str]:
    print(MonitorStart(unavailable=unavailable).model_dump_json(), flush=True)
    return unavailable


def open_gpus(gpus: Sequence[str], process_id: int | None = None) -> tuple[list[GpuReader], dict[str, str]]:
    """A reader of each of those GPUs, none where the driver can't be asked, and why fields are None."""
    if not gpus:
        return [], dict.fromkeys(GPU_FIELDS, "no GPU")
    nvml, reason = open_nvml()
    if reason:
        return [], dict.fromkeys(GPU_FIELDS, reason)
    readers = [GpuReader(gpu, nvml, process_id) for gpu in gpus]
    return readers, reasons_of(readers)


if __name__ == "__main__":
    main()
