"""Walks through folders that a user named, which end: `/`, a home folder or two links to a parent hold too much."""

import os
from collections.abc import Iterator
from pathlib import Path

from bitladder.errors import UserError

MOST_ENTRIES = 100_000
"""files and folders that are looked at; lm-eval's own tasks are 16,000"""
_SYSTEM = tuple(map(Path, ("/proc", "/sys", "/dev")))
"""whose files are made while they are read"""
_MEMORY = Path("/dev/shm")
"""where people put files of their own"""


def walk(folder: Path, *, depth: int | None = None, links: bool = False) -> Iterator[tuple[str, list[str], list[str]]]:
    """As ``os.walk``. Raises UserError for a folder with too many entries, and for one of the system.

    ``depth``: levels below the folder, itself being 0. ``links``: go into folders that are links.
    """
    seen, start = 0, str(folder).rstrip(os.sep).count(os.sep)
    for directory, folders, files in os.walk(folder, followlinks=links):
        place = Path(directory).resolve()
        if any(place.is_relative_to(root) for root in _SYSTEM) and not place.is_relative_to(_MEMORY):
            raise UserError(f"{folder}: takes in {place}, of the system; name a folder that holds what is wanted")
        inside = [Path(directory, name) for name in folders] if links else ()
        if any(path.is_symlink() and path.resolve() in (place, *place.parents) for path in inside):
            raise UserError(f"{directory}: a link in it leads to a folder that it lies in; take the link away")
        seen += len(folders) + len(files)
        if seen > MOST_ENTRIES:
            raise UserError(
                f"{folder}: more than {MOST_ENTRIES:,} files and folders in it; name one that holds what is wanted and "
                "little else"
            )
        yield directory, folders, files
        if depth is not None and directory.rstrip(os.sep).count(os.sep) - start >= depth:
            folders.clear()
