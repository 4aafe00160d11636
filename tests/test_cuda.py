"""GPUs that the driver shows and torch can't use: one line, and no study on the CPU instead."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitladder.checkpoint.loading import require_device
from bitladder.errors import UserError
from bitladder.executors.executor import PRELOADED
from bitladder.executors.forkserver import ForkServer
from bitladder.machine import cards as cuda
from bitladder.machine import host
from bitladder.study.calibration import WantedDevice, find_device
from machines import make_gpu, make_machine

TOO_OLD = (
    "NVIDIA H100: the NVIDIA driver 535.104.05 (CUDA 12.2) is too old for torch 2.13.0, built for CUDA 13.0, which "
    "needs driver 580 or later; update the driver, install a torch built for CUDA 12, or give --device cpu to go on "
    "without the GPU"
)


class NvmlError(Exception):
    pass


def fake_nvml(version: int | None) -> Any:
    def tell() -> int:
        if version is None:
            raise NvmlError("Function Not Found")
        return version

    return SimpleNamespace(NVMLError=NvmlError, nvmlInit=lambda: None, nvmlSystemGetCudaDriverVersion_v2=tell)


@pytest.mark.parametrize(("version", "found"), [(12020, (12, 2)), (13000, (13, 0)), (11080, (11, 8)), (None, None)])
def test_cuda_version_of_the_driver(version: int | None, found: tuple[int, int] | None) -> None:
    assert cuda.driver_cuda_version(fake_nvml(version)) == found


def test_a_driver_too_old_says_what_to_do() -> None:
    assert cuda.refusal(make_gpu(), "2.13.0", "13.0", (12, 2)) == TOO_OLD


@pytest.mark.parametrize(
    ("torch_cuda", "driver_cuda", "expected"),
    [
        (None, (12, 2), "torch 2.13.0 is built without CUDA; install one that is built with it"),
        ("12.8", (12, 2), "can't use it through the NVIDIA driver 535.104.05; run `python -c"),
        ("13.0", None, "can't use it through the NVIDIA driver 535.104.05; run `python -c"),
        ("14.0", (13, 1), "is too old for torch 2.13.0, built for CUDA 14.0; update the driver"),
    ],
)
def test_other_causes(torch_cuda: str | None, driver_cuda: tuple[int, int] | None, expected: str) -> None:
    message = cuda.refusal(make_gpu(), "2.13.0", torch_cuda, driver_cuda)
    assert expected in message
    assert message.endswith("or give --device cpu to go on without the GPU")
    assert "\n" not in message


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch as it is beside a driver too old for it: it warns and has no CUDA."""
    import pynvml
    import torch

    def is_available() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found 12020).", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for name in ("nvmlInit", "nvmlSystemGetCudaDriverVersion_v2"):
        monkeypatch.setattr(pynvml, name, getattr(fake_nvml(12020), name))


@pytest.mark.usefixtures("old_driver")
@pytest.mark.parametrize("wanted", ["auto", "cuda", "cuda:0", "cuda:0,1"])
def test_a_study_is_refused_and_does_not_fall_back(wanted: str, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(UserError) as refused:
        find_device(WantedDevice(wanted), make_machine(2), "unread")  # type: ignore[arg-type]
    assert str(refused.value) == TOO_OLD
    assert not recwarn.list, "torch's own warning says the same in more lines"


@pytest.mark.usefixtures("old_driver")
def test_a_study_on_the_cpu_goes_on() -> None:
    assert find_device(WantedDevice("cpu"), make_machine(2), "unread") == "cpu"  # type: ignore[arg-type]


@pytest.mark.usefixtures("old_driver")
def test_our_backend_alone_does_not_fall_back_either(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitladder.accuracy.backend import arguments

    monkeypatch.setattr(arguments, "describe_gpus", lambda: make_machine(1).gpus)
    with pytest.raises(UserError, match="is too old for torch"):
        arguments.load_arguments({"pretrained": str(tiny_llama)}, {})
    assert str(arguments.load_arguments({"pretrained": str(tiny_llama), "device": "cpu"}, {})["model"].device) == "cpu"


@pytest.mark.usefixtures("old_driver")
def test_loading_is_refused_in_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitladder.checkpoint.loading.describe_gpus", lambda: make_machine(1).gpus)
    with pytest.raises(UserError) as refused:
        require_device("cuda:0")
    assert str(refused.value) == TOO_OLD
    require_device("cpu")


def test_a_machine_without_gpus_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "count_cards", lambda: 0)
    cuda.require_usable(())
    assert find_device(WantedDevice("auto"), make_machine(0), "unread") == "cpu"  # type: ignore[arg-type]


def test_looking_starts_no_torch() -> None:
    """Words about devices are cheap; torch is asked only where there is a GPU."""
    code = "import sys; from bitladder.machine import cards; cards.require_usable(()); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("visible", "names"), [(None, ["A", "B"]), ("1", ["B"]), ("1,0", ["B", "A"]), ("", []), ("GPU-b", ["B"])]
)
def test_a_machine_has_the_gpus_that_torch_sees(
    visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pynvml

    cards = [("A", "GPU-aa"), ("B", "GPU-bb")]
    fakes: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(cards),
        "nvmlDeviceGetHandleByIndex": lambda index: cards[index],
        "nvmlDeviceGetUUID": lambda card: card[1],
        "nvmlDeviceGetName": lambda card: card[0],
        "nvmlDeviceGetCudaComputeCapability": lambda card: (9, 0),
        "nvmlDeviceGetSerial": lambda card: "7",
        "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(total=80),
        "nvmlSystemGetDriverVersion": lambda: "580.65",
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(pynvml, name, fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in host.describe_gpus()] == names


ASKING = """
import torch
asked = []
def count():
    if torch.cuda._parse_visible_devices():  # else torch knows without asking
        asked.append(1)
    return 0
torch.cuda.device_count, torch.cuda.is_available = count, lambda: count() > 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("with_gpu", [False, True])
def test_no_import_of_the_server_asks_a_torch_built_for_cuda_for_cards(
    with_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI's, on a machine without a driver: asked once, CUDA's runtime makes every fork of the process unusable."""
    (tmp_path / "asking.py").write_text(ASKING)
    (tmp_path / "telling.py").write_text("import asking\ndef work(job, answers): print(asking.asked, file=answers)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("bitladder.executors.executor.PRELOADED", ("asking", *PRELOADED))
    with ForkServer("telling", tmp_path / "log", with_gpu=with_gpu) as server:
        answer, _ = server.ask("{}")
    assert answer == b"[]", (tmp_path / "log").read_text()
