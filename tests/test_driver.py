"""Whatever of NVML a machine refuses, and however: None with its reason, never an exception and never 0."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitladder.errors import UserError
from bitladder.machine import cards as cuda
from bitladder.machine import cards as driver
from bitladder.machine import host
from bitladder.perf import maxbatch, resources
from bitladder.perf import memory as overhead
from bitladder.perf.measure import measure
from bitladder.perf.monitor import GPU_FIELDS, open_gpus
from bitladder.records import Gpu
from bitladder.report.provenance_tables import _gpu_text
from bitladder.study import calibration
from bitladder.study.calibration import WantedDevice
from nvml_fakes import ERROR_NAMES, WAYS, install_nvml, used_functions
from perf_fakes import make_prompts, make_scenario
from test_perf_maxbatch import _EndsIn, engine_of, probe_job
from test_perf_measure import assert_every_none_has_a_reason

MIB = 1 << 20
FACTS = ("name", "total_memory_bytes", "compute_capability", "driver", "serial")


class FakeTorch:
    """torch.cuda with so many cards, of which the driver may tell less."""

    def __init__(self, patch: pytest.MonkeyPatch, cards: int) -> None:
        import torch

        def properties(card: int) -> Any:
            return SimpleNamespace(name=f"Slice {card}", total_memory=4000 * MIB, major=8, minor=0)

        patch.setattr(torch.cuda, "is_available", lambda: cards > 0)
        patch.setattr(torch.cuda, "device_count", lambda: cards)
        patch.setattr(torch.cuda, "get_device_properties", properties)
        patch.setattr(torch.cuda, "mem_get_info", lambda card: (3000 * MIB, 4000 * MIB))


def test_the_fake_has_every_function_that_is_used() -> None:
    from nvml_fakes import SOURCE

    assert len(used_functions()) >= 18
    assert [name for name in used_functions() if f" {name}=" not in SOURCE] == []
    assert len(ERROR_NAMES) >= 20


@pytest.mark.parametrize("function", [*used_functions(), "all"])
def test_every_refusal_is_none_with_a_reason(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "REST_INTERVAL_S", 0.0)
    monkeypatch.setattr(resources, "MOST_READINGS", resources.REST_READINGS + 1)  # this card is always busy
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for how in WAYS:
        if (function, how) == ("all", "missing"):
            continue
        with monkeypatch.context() as patch:
            install_nvml(patch, tmp_path, refuses={function: how})
            for gpu in host.describe_gpus():
                assert {field for field in FACTS if getattr(gpu, field) is None} == gpu.unknown.keys(), how
                assert gpu.total_memory_bytes != 0
                assert "None" not in _gpu_text(gpu)
            for gpus in (("0",), ("0", "1"), ("GPU-00",), ("no such",)):
                readers, unavailable = open_gpus(gpus, 1)
                read = {name for reader in readers for name in reader.read()}
                assert read | set(unavailable) | {"gpu_process_bytes"} == set(GPU_FIELDS), how
                assert all(unavailable.values())
                figures = resources.capacity_bytes(gpus), resources.used_bytes(gpus)
                assert all(len(one) in (0, len(gpus)) and 0 not in one for one in figures)
                assert 0.0 not in resources.power_at_rest_w(gpus)[0]
            assert len(resources.gpus_of("cuda:0,1")) == 2
            assert resources.gpus_of("cpu") == ()
            assert cuda.driver_cuda_version(sys.modules["pynvml"]) in ((13, 0), None)
            assert driver.could_have_cards() in (True, False)
            assert driver.failure() != ""


@pytest.mark.parametrize("function", used_functions())
@pytest.mark.parametrize("cards", [0, 1, 2])
def test_a_study_on_cards_goes_by_torch_where_the_driver_is_silent(
    function: str, cards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or is refused in one line, where torch has no card either."""
    FakeTorch(monkeypatch, cards)
    monkeypatch.setattr(calibration, "largest_load_bytes", lambda *_: 3700 * MIB)
    install_nvml(monkeypatch, tmp_path, refuses={function: "NVMLError_NotSupported"}, cards=cards or 1)
    wanted = WantedDevice("auto")
    if not cards:
        with pytest.raises(UserError, match="--device cpu to go on without the GPU") as refused:
            calibration.calibrate(wanted, "unread", None)  # type: ignore[arg-type]
        assert "\n" not in str(refused.value)
        return
    found = calibration.calibrate(wanted, "unread", None)  # type: ignore[arg-type]
    by_torch = function in ("nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo")
    assert found.device == ("cuda:0,1" if by_torch and cards == 2 else "cuda:0")
    assert len(found.machine.gpus) == cards
    assert found.machine.gpus_unknown is None
    sizes = {gpu.total_memory_bytes for gpu in found.machine.gpus}
    assert sizes == ({4000 * MIB} if by_torch else {8000 * MIB})
    assert all(gpu.name and gpu.compute_capability for gpu in found.machine.gpus)


