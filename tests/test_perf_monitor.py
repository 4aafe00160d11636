"""The monitor is a real process here; only NVML is a stand-in."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bitladder.perf.memory import PeakResident
from bitladder.perf.monitor import GPU_FIELDS, GpuReader, open_gpu
from bitladder.perf.resources import device_bytes, gpu_of, watching

MIB = 1024**2


def spin(seconds: float) -> None:
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        pass


def test_monitor_reads_this_process_on_our_clock() -> None:
    with watching(None, interval_s=0.02) as watch:
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
    with watching(None, interval_s=60) as watch:
        pass
    samples, unavailable = watch.between(1.0, 1.1)
    assert samples == ()
    assert unavailable["resources"].startswith("measured for 0.10 s")


def test_monitor_that_dies_costs_its_readings_only() -> None:
    with watching(None, interval_s=0.02) as watch:
        monitor = wait_for_readings()
        monitor.kill()
    samples, unavailable = watch.between(0.0, time.perf_counter())
    assert samples
    assert unavailable["resources"] == "the monitor ended with -9"


def test_monitor_of_nobody_says_so() -> None:
    with watching("no such GPU", pid=psutil.Process().pid, interval_s=0.02) as watch:
        wait_for_readings()
    _, unavailable = watch.between(0.0, time.perf_counter())
    assert all(unavailable[field].startswith("NVML: ") for field in GPU_FIELDS)


def test_unfinished_last_line_is_left_out() -> None:
    with watching(None, interval_s=60) as watch:
        pass
    watch.read(b'{"unavailable":{}}\n{"time_s":1.5,"cpu_percent":3.0,"rss_bytes":7}\n{"time_s":2.0,"cpu', None)
    samples, unavailable = watch.between(1.0, 3.0)
    assert [(sample.time_s, sample.rss_bytes) for sample in samples] == [(0.5, 7)]
    assert unavailable == {}


def test_monitor_ends_when_its_parent_is_killed() -> None:
    code = "import time\nfrom bitladder.perf.resources import watching\nwith watching(None): time.sleep(60)"
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


def test_every_gpu_field_has_a_reading_or_a_reason() -> None:
    reader, unavailable = open_gpu("0")
    read = set(reader.read()) if reader else set()
    assert read | set(unavailable) == set(GPU_FIELDS)
    assert not read & set(unavailable)


@pytest.mark.parametrize(
    ("device", "visible", "gpu"),
    [
        ("cpu", "", None),
        ("cuda:1", "", "1"),
        ("cuda", "", "0"),
        ("cuda:1", "3,5", "5"),
        ("cuda:0", "GPU-8d5f", "GPU-8d5f"),
    ],
)
def test_gpu_of_a_device(device: str, visible: str, gpu: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_of(device) == gpu


def test_no_device_memory_without_a_gpu() -> None:
    assert device_bytes(None) is None


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
