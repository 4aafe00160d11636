"""The measuring side of the monitor: starts it, stops it, reads what it wrote."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bitladder.machine.cards import cards_of, open_nvml, torch_devices, visible_gpus
from bitladder.perf.monitor import INTERVAL_S, MonitorStart, join_cards, open_gpus, reasons_of
from bitladder.records import ResourceSample

STOP_TIMEOUT_S = 5.0
_START = b'{"unavailable"'
REST_READINGS, REST_INTERVAL_S, MOST_READINGS = 5, 0.1, 100
"""A card is at rest that was busy in none of so many readings, and took about the same power in all; one that another
process has just left may take seconds to come to it."""
REST_SPREAD = 0.05
"""of their mean, between the highest and the lowest"""


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
        for told in whole:
            if told.startswith(_START):
                self._unavailable = MonitorStart.model_validate_json(told).unavailable
        self._samples = tuple(ResourceSample.model_validate_json(line) for line in whole if not line.startswith(_START))
        self._failure = failure


@contextmanager
def watching(gpus: Sequence[str], *, pid: int | None = None, interval_s: float = INTERVAL_S) -> Iterator[Watch]:
    """Run the monitor on a process (this one by default) and those GPUs while the block runs.

    It writes to a file, not a pipe: nobody has to read while the measurement runs.
    """
    command = [sys.executable, "-P", "-m", "bitladder.perf.monitor", str(pid or os.getpid())]
    command += ["--interval", str(interval_s), *(f"--gpu={gpu}" for gpu in gpus)]
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


def gpus_of(device: str) -> tuple[str, ...]:
    """NVML's name of each of a device's cards, a number or a UUID, none for a CPU.

    ``CUDA_VISIBLE_DEVICES`` renumbers torch's devices, never NVML's. Where it isn't set the two agree as long as
    all GPUs are of one kind, or ``CUDA_DEVICE_ORDER=PCI_BUS_ID``. A card that the driver doesn't tell of keeps torch's
    number, or its name where the numbers are others, of which NVML then says that it isn't found.
    """
    cards = cards_of(device)
    known = dict(enumerate(visible_gpus(open_nvml()[0]))) if cards else {}
    renumbered = "CUDA_VISIBLE_DEVICES" in os.environ
    return tuple(known.get(card, f"cuda:{card}" if renumbered else str(card)) for card in cards)


def capacity_bytes(gpus: Sequence[str]) -> tuple[int, ...]:
    """All memory of each of those GPUs; none where the driver doesn't say of one of them."""
    readers, _ = open_gpus(gpus)
    return _known_of_all(gpus, [reader.capacity_bytes() for reader in readers])


def _known_of_all(gpus: Sequence[str], values: Sequence[float | int | None]) -> tuple[int, ...]:
    known = tuple(int(value) for value in values if value is not None)
    return known if len(known) == len(gpus) else ()


def power_at_rest_w(gpus: Sequence[str]) -> tuple[tuple[float, ...], str | None]:
    """REST_READINGS of the power of those GPUs together, at rest; none, and why, where they don't come to it
    within MOST_READINGS, or the driver doesn't say."""
    readers, unavailable = open_gpus(gpus)
    if not readers:
        return (), unavailable["gpu_power_w"]
    readings: list[dict[str, float | int]] = []
    for _ in range(MOST_READINGS):
        time.sleep(REST_INTERVAL_S)
        readings.append(join_cards([reader.read() for reader in readers]))
        if "gpu_power_w" not in readings[-1]:
            return (), reasons_of(readers).get("gpu_power_w", "the driver gave no reading")
        powers_w = _at_rest(readings[-REST_READINGS:])
        if powers_w:
            return powers_w, None
    last = readings[-1]
    busy = f", busy for {last['gpu_utilisation_percent']:.0f}%" if "gpu_utilisation_percent" in last else ""
    waited_s = MOST_READINGS * REST_INTERVAL_S
    return (), f"the card did not come to rest within {waited_s:g} s ({last['gpu_power_w']:.0f} W{busy})"


def _at_rest(readings: Sequence[dict[str, float | int]]) -> tuple[float, ...]:
    """Their powers; none where the card was busy or its power still changed."""
    powers_w = tuple(float(reading["gpu_power_w"]) for reading in readings)
    if len(readings) < REST_READINGS or any(reading.get("gpu_utilisation_percent") for reading in readings):
        return ()
    return powers_w if max(powers_w) - min(powers_w) <= REST_SPREAD * sum(powers_w) / len(powers_w) else ()


def used_bytes(gpus: Sequence[str]) -> tuple[int, ...]:
    """Memory in use on each of those GPUs by all processes; none where the driver doesn't say of one of them."""
    readers, _ = open_gpus(gpus)
    return _known_of_all(gpus, [reader.read().get("gpu_memory_bytes") for reader in readers])


def torch_memory_bytes(device: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(in use by all processes, in all) of each card as torch tells, where the driver doesn't. Starts CUDA."""
    import torch

    figures = [torch.cuda.mem_get_info(card) for card in torch_devices(device)] if cards_of(device) else []
    return tuple(int(whole - free) for free, whole in figures), tuple(int(whole) for _, whole in figures)


def total_bytes(cards: Sequence[int]) -> int | None:
    """The sum over the cards, None where nothing is known of them."""
    return sum(cards) if cards else None