@pytest.mark.parametrize(
    ("how", "refused"),
    [
        ("NVMLError_LibRmVersionMismatch", True),
        ("NVMLError_Unknown", True),
        ("NVMLError_NoPermission", True),
        ("NVMLError_LibraryNotFound", False),
        ("NVMLError_DriverNotLoaded", False),
        ("OSError", False),
    ],
)
def test_a_driver_that_fails_is_no_machine_without_gpus(
    how: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No study goes to the CPU unasked."""
    FakeTorch(monkeypatch, 0)
    install_nvml(monkeypatch, tmp_path, refuses={"nvmlInit": how})
    machine = host.describe_machine()
    assert machine.gpus == () and bool(machine.gpus_unknown) == refused
    if refused:
        with pytest.raises(UserError, match=r"^the NVIDIA driver doesn't tell its GPUs \(NVML: "):
            calibration.find_device(WantedDevice("auto"), machine, "unread")  # type: ignore[arg-type]
    else:
        assert calibration.find_device(WantedDevice("auto"), machine, "unread") == "cpu"  # type: ignore[arg-type]
    assert calibration.find_device(WantedDevice("cpu"), machine, "unread") == "cpu"  # type: ignore[arg-type]


def test_a_card_that_torch_can_not_use_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def lost(card: int) -> Any:
        raise RuntimeError("CUDA error: the GPU is lost\nCUDA kernel errors might be reported asynchronously")

    FakeTorch(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lost)
    install_nvml(monkeypatch, tmp_path, refuses={"nvmlDeviceGetName": "NVMLError_GpuIsLost"}, cards=1)
    with pytest.raises(UserError) as refused:
        cuda.with_torchs_figures(host.describe_machine())
    assert str(refused.value) == (
        "cuda:0 (GPU of unknown model): torch can't use it (CUDA error: the GPU is lost); take another --device, or "
        "give --device cpu to go on without the GPU"
    )


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ("0", "1")),
        ("", ()),
        ("-1", ()),
        ("1", ("1",)),
        ("1,0", ("1", "0")),
        ("0,7", ("0",)),
        ("7", ()),
        ("0,0", ()),
        ("GPU-1", ("1",)),
        ("GPU-11,GPU-00", ("1", "0")),
        ("GPU-", ()),
        ("GPU-9", ()),
        ("MIG-abc", ("MIG-abc",)),
        ("MIG-abc, MIG-def", ("MIG-abc", "MIG-def")),
        ("MIG-abc,0", ("MIG-abc",)),
        ("MIG-abc,MIG-abc", ()),
        ("MIG-GPU-00/1/0", ("MIG-GPU-00/1/0",)),
    ],
)
def test_what_a_process_sees(
    visible: str | None, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvml(monkeypatch, tmp_path, refuses={})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert driver.visible_gpus(sys.modules["pynvml"]) == names
    assert len(host.describe_gpus()) == len(names)
    beyond = "2" if visible is None else f"cuda:{len(names)}"
    device = f"cuda:{','.join(map(str, range(len(names) + 1)))}"
    assert resources.gpus_of(device) == (*names, beyond), "a number beyond is no end"
    assert driver.could_have_cards() == bool(names)


@pytest.mark.parametrize("refused", ["all", "nvmlDeviceGetCount", "nvmlDeviceGetUUID"])
@pytest.mark.parametrize("visible", ["GPU-11", "1", "-1", "", "MIG-abc", "GPU-1,0"])
def test_what_a_process_sees_of_a_silent_driver(
    refused: str, visible: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvml(monkeypatch, tmp_path, refuses={refused: "NVMLError_NoPermission"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    named = [name for name in visible.split(",") if name not in ("-1", "")]
    assert list(driver.visible_gpus(sys.modules["pynvml"])) == named
    for gpu in host.describe_gpus():
        assert {field for field in FACTS if getattr(gpu, field) is None} == gpu.unknown.keys()


def test_a_divided_card_gives_no_figures_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process has one slice of it, of which torch knows; a slice that is named is asked itself."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    FakeTorch(monkeypatch, 1)
    install_nvml(monkeypatch, tmp_path, refuses={}, cards=1, divided=True)
    (gpu,) = host.describe_gpus()
    assert (gpu.name, gpu.total_memory_bytes, gpu.compute_capability) == (None, None, "9.0")
    assert gpu.unknown["total_memory_bytes"] == driver.DIVIDED
    assert resources.used_bytes(("0",)) == resources.capacity_bytes(("0",)) == ()
    assert set(open_gpus(("0",))[1].values()) == {driver.DIVIDED}
    (known,) = cuda.with_torchs_figures(host.describe_machine()).gpus
    assert (known.name, known.total_memory_bytes, known.unknown) == ("Slice 0", 4000 * MIB, {})

    refuses = {"nvmlDeviceGetMigMode": "NVMLError_InvalidArgument", "nvmlDeviceGetPowerUsage": "NVMLError_NotSupported"}
    install_nvml(monkeypatch, tmp_path, refuses=refuses)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-abc")
    assert resources.gpus_of("cuda:0") == ("MIG-abc",)
    assert resources.used_bytes(("MIG-abc",)) == (500 * MIB,)
    assert open_gpus(("MIG-abc",))[1] == {"gpu_power_w": "NVML: Not Supported"}


def test_what_is_not_known_of_a_card_is_said() -> None:
    unknown = {"name": "NVML: GPU is lost", "total_memory_bytes": "NVML: GPU is lost", "serial": "NVML: Not Supported"}
    gpu = Gpu(name=None, total_memory_bytes=None, compute_capability="8.0", driver=None, unknown=unknown)
    assert _gpu_text(gpu) == (
        "GPU of unknown model, memory unknown, compute capability 8.0, driver unknown (NVML: GPU is lost)"
    )


@pytest.mark.parametrize("refused", ["nvmlInit", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetMemoryInfo"])
def test_a_measurement_on_a_card_of_unknown_memory(
    refused: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the card itself: the model runs on the CPU."""
    import torch

    from bitladder.checkpoint import loading

    load = loading.load_model
    monkeypatch.setattr("bitladder.perf.engines.eager.load_model", lambda directory, policy: load(directory))
    for name in ("reset_peak_memory_stats", "max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda card: 70)
    install_nvml(monkeypatch, tmp_path, refuses={refused: "NVMLError_NotSupported"})
    monkeypatch.setattr(resources, "REST_INTERVAL_S", 0.0)
    prompts = make_prompts()
    outcome = measure(tiny_llama, make_scenario(prompts, device="cuda:0", threads=None), prompts)
    assert outcome.memory.idle_device_bytes is None
    assert outcome.memory.allocated_peak_bytes == 70
    assert {sample.gpu_memory_bytes for sample in outcome.resources} <= {None}
    assert_every_none_has_a_reason(outcome)
    assert outcome.unavailable["idle_device_bytes"] == "NVML: Not Supported"


@pytest.mark.parametrize(("limit", "fits"), [(None, True), (999 * MIB, False), (1000 * MIB, True)])
def test_a_probe_goes_by_torch(
    limit: int | None, fits: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeTorch(monkeypatch, 1)
    install_nvml(monkeypatch, tmp_path, refuses={"nvmlDeviceGetMemoryInfo": "NVMLError_NotSupported"})
    monkeypatch.setattr(maxbatch, "limit_memory", lambda device, limit_bytes, idle_bytes: None)
    monkeypatch.setattr(maxbatch, "find_engine", lambda name: engine_of(_EndsIn(None)))
    monkeypatch.setattr("bitladder.checkpoint.loading.load_model", lambda *_, **__: None)
    job = probe_job(tiny_llama)
    scenario = job.scenario.model_copy(update={"memory_limit_bytes": limit, "device": "cuda:0"})
    answer = maxbatch.try_batch(job.model_copy(update={"scenario": scenario}))
    assert (answer.fits, answer.needed_bytes, answer.available_bytes) == (fits, 1000 * MIB, 4000 * MIB)


def test_why_a_plan_has_no_peak_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml(monkeypatch, tmp_path, refuses={"nvmlDeviceGetMemoryInfo": "NVMLError_NotSupported"})
    assert overhead.unknown_overhead("cuda:0") == "NVML: Not Supported"


MONITOR_LOSES_THE_CARD = """
import sys, threading
from bitladder.perf import monitor
import pynvml, psutil, os
readings = []
def lose(card):
    readings.append(card)
    if len(readings) > 2: raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    return pynvml.Numbers(used=5, total=9)
pynvml.nvmlDeviceGetMemoryInfo = lose
stop = threading.Event()
threading.Timer(0.4, stop.set).start()
monitor._monitor(psutil.Process(), ["0"], 0.02, stop)
"""


def test_a_card_lost_midway_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml(monkeypatch, tmp_path, refuses={})
    ran = subprocess.run([sys.executable, "-c", MONITOR_LOSES_THE_CARD], capture_output=True, check=True, timeout=60)
    watch = resources.Watch()
    watch.read(ran.stdout, None)
    samples, unavailable = watch.between(0.0, 1e12)
    memory = [sample.gpu_memory_bytes for sample in samples]
    assert memory[:2] == [5, None] and set(memory[2:]) == {None}
    assert unavailable == {"gpu_memory_bytes": "NVML: GPU is lost"}


@pytest.mark.parametrize("answered", [(), ("nvmlInit",), ("nvmlInit", "nvmlDeviceGetCount")])
def test_a_study_on_the_cpu_asks_for_no_card(
    answered: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    FakeTorch(monkeypatch, 0)
    refuses = {name: "NVMLError_NoPermission" for name in used_functions() if name not in answered}
    install_nvml(monkeypatch, tmp_path, refuses=refuses)
    found = calibration.calibrate(WantedDevice("cpu"), "unread", None)  # type: ignore[arg-type]
    assert found.device == "cpu"
    seen = found.machine.gpus, found.machine.gpus_unknown
    assert seen == ((), "NVML: Insufficient Permissions") or len(seen[0]) == len(answered) == 2
