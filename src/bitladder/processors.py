"""Processors that this process may use: those it is bound to, and no more than a container's quota of time.

Libraries start a thread for each processor that a process is bound to, and don't look at the quota: of 64 threads that
share the time of two, most wait until the next period.
"""

import os
from pathlib import Path

from bitladder.cgroup import CGROUP, own_groups, read

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
