"""The machine and the libraries that a measurement ran with, and how busy it was. Imports no torch."""

import platform
from importlib import metadata
from pathlib import Path

import psutil

from bitladder import driver
from bitladder.cgroup import read
from bitladder.driver import describe_gpu, open_nvml, visible_gpus
from bitladder.processors import bound_processors, usable_processors
from bitladder.records import Gpu, Machine

# Those of a machine's identity: one more would make another machine of every one that was recorded before.
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
"""of our processors: with more taken by others, times say little; of two, one busy is half"""
_READING_S = 0.5


def busy_share() -> float:
    """Share of the time of the processors that are ours that is taken now, read while nothing of ours runs.

    Not the load average, which remembers for minutes what the study itself did.
    """
    shares = dict(enumerate(psutil.cpu_percent(_READING_S, percpu=True)))
    ours = [shares[number] for number in bound_processors() if number in shares] or list(shares.values())
    return sum(ours) / len(ours) / 100


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
    """This machine: processor, memory, the GPUs that a process sees, in torch's order, and library versions."""
    gpus = describe_gpus()
    return Machine(
        cpu_model=_cpu_model(),
        cpu_count=usable_processors(),
        total_memory_bytes=psutil.virtual_memory().total,
        platform=platform.platform(),
        gpus=gpus,
        gpus_unknown=None if gpus else driver.failure(),
        versions=library_versions(),
    )


def _cpu_model() -> str:
    lines = (read(Path("/proc/cpuinfo")) or "").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def describe_gpus() -> tuple[Gpu, ...]:
    """The GPUs that the driver shows to a process, none without a driver."""
    nvml, reason = open_nvml()
    return () if reason else tuple(describe_gpu(nvml, gpu) for gpu in visible_gpus(nvml))
