"""Files: written whole or not at all, read as what they must be, and where the cache lies."""

import errno
import glob
import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bitladder.errors import BrokenFileError, UserError, describe_machine_error
from bitladder.units import format_bytes

log = logging.getLogger(__name__)

ABANDONED_S = 3600
"""after which nobody writes any more to a temporary file that hasn't changed"""
_UNFINISHED = (".*.*.tmp", ".tmp??????")
"""ours, and those of SafeTensors, which writes to a file of its own and renames that"""
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write, flush to disk, rename: a reader or a crash sees the old file or the whole new one."""
    with new_file(path) as temporary, naming(path):
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the machine name ``path`` where they name no file, as those of a write or a lock don't.

    SafeTensors and tokenizers, which are written in Rust, raise errors of their own, whose text has the number.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
    except Exception as error:
        found = _RUST_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def remove_unfinished(directory: Path, name: str | None = None, idle_s: float = 0) -> None:
    """Remove what a killed process was writing to ``directory``, as ``name`` or any.

    Only for whoever alone may write it; others leave what changed within ``idle_s``.
    """
    if not directory.is_dir():
        return
    latest_s = time.time() - idle_s
    patterns = _UNFINISHED if name is None else (f".{glob.escape(name)}.*.tmp",)
    for leftover in chain.from_iterable(map(directory.glob, patterns)):
        with suppress(FileNotFoundError):  # another process has ended or removed it
            if not idle_s or leftover.stat().st_mtime < latest_s:
                remove_tree(leftover) if leftover.is_dir() else leftover.unlink()


def remove_tree(path: Path) -> None:
    """`shutil.rmtree`, whose errors name a file without its folder."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        error.filename = str(path)
        raise


@contextmanager
def entry_lock(entry: Path) -> Iterator[None]:
    """One process at a time makes or links a cache entry; what a killed one left is removed."""
    make_folder(entry.parent)
    path = entry.with_name(f"{entry.name}.lock")
    with naming(path):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("%s: another process is making it; waiting for it", entry)
            lock.acquire()
    try:
        remove_unfinished(entry.parent, entry.name)
        yield
    finally:
        with naming(path):
            lock.release()


def require_own_folder(folder: Path, kind: str, marks: Collection[str], begun: Collection[str] = ()) -> None:
    """Raise UserError for a file, and for a folder that holds something else than a ``kind`` such as a study.

    ``marks``: files that only a ``kind`` has. ``begun``: patterns of what one leaves that ended before it had any of
    them.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; expected a new folder, or one of an earlier {kind}")
    if not folder.is_dir() or any((folder / mark).is_file() for mark in marks):
        return
    others = sorted(path.name for path in folder.iterdir() if not any(fnmatch(path.name, one) for one in begun))
    if others:
        raise UserError(f"{folder}: holds {others[0]} and no {kind}; name a new folder, or one of an earlier {kind}")


def require_place(folder: Path) -> None:
    """Raise UserError for a file, and where no folder can be made or written to, found by making one beside it."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, expected a folder to write to; give another --out")
    # named as what is unfinished, which is removed later where it can't be now
    with _wanting(folder):
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=existing_part(folder)).cleanup()


def make_folder(path: Path) -> None:
    """Make it and its parents, unless they are there. Raises UserError where none can be."""
    with _wanting(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def _wanting(path: Path) -> Iterator[None]:
    """That a file isn't there is a bug, unless it was to be made: in /proc there is no place for one."""
    try:
        yield
    except OSError as error:
        elsewhere = f"; {CACHE_ELSEWHERE}" if _is_cached(path) else ""
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{path}: can't be made; expected a place to read and write in{elsewhere}") from None
        if elsewhere and (told := describe_machine_error(error)):
            raise UserError(f"{told}{elsewhere}") from None
        raise


def _is_cached(path: Path) -> bool:
    try:
        return path.absolute().is_relative_to(cache_directory())
    except UserError:  # there is no cache
        return False


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside ``path`` that is renamed to it when the block ends well, and removed when not."""
    with _wanting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent, path.name, ABANDONED_S)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(path)
        _flush_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """The place of a temporary file that, flushed to disk, becomes ``path`` when the block ends well, and is removed
    when not."""
    with _wanting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent, path.name, ABANDONED_S)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with naming(path):
            os.close(handle)
        yield temporary
        with naming(path):
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            _flush_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # the first error is told, and whoever writes there next removes it
            temporary.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    """So that a name that was given in it stands after a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # it may be written to and not be listed
        return
    try:
        with naming(folder):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that have no such thing
            raise
    finally:
        os.close(descriptor)


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


_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
"""byte-order marks of UTF-8 and UTF-16, which no library of Hugging Face's reads either"""

_LINE_IN_TEXT = "control character (\\u0000-\\u001F) found while parsing a string"


def parse_json(text: str | bytes, where: object, mend: str) -> Any:
    """The value of a JSON text in UTF-8. Raises BrokenFileError for what is none.

    ``where``: the file, or the line of one, that it was read from. ``mend``: what to do about it.
    """
    from pydantic_core import from_json

    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if data.startswith(_MARKS):
        raise BrokenFileError(f"{where}: begins with a byte-order mark; save it as UTF-8 without one")
    if not data.strip():
        raise BrokenFileError(f"{where}: empty, expected JSON; {mend}")
    try:
        return from_json(data)
    except ValueError as error:
        reason = str(error).replace("recursion limit exceeded", "nested too deep")
        reason = reason.replace(_LINE_IN_TEXT, "a text that no quote ends in its line, or a control character in one,")
        raise BrokenFileError(f"{where}: not JSON ({reason}); {mend}") from None


def parse_json_object(text: str | bytes, where: object, mend: str) -> dict[str, Any]:
    """As `parse_json`; anything but an object is refused, too."""
    value = parse_json(text, where, mend)
    if not isinstance(value, dict):
        raise BrokenFileError(f"{where}: {_kind(value)}, expected a JSON object; {mend}")
    return value


def read_json_object(path: Path, mend: str) -> dict[str, Any]:
    """The object that a file holds. Raises BrokenFileError where it holds none."""
    return parse_json_object(path.read_bytes(), path, mend)


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def cache_directory() -> Path:
    """``$BITLADDER_CACHE``, else ``$XDG_CACHE_HOME/bitladder``, else ``~/.cache/bitladder``; absolute.

    Raises UserError where that is in a home that there isn't.
    """
    explicit = os.environ.get("BITLADDER_CACHE")
    if explicit:
        return expand_user(explicit).absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared:
        return expand_user(shared).absolute() / "bitladder"
    try:
        return Path.home() / ".cache" / "bitladder"
    except RuntimeError:
        raise UserError(
            f"user {os.getuid()} has no home for the cache: HOME isn't set and the system knows none; set "
            "BITLADDER_CACHE to a folder to write in"
        ) from None


def expand_user(path: str | Path) -> Path:
    """The path with ``~`` or ``~NAME`` in full. Raises UserError for a home that there isn't."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such home; give the path from / on, or one from here as ./~") from None


def lend_home_to_libraries() -> None:
    """Without a home let the Hub's libraries keep their files in our cache: they would in a folder called ``~``."""
    try:
        Path.home()
    except RuntimeError:
        if os.environ.get("BITLADDER_CACHE") and not os.environ.get("XDG_CACHE_HOME"):
            os.environ.setdefault("HF_HOME", str(cache_directory() / "huggingface"))
