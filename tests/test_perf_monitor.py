"""The monitor is a real process here; only NVML is a stand-in."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from bitladder.perf import resources
from bitladder.perf.memory import PeakDevice, PeakResident, limit_memory
from bitladder.perf.monitor import GPU_FIELDS, GpuReader, join_cards, open_gpus
from bitladder.perf.resources import gpus_of, total_bytes, used_bytes, watching
from nvml_fakes import install_nvml

MIB = 1024**2


def spin(seconds: float) -> None:
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        pass


def test_monitor_reads_this_process_on_our_clock() -> None:
    with watching((), interval_s=0.02) as watch:
        wait_for_readings()
        started_s = time.perf_counter()
        spin(0.5)
        ended_s = time.perf_counter()
    samples, unavailable = watch.between(started_s, ended_s)
    times_s = [sample.time_s for sample in samples]
    assert len(samples) >= 5
    assert times_s == sorted(times_s)
    assert times_s[0] >= 0 and times_s[-1] <= ended_s - started_s
    assert max(sample.cpu_percent or 0 for sample in samples) > 20
    assert all(sample.rss_bytes and sample.rss_bytes > 10 * MIB for sample in samples)
    assert unavailable == dict.fromkeys(GPU_FIELDS, "no GPU")


def test_measured_too_short_for_a_reading() -> None:
    with watching((), interval_s=60) as watch:
        pass
    samples, unavailable = watch.between(1.0, 1.1)
    assert samples == ()
    assert unavailable["resources"].startswith("measured for 0.10 s")


def test_monitor_that_dies_costs_its_readings_only() -> None:
    with watching((), interval_s=0.02) as watch:
        monitor = wait_for_readings()
        monitor.kill()
    samples, unavailable = watch.between(0.0, time.perf_counter())
    assert samples
    assert unavailable["resources"] == "the monitor ended with -9"


def test_monitor_of_nobody_says_so() -> None:
    with watching(("no such GPU",), pid=psutil.Process().pid, interval_s=0.02) as watch:
        wait_for_readings()
    _, unavailable = watch.between(0.0, time.perf_counter())
    assert all(unavailable[field].startswith("NVML: ") for field in GPU_FIELDS)


def test_unfinished_last_line_is_left_out() -> None:
    with watching((), interval_s=60) as watch:
        pass
    watch.read(b'{"unavailable":{}}\n{"time_s":1.5,"cpu_percent":3.0,"rss_bytes":7}\n{"time_s":2.0,"cpu', None)
    samples, unavailable = watch.between(1.0, 3.0)
    assert [(sample.time_s, sample.rss_bytes) for sample in samples] == [(0.5, 7)]
    assert unavailable == {}


def test_monitor_ends_when_its_parent_is_killed() -> None:
    code = "import time\nfrom bitladder.perf.resources import watching\nwith watching(()): time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        monitor = wait_for_monitor(parent.pid)
        parent.kill()
    assert_ends(monitor)


def test_monitor_ends_when_the_watched_process_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as finished:
        pass
    command = [sys.executable, "-m", "bitladder.perf.monitor", str(finished.pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as monitor:
        assert monitor.wait(20) == 0
        assert monitor.stderr is not None and monitor.stderr.read() == b""


def test_monitor_is_light() -> None:
    code = (
        "import sys, bitladder.perf.monitor; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"


class NvmlError(Exception):
    pass


def fake_nvml() -> Any:
    def refuse(handle: object) -> int:
        raise NvmlError("Not Supported")

    return SimpleNamespace(
        NVMLError=NvmlError,
        NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: ("index", index),
        nvmlDeviceGetHandleByUUID=lambda uuid: ("uuid", uuid),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=87),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=3 * MIB),
        nvmlDeviceGetPowerUsage=lambda handle: 69_500,
        nvmlDeviceGetTotalEnergyConsumption=refuse,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1590,
        nvmlDeviceGetCurrentClocksEventReasons=lambda handle: 4,
    )


def test_gpu_reader_has_units_and_reasons() -> None:
    reader = GpuReader("0", fake_nvml())
    assert reader.read() == {
        "gpu_utilisation_percent": 87,
        "gpu_memory_bytes": 3 * MIB,
        "gpu_power_w": 69.5,
        "gpu_sm_clock_mhz": 1590,
        "gpu_throttle_bits": 4,
    }
    assert reader.unavailable == {"gpu_energy_j": "NVML: Not Supported"}


def test_several_cards_as_one() -> None:
    first = {
        "gpu_utilisation_percent": 80,
        "gpu_memory_bytes": 3 * MIB,
        "gpu_power_w": 60.0,
        "gpu_energy_j": 5.0,
        "gpu_sm_clock_mhz": 1590,
        "gpu_throttle_bits": 4,
    }
    second = first | {
        "gpu_utilisation_percent": 20,
        "gpu_memory_bytes": 5 * MIB,
        "gpu_process_bytes": MIB,
        "gpu_sm_clock_mhz": 1200,
        "gpu_throttle_bits": 33,
    }
    assert join_cards([first, second]) == {
        "gpu_utilisation_percent": 50,
        "gpu_memory_bytes": 8 * MIB,
        "gpu_process_bytes": MIB,
        "gpu_power_w": 120.0,
        "gpu_energy_j": 10.0,
        "gpu_sm_clock_mhz": 1200,
        "gpu_throttle_bits": 37,
    }
    assert join_cards([second]) == second
    assert join_cards([]) == {}
    del second["gpu_power_w"]
    assert "gpu_power_w" not in join_cards([first, second]), "half a sum is no sum"


NVML_OF_TWO_CARDS = """
import os
class NVMLError(Exception): pass
class Numbers:
    def __init__(self, **numbers): self.__dict__.update(numbers)
