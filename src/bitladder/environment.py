"""The machine and the libraries that a measurement ran with, and how busy it was. Imports no torch."""

import platform
from importlib import metadata
from pathlib import Path

import psutil

from bitladder.records import Gpu, Machine

LIBRARIES = (
    "bitladder",
    "torch",
    "transformers",
    "bitsandbytes",
    "accelerate",
    "safetensors",
    "tokenizers",
    "lm-eval",
    "datasets",
)


BUSY_SHARE = 0.25
"""of all processors: with more taken by others, times say little; of two, one busy is half"""
_READING_S = 0.5


def busy_share() -> float:
    """Share of all processors' time that is taken now, read while nothing of ours runs.

    Not the load average, which remembers for minutes what the study itself did.
    """
    return psutil.cpu_percent(_READING_S) / 100


def library_versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Installed versions by distribution name, Python's included; a package that isn't installed is left out."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def describe_machine() -> Machine:
    """This machine: processor, memory, GPUs as the driver names them, library versions."""
    return Machine(
        cpu_model=_cpu_model(),
        cpu_count=psutil.cpu_count(logical=True) or 1,
        total_memory_bytes=psutil.virtual_memory().total,
        platform=platform.platform(),
        gpus=_gpus(),
        versions=library_versions(),
    )


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> tuple[Gpu, ...]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    gpus = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        try:
            serial = pynvml.nvmlDeviceGetSerial(handle)
        except pynvml.NVMLError:
            serial = None
        gpus.append(
            Gpu(
                name=pynvml.nvmlDeviceGetName(handle),
                total_memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
                compute_capability=f"{major}.{minor}",
                driver=pynvml.nvmlSystemGetDriverVersion(),
                serial=serial,
            )
        )
    return tuple(gpus)
