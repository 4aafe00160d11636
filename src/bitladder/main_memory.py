"""Main memory that this process may use: the machine's, or a container's where that has less."""

from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
_V2 = ("memory.max", "memory.current", "memory.stat", "inactive_file")
_V1 = (
    "memory/memory.limit_in_bytes",
    "memory/memory.usage_in_bytes",
    "memory/memory.stat",
    "total_inactive_file",
)


def available_memory_bytes(cgroup: Path = CGROUP) -> int:
    """What can be had without swapping, and without the container being ended for it.

    File cache that the kernel gives back counts as free, in a container's share too (cgroup v2 and v1).
    """
    machine_bytes = int(psutil.virtual_memory().available)
    return min([machine_bytes, *(_free_bytes(cgroup, *names) for names in (_V2, _V1) if (cgroup / names[0]).is_file())])


def memory_bytes(cgroup: Path = CGROUP) -> int:
    """All of it, whatever is in use."""
    limits = [(cgroup / names[0]).read_text().strip() for names in (_V2, _V1) if (cgroup / names[0]).is_file()]
    return min([int(psutil.virtual_memory().total), *(int(limit) for limit in limits if limit != "max")])


def _free_bytes(cgroup: Path, limit: str, used: str, stat: str, cache: str) -> int:
    limit_text = (cgroup / limit).read_text().strip()
    if limit_text == "max":
        return 1 << 63
    statistics = dict(line.split() for line in (cgroup / stat).read_text().splitlines())
    used_bytes = int((cgroup / used).read_text()) - int(statistics.get(cache, 0))
    return max(int(limit_text) - used_bytes, 0)