NVML_CLOCK_SM = 1
def nvmlInit(): pass
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUtilizationRates(card): return Numbers(gpu=(90, 30)[card])
def nvmlDeviceGetMemoryInfo(card): return Numbers(used=(700, 500)[card], total=(8000, 6000)[card])
def nvmlDeviceGetPowerUsage(card): return (60_000, 40_000)[card]
def nvmlDeviceGetTotalEnergyConsumption(card):
    if card: raise NVMLError("Not Supported")
    return 1
def nvmlDeviceGetClockInfo(card, kind): return (1500, 1400)[card]
def nvmlDeviceGetCurrentClocksEventReasons(card): return (1, 4)[card]
def nvmlDeviceGetComputeRunningProcesses(card): return [Numbers(pid=os.getppid(), usedGpuMemory=(70, 50)[card])]
"""


def test_monitor_watches_both_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text(NVML_OF_TWO_CARDS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with watching(("0", "1"), interval_s=0.02) as watch:
        wait_for_readings()
    samples, unavailable = watch.between(0.0, time.perf_counter())
    assert unavailable == {"gpu_energy_j": "NVML: Not Supported"}
    assert samples[-1].model_dump(include=set(GPU_FIELDS)) == {
        "gpu_utilisation_percent": 60.0,
        "gpu_memory_bytes": 1200,
        "gpu_process_bytes": 120,
        "gpu_power_w": 100.0,
        "gpu_energy_j": None,
        "gpu_sm_clock_mhz": 1400,
        "gpu_throttle_bits": 5,
    }
    assert [(card.gpu_memory_bytes, card.gpu_energy_j) for card in samples[-1].cards] == [(700, 0.001), (500, None)]
    with watching(("1",), interval_s=0.02) as watch:
        wait_for_readings()
    samples, _ = watch.between(0.0, time.perf_counter())
    assert (samples[-1].gpu_memory_bytes, samples[-1].cards) == (500, ())


def test_idle_readings_of_both_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("pynvml")
    exec(NVML_OF_TWO_CARDS, module.__dict__)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    both = ("0", "1")
    assert resources.used_bytes(both) == (700, 500)
    assert resources.total_bytes(resources.used_bytes(both)) == 1200
    assert resources.capacity_bytes(both) == (8000, 6000)


class Card:
    """Readings of a card that another process has just left, one after the other."""

    unavailable: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, *readings: tuple[float, int]) -> None:
        self._readings = [*readings, *[readings[-1]] * 200]

    def read(self) -> dict[str, float | int]:
        power_w, percent = self._readings.pop(0)
        return {"gpu_power_w": power_w, "gpu_utilisation_percent": percent}


def test_power_is_read_of_a_card_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran before leaves it hot: 490 W were read as idle where it takes 80 to 130."""
    waited_s: list[float] = []
    monkeypatch.setattr("bitladder.perf.resources.time.sleep", waited_s.append)
    cooling = Card((490.0, 100), (480.0, 60), (300.0, 0), (200.0, 0), (150.0, 0), (120.0, 0), (119.0, 0))
    monkeypatch.setattr(resources, "open_gpus", lambda gpus: ([cooling], {}))
    assert resources.power_at_rest_w(("0",)) == ((120.0, 119.0, 119.0, 119.0, 119.0), None)
    assert sum(waited_s) == pytest.approx(1.0)
    for never, why in (
        (((350.0, 0), (90.0, 40)), "(90 W, busy for 40%)"),
        (((90.0, 0), (300.0, 7)), "(300 W, busy for 7%)"),
    ):
        monkeypatch.setattr(resources, "open_gpus", lambda gpus, never=never: ([Card(*never)], {}))
        assert resources.power_at_rest_w(("0",)) == ((), f"the card did not come to rest within 10 s {why}")
    monkeypatch.setattr(resources, "open_gpus", lambda gpus: ([], {"gpu_power_w": "no GPU"}))
    assert resources.power_at_rest_w(()) == ((), "no GPU")


