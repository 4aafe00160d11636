"""The computer: the processors and the memory that this process may use, and the libraries that it runs.

A container or a service may allow less than the machine has: control groups of Linux, version 2 and 1. A limit of a
group holds for all groups below it. Libraries do not look at a quota of time: they start a thread for each processor,
and of 64 threads that share the time of two, most wait.
"""

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import psutil

from bitladder.machine import cards as driver
from bitladder.machine.cards import describe_gpu, open_nvml, visible_gpus
from bitladder.records import Gpu, Machine

CGROUP = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def own_groups(controller: str, root: Path = CGROUP) -> Iterator[Path]:
    """Folders of the groups that this process is in, its own first: of version 2, and of version 1's controller.

    Paths that aren't there are left out: a container may see its own group as the root, and its path as the host's.
    """
    for line in (read(_OWN) or "0::/").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        names = (controllers, controller) if controllers else ("unified", "")
        top = next((root / name for name in names if (root / name).is_dir()), root)
        group = top / path.lstrip("/")
        yield from (one for one in (group, *group.parents) if one.is_relative_to(top) and one.is_dir())


def read(path: Path) -> str | None:
    """A file's text without the last newline; None where there is none to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


_THREADS = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
"""what torch and the BLAS libraries read when they are imported, and torch's compiler"""


def usable_processors(cgroup: Path = CGROUP) -> int:
    """How many logical processors may work at a time, 1 at least; of a quota of 2.5, 2."""
    return max(1, int(min(len(bound_processors()), _quota(cgroup))))


def bound_processors() -> frozenset[int]:
    """Numbers of the logical processors that this process may run on, as ``taskset`` sets them."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def heed_quota() -> None:
    """Let libraries that this process and its children import start no more threads than a quota lets run.

    What the environment says already holds.
    """
    count = usable_processors()
    if count < len(bound_processors()):
        for name in _THREADS:
            os.environ.setdefault(name, str(count))


def _quota(cgroup: Path) -> float:
    """Processors' worth of time, the least of all groups; infinite without a quota."""
    return min((_group_quota(group) for group in own_groups("cpu", cgroup)), default=float("inf"))


def _group_quota(group: Path) -> float:
    both = read(group / "cpu.max")  # version 2
    quota, period = both.split() if both else (read(group / "cpu.cfs_quota_us"), read(group / "cpu.cfs_period_us"))
    return float("inf") if quota in ("max", "-1", None) or not period else int(quota) / int(period)


_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_memory_bytes(cgroup: Path = CGROUP) -> int:
    """What can be had without swapping, and without the container being ended for it.

    File cache that the kernel gives back counts as free, in a container's share too (cgroup v2 and v1).
    """
    limits = ((limit, *figures) for limit, *figures in _limits(cgroup))
    free_bytes = (max(limit - used_bytes + cache_bytes, 0) for limit, used_bytes, cache_bytes in limits)
    return min([int(psutil.virtual_memory().available), *free_bytes])


def memory_bytes(cgroup: Path = CGROUP) -> int:
    """All of it, whatever is in use."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _, _ in _limits(cgroup))])


def _limits(cgroup: Path) -> Iterator[tuple[int, int, int]]:
    """(limit, in use, of it file cache) of every group that has a limit, in bytes."""
    for group in own_groups("memory", cgroup):
        for limit_name, used_name, cache_name in (_V2, _V1):
            limit, used, statistics = (read(group / name) for name in (limit_name, used_name, "memory.stat"))
            if limit is None or limit == "max":
                continue
            cache = dict(line.split() for line in (statistics or "").splitlines()).get(cache_name, "0")
            yield int(limit), int(used or 0), int(cache)


_M_MMAP_THRESHOLD = -3
_MAPPED_FROM_BYTES = 128 << 10
"""glibc's initial value; setting it keeps it from growing"""


def map_large_blocks() -> None:
    """Let every freed large block go back to the system at once, for the rest of the process.

    By default glibc takes larger and larger blocks from its heap, where the temporary tensors of a quantization and
    the small results that outlive them come to lie side by side: what is freed between them stays with the process,
    up to twice the memory needed.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)


def give_back_freed() -> None:
    """Return to the system what was freed until now, so that a later peak is what that later work needs."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """No cycle is looked for in the block, and only among what it made after it: that took a quarter to a third of the
    time of tasks with thousands of questions."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
            gc.collect(1)


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
