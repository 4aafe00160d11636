"""Main memory that this process may use: the machine's, or a container's where that has less."""

from collections.abc import Iterator
from pathlib import Path

import psutil

from bitladder.cgroup import CGROUP, own_groups, read

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
