"""What NVIDIA's driver says of its cards, through NVML. What it refuses is None with its reason: no question raises.

Every part of it is refused somewhere: memory of unified memory, utilisation and power of a slice (MIG), a process's
memory in a container, ids of a virtual GPU, and everything where a card is lost, or where the library and the kernel's
module are of two versions.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from bitladder.devices import is_slice, visible_cards, visible_slices
from bitladder.records import Gpu

DIVIDED = "the card is divided into slices (MIG), and the driver's figures are of all; name one in CUDA_VISIBLE_DEVICES"

_ABSENT = frozenset(("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded", "NVMLError_FunctionNotFound"))
"""NVML's errors where there is no driver; CUDA's packages bring a library of stubs, without functions"""

_DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvhost-ctrl-gpu", "/dev/nvgpu", "/dev/dxg", "/dev/kfd")
"""of the driver, and of Tegra's, of Windows's under Linux and of AMD's, whose cards NVML may not know"""


class Answer(NamedTuple):
    """What the driver said, or why it did not."""

    value: Any
    reason: str | None = None
    absent: bool = False
    """whether that is for want of a driver"""


def ask(nvml: Any, question: str, *arguments: Any) -> Answer:
    """The answer of one of NVML's functions."""
    function = getattr(nvml, question, None)
    if function is None:  # an old pynvml, or another package of that name
        return Answer(None, f"NVML: this pynvml has no {question}")
    try:
        return Answer(function(*arguments))
    except nvml.NVMLError as error:
        return Answer(None, f"NVML: {error}", type(error).__name__ in _ABSENT)
    except (OSError, ValueError) as error:  # a library that can't be loaded; text that is no UTF-8
        return Answer(None, f"NVML: {question}: {error}", isinstance(error, OSError))


def open_nvml() -> tuple[Any, str | None]:
    """NVML, to be asked, and why it can't be: then each of its answers has a reason too."""
    import pynvml

    return pynvml, ask(pynvml, "nvmlInit").reason


def failure() -> str | None:
    """Why a driver that is there doesn't tell its cards; None where it does, and where there is no driver."""
    import pynvml

    answer = ask(pynvml, "nvmlInit")
    if answer.reason is None:
        answer = ask(pynvml, "nvmlDeviceGetCount")
    return None if answer.absent else answer.reason


def could_have_cards() -> bool:
    """Whether a process may come to use a GPU: as the driver says, or as its device files do where it doesn't."""
    nvml, _ = open_nvml()
    if ask(nvml, "nvmlDeviceGetCount").reason is None:
        return bool(visible_gpus(nvml))
    return any(Path(file).exists() for file in _DEVICE_FILES)


def visible_gpus(nvml: Any) -> tuple[str, ...]:
    """NVML's names of the GPUs that this process sees, in torch's order: numbers of cards, or names of slices.

    Names as ``CUDA_VISIBLE_DEVICES`` has them where the driver doesn't tell what they would be held against.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and is_slice(visible):
        return visible_slices(visible)
    count = ask(nvml, "nvmlDeviceGetCount").value or 0
    uuids = [ask_of(nvml, str(index), "nvmlDeviceGetUUID").value for index in range(count)]
    names = [name.strip() for name in (visible or "").split(",")]
    if visible is not None and (not count or (None in uuids and not all(map(str.isdecimal, names)))):
        return tuple(name for name in names if name.isdecimal() or name.startswith("GPU-"))
    return tuple(map(str, visible_cards([uuid or "" for uuid in uuids], visible)))


def find_handle(nvml: Any, gpu: str) -> Answer:
    """NVML's handle of a card, by its number, or of a card or slice, by its UUID."""
    if gpu.isdecimal():
        return ask(nvml, "nvmlDeviceGetHandleByIndex", int(gpu))
    return ask(nvml, "nvmlDeviceGetHandleByUUID", gpu)


def ask_of(nvml: Any, gpu: str, question: str) -> Answer:
    """The answer of a function that takes a handle alone."""
    handle = find_handle(nvml, gpu)
    return ask(nvml, question, handle.value) if handle.reason is None else handle


def is_divided(nvml: Any, handle: Any) -> bool:
    """Whether this is a whole card that is divided, of which a process has one slice. Of a slice the driver refuses."""
    mode = ask(nvml, "nvmlDeviceGetMigMode", handle).value
    return bool(mode and mode[0])


def describe_gpu(nvml: Any, gpu: str) -> Gpu:
    """What the driver tells of one GPU."""
    handle = find_handle(nvml, gpu)
    divided = handle.reason is None and is_divided(nvml, handle.value)

    def tell(question: str) -> Answer:
        return ask(nvml, question, handle.value) if handle.reason is None else handle

    memory, capability = tell("nvmlDeviceGetMemoryInfo"), tell("nvmlDeviceGetCudaComputeCapability")
    if memory.reason is None:
        memory = Answer(memory.value.total) if memory.value.total else Answer(None, "NVML: 0 bytes")
    if capability.reason is None:
        capability = Answer("{}.{}".format(*capability.value))
    answers = {
        "name": Answer(None, DIVIDED) if divided else tell("nvmlDeviceGetName"),
        "total_memory_bytes": Answer(None, DIVIDED) if divided else memory,
        "compute_capability": capability,
        "driver": ask(nvml, "nvmlSystemGetDriverVersion"),
        "serial": tell("nvmlDeviceGetSerial"),
    }
    unknown = {field: answer.reason for field, answer in answers.items() if answer.reason is not None}
    return Gpu(**{field: answer.value for field, answer in answers.items()}, unknown=unknown)
