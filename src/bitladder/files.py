"""Files: atomic writes, hashes, room."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from bitladder.errors import UserError
from bitladder.units import format_bytes


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write, flush to disk, rename: a reader or a crash sees the old file or the whole new one."""
    with new_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def remove_unfinished(directory: Path, name: str = "*") -> None:
    """Remove what a killed process was writing to ``directory`` as ``name``. Only for whoever alone may write it."""
    for leftover in directory.glob(f".{name}.*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def require_own_folder(folder: Path, kind: str, marks: Collection[str], begun: Collection[str] = ()) -> None:
    """Raise UserError for a file, and for a folder that holds something else than a ``kind`` such as a study.

    ``marks``: files that only a ``kind`` has. ``begun``: names that one leaves which ended before it had any of them.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; expected a new folder, or one of an earlier {kind}")
    if not folder.is_dir() or any((folder / mark).is_file() for mark in marks):
        return
    others = sorted(path.name for path in folder.iterdir() if path.name not in begun)
    if others:
        raise UserError(f"{folder}: holds {others[0]} and no {kind}; name a new folder, or one of an earlier {kind}")


def make_folder(path: Path) -> None:
    """Make it and its parents, unless they are there. Raises UserError where none can be."""
    with _wanting(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def _wanting(path: Path) -> Iterator[None]:
    """That a file isn't there is a bug, unless it was to be made: in /proc there is no place for one."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: can't be made; expected a place to read and write in") from None


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside ``path`` that is renamed to it when the block ends well, and removed when not."""
    with _wanting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """The place of a temporary file that, flushed to disk, becomes ``path`` when the block ends well, and is removed
    when not."""
    with _wanting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link, or copy where the file systems differ."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)


def existing_part(path: Path) -> Path:
    """The path, or the nearest of its parents that is there."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return existing


CACHE_ELSEWHERE = "put the cache elsewhere with BITLADDER_CACHE"


def require_disk_space(directory: Path, needed_bytes: int, instead: str = CACHE_ELSEWHERE, what: str = "") -> None:
    """Raise UserError when the file system of ``directory`` has fewer free bytes than needed.

    ``instead``: what helps beside freeing some. ``what``: for what they are needed.
    """
    existing = existing_part(directory)
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise UserError(
            f"{existing}: {format_bytes(free)} free, {format_bytes(needed_bytes)} needed{what}; free some space, or "
            f"{instead}"
        )
