"""What a container or a system's service allows this process: control groups of Linux, version 2 and 1.

A limit holds for all groups below it, so that those of a process's own group and of all above count.
"""

from collections.abc import Iterator
from pathlib import Path

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
