"""What a measurement took: memory, utilisation, energy, from the monitor's readings beside it."""

from itertools import pairwise

from bitladder.records import PerformanceOutcome
from bitladder.records.base import Unknown
from bitladder.summary.table import Estimate
from bitladder.units import MIB

SHORTEST_UTILISATION_S = 5.0
"""a GPU's utilisation is itself a mean over up to a second"""
SHORTEST_ENERGY_S = 10.0
"""the energy counter moves in steps"""
NOTED_OTHERS_BYTES = 64 * MIB
"""The driver counts some MiB of the device more than of its processes; an empty CUDA context takes hundreds."""

_SERIES = "no interval: successive readings depend on each other"
_ONE_RUN = "no interval: the peak of one run"
_COUNTED = "no interval: counted, not sampled"
_ONCE = "no interval: loaded once"


class Readings:
    """The monitor's readings of one measurement, and why some are missing."""

    def __init__(self, outcome: PerformanceOutcome) -> None:
        self._outcome = outcome

    def series(self, field: str) -> list[tuple[float, float]]:
        """(time_s, value) of every reading that has the field."""
        pairs = [(sample.time_s, getattr(sample, field)) for sample in self._outcome.resources]
        return [(time_s, float(value)) for time_s, value in pairs if value is not None]

    def why_missing(self, *fields: str) -> Unknown:
        """What the record says of the first of these fields that it names."""
        reasons = self._outcome.unavailable
        told = (reasons[name] for name in (*fields, "resources") if name in reasons)
        return Unknown(next(told, f"{fields[0]} was not recorded"))

    def missing(self, *fields: str) -> Estimate:
        return Estimate.unknown(self.why_missing(*fields))

    def peak(self, field: str, value: float | None) -> Estimate:
        """``value``, or why the field that it is of is missing."""
        return self.missing(field) if value is None else Estimate(value=value, reason=_ONE_RUN)

    def mean(self, field: str) -> Estimate:
        values = [value for _, value in self.series(field)]
        return Estimate(value=sum(values) / len(values), reason=_SERIES) if values else self.missing(field)


def resource_metrics(outcome: PerformanceOutcome, device: str, duration_s: float) -> dict[str, Estimate]:
    """Memory in bytes, utilisation in per cent, power and energy. `duration_s`: of the measured part.

    Device memory is what the whole device has in use minus what it had before this process; on a CPU, the process's
    resident size. Energy is gross, the counter's rise between first and last reading over the measured time, and less
    what the idle GPU would have taken.
    """
    readings, memory = Readings(outcome), outcome.memory
    average, peak = _device_memory(outcome, readings)
    resident_peak = Estimate(value=memory.peak_process_bytes, reason=_ONE_RUN)
    if device == "cpu":
        average, peak = readings.mean("rss_bytes"), resident_peak
    process_bytes = [value for _, value in readings.series("gpu_process_bytes")]
    return {
        "load_time_s": Estimate(value=outcome.load_time_s, reason=_ONCE),
        "cpu_percent": readings.mean("cpu_percent"),
        "gpu_utilisation_percent": gpu_utilisation(outcome, duration_s),
        "study_vram_bytes": average,
        "peak_memory_bytes": peak,
        "resident_peak_bytes": resident_peak,
        "allocated_peak_bytes": readings.peak("allocated_peak_bytes", memory.allocated_peak_bytes),
        "reserved_peak_bytes": readings.peak("reserved_peak_bytes", memory.reserved_peak_bytes),
        "process_peak_bytes": readings.peak("gpu_process_bytes", max(process_bytes, default=None)),
        "loaded_bytes": Estimate(value=memory.loaded_bytes, reason=_COUNTED),
        "gpu_power_w": readings.mean("gpu_power_w"),
        "gpu_energy_j": gpu_energy(readings, duration_s),
        "gpu_energy_above_idle_j": _energy_above_idle(readings, outcome, duration_s),
    }


def gpu_utilisation(outcome: PerformanceOutcome, duration_s: float) -> Estimate:
    """Share of the time with a kernel running, in per cent."""
    found = Readings(outcome).mean("gpu_utilisation_percent")
    if found.value is not None and duration_s < SHORTEST_UTILISATION_S:
        return Estimate.unknown(
            Unknown(f"measured for {duration_s:.1f} s, utilisation needs {SHORTEST_UTILISATION_S:g} s")
        )
    return found


def _device_memory(outcome: PerformanceOutcome, readings: Readings) -> tuple[Estimate, Estimate]:
    """Average and peak of device minus idle."""
    idle = outcome.memory.idle_device_bytes
    values = [value for _, value in readings.series("gpu_memory_bytes")]
    if idle is None or not values:
        unknown = readings.missing("gpu_memory_bytes", "idle_device_bytes")
        return unknown, unknown
    average = sum(values) / len(values) - idle
    return Estimate(value=average, reason=_SERIES), Estimate(value=max(values) - idle, reason=_ONE_RUN)


def others_bytes(outcome: PerformanceOutcome) -> int | None:
    """The most that processes beside this one took of the GPU since the reading before it, negative where they gave
    memory back; None where that is too little to tell, or not known.

    By two readings one after the other: between the driver's answers of one, this process may have taken some itself.
    """
    idle = outcome.memory.idle_device_bytes
    found = [
        sample.gpu_memory_bytes - idle - sample.gpu_process_bytes
        for sample in outcome.resources
        if idle is not None and sample.gpu_memory_bytes is not None and sample.gpu_process_bytes is not None
    ]
    lasting = [min(pair, key=abs) for pair in pairwise(found) if pair[0] * pair[1] > 0]
    most = max(lasting, key=abs, default=0)
    return most if abs(most) > NOTED_OTHERS_BYTES else None


def gpu_energy(readings: Readings, duration_s: float) -> Estimate:
    """Gross, in joules."""
    series = readings.series("gpu_energy_j")
    if len(series) < 2:
        return readings.missing("gpu_energy_j")
    if duration_s < SHORTEST_ENERGY_S:
        return Estimate.unknown(Unknown(f"measured for {duration_s:.1f} s, energy needs {SHORTEST_ENERGY_S:g} s"))
    (first_s, first_j), (last_s, last_j) = series[0], series[-1]  # of a counter
    return Estimate(value=(last_j - first_j) / (last_s - first_s) * duration_s, reason=_SERIES)


def _energy_above_idle(readings: Readings, outcome: PerformanceOutcome, duration_s: float) -> Estimate:
    gross = gpu_energy(readings, duration_s)
    if gross.value is None:
        return gross
    idle = _idle_power_w(readings, outcome)
    if isinstance(idle, Unknown):
        return Estimate.unknown(idle)
    return Estimate(value=gross.value - idle * duration_s, reason=_SERIES)


def _idle_power_w(readings: Readings, outcome: PerformanceOutcome) -> float | Unknown:
    """Of the idle card; not known where a card at work went below it."""
    if not outcome.idle_powers_w:
        if outcome.idle_power_w is not None:
            return Unknown("the power of the idle GPU was read after batches had run on it")
        return readings.why_missing("idle_powers_w")
    idle_w = sum(outcome.idle_powers_w) / len(outcome.idle_powers_w)
    least_w = min((value for _, value in readings.series("gpu_power_w")), default=idle_w)
    if least_w < min(outcome.idle_powers_w):
        return Unknown(f"the GPU took {least_w:.0f} W at work and {idle_w:.0f} W before, so it was not idle before")
    return idle_w