def test_every_gpu_field_has_a_reading_or_a_reason() -> None:
    readers, unavailable = open_gpus(("0",))
    read = set(readers[0].read()) if readers else set()
    assert read | set(unavailable) == set(GPU_FIELDS)
    assert not read & set(unavailable)


@pytest.mark.parametrize(
    ("device", "visible", "gpus"),
    [
        ("cpu", "", ()),
        ("cuda:1", None, ("1",)),
        ("cuda", None, ("0",)),
        ("cuda:0,2", None, ("0", "2")),
        ("cuda:1", "3,5", ("5",)),
        ("cuda:0,1", "3,5", ("3", "5")),
        ("cuda:0", "GPU-8d5f", ("GPU-8d5f",)),
    ],
)
def test_gpus_of_a_device_without_a_driver(
    device: str, visible: str | None, gpus: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvml(monkeypatch, tmp_path, refuses={"all": "NVMLError_LibraryNotFound"})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_of(device) == gpus


def test_no_device_memory_without_a_gpu() -> None:
    assert (used_bytes(()), total_bytes(())) == ((), None)


class FakeCards:
    """torch.cuda with two cards of 80 bytes, of which 10 and 20 are in use, 2 and 3 of these by this process."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        import torch

        self.current: list[int] = []
        self.shares: dict[str, float] = {}
        self.reset: list[int] = []
        free = {"cuda:0": 70, "cuda:1": 60}
        patch.setattr("bitladder.checkpoint.loading.count_cards", lambda: 2)
        patch.setattr(torch.cuda, "set_device", self.current.append)
        patch.setattr(torch, "ones", lambda size, device: torch.zeros(size))
        patch.setattr(torch.cuda, "mem_get_info", lambda card: (free[card], 80))
        patch.setattr(torch.cuda, "memory_reserved", lambda card: 1)
        patch.setattr(
            torch.cuda, "set_per_process_memory_fraction", lambda share, card: self.shares.update({card: share * 80})
        )
        patch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset.append)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda card: (7, 5)[card])
        patch.setattr(torch.cuda, "max_memory_reserved", lambda card: (9, 8)[card])


@pytest.mark.parametrize(
    ("device", "limit", "idle", "shares"),
    [
        ("cpu", 40, (), {}),
        ("cuda:0", None, (8,), {}),
        ("cuda:0", 40, (8,), {"cuda:0": 39}),
        ("cuda:0", 40, (), {"cuda:0": 31}),
        ("cuda:0,1", 40, (8, 17), {"cuda:0": 39, "cuda:1": 38}),
    ],
)
def test_memory_is_limited_on_each_card(
    device: str, limit: int | None, idle: tuple[int, ...], shares: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = FakeCards(monkeypatch)
    limit_memory(device, limit, idle)
    assert cards.shares == pytest.approx(shares)
    assert cards.current == [0] * bool(shares)


@pytest.mark.parametrize(
    ("device", "peaks", "reset"),
    [("cpu", (None, None), []), ("cuda:1", (5, 8), [1]), ("cuda:0,1", (12, 17), [0, 1])],
)
def test_peaks_of_the_cards_in_use(
    device: str, peaks: tuple[int | None, int | None], reset: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = FakeCards(monkeypatch)
    assert PeakDevice(device).read() == peaks
    assert cards.reset == reset


@pytest.mark.parametrize("exact", [True, False])
def test_peak_resident_sees_what_is_gone_again(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        monkeypatch.setattr(PeakResident, "_RESET", PeakResident._STATUS / "nothing")
    peak = PeakResident()
    before = peak.read()
    block = bytearray(b"x" * 200 * MIB)
    held = peak.read() if not exact else 0
    del block
    assert max(peak.read(), held) >= before + 150 * MIB


def wait_for_monitor(parent: int | None = None) -> psutil.Process:
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        for child in psutil.Process(parent).children():
            if "bitladder.perf.monitor" in child.cmdline():
                return child
        time.sleep(0.02)
    raise AssertionError("no monitor was started")


def wait_for_readings() -> psutil.Process:
    """The monitor, once it has written its first line and a reading."""
    monitor = wait_for_monitor()
    ends = time.monotonic() + 30
    output = Path(f"/proc/{monitor.pid}/fd/1")
    while len(output.read_bytes().splitlines()) < 3:
        assert time.monotonic() < ends, "the monitor wrote no reading"
        time.sleep(0.02)
    return monitor


def assert_ends(process: psutil.Process) -> None:
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.02)
    raise AssertionError("the monitor outlived its parent")
