"""A result folder's records as one small file, and back: no weights, no logs, no report.

Packing the same records gives the same bytes. Unpacking takes what `pack` writes and nothing else: regular files of
the names that a result folder has, so an archive can neither leave its folder nor link out of it.
"""

import gzip
import io
import re
import shutil
import tarfile
import zlib
from pathlib import Path

from bitladder.errors import BrokenFileError, UserError
from bitladder.files import write_atomically
from bitladder.store import MERGE_FILE, load_results
from bitladder.units import GIB, format_bytes

SUFFIX = ".tar.gz"
LARGEST_BYTES = 8 * GIB
"""What an archive may unpack to: the records of a hundred full studies."""

_ROOT = "records-of-bitladder"
_NAME = re.compile(
    rf"(parts/[0-9a-f]{{16}}/)?(study\.json|(rungs|records|documents|prompts)/[A-Za-z0-9][A-Za-z0-9._-]*\.json)|{re.escape(MERGE_FILE)}"
)


def pack(directory: Path, out: Path | None = None) -> Path:
    """Write ``directory``'s records to ``out`` (default: ``directory``.tar.gz beside it) and return its path.

    Raises UserError where ``directory`` holds no study, or where ``out`` is there and is anything else.
    """
    directory = Path(directory)
    load_results(directory)
    out = directory.resolve().with_name(directory.resolve().name + SUFFIX) if out is None else Path(out)
    content = _archive(directory)
    if out.exists() and (not out.is_file() or out.read_bytes() != content):
        raise UserError(f"{out}: is there already, with other content; remove it, or name another file with --out")
    write_atomically(out, content)
    return out


def _archive(directory: Path) -> bytes:
    """Sorted names, no times, no owners: the bytes depend on the records alone."""
    paths = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*.json") if path.is_file()}
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(paths):
            if _NAME.fullmatch(name):
                data = paths[name].read_bytes()
                member = tarfile.TarInfo(f"{_ROOT}/{name}")
                member.size, member.mode = len(data), 0o644
                archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def unpack(path: Path, directory: Path) -> None:
    """Unpack what `pack` wrote into ``directory``.

    Raises UserError for an archive that holds anything else or no study, BrokenFileError for one that can't be read.
    """
    left = LARGEST_BYTES
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = _safe_name(path, member)
                left -= member.size
                if left < 0:
                    raise UserError(f"{path}: unpacks to more than {format_bytes(LARGEST_BYTES)}; not a result folder")
                if name in seen:
                    raise UserError(f"{path}: holds {member.name!r} twice; pack the folder again")
                seen.add(name)
                file = archive.extractfile(member)
                assert file is not None  # a regular file has content
                target = directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as copy:
                    shutil.copyfileobj(file, copy)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BrokenFileError(f"{path}: not a whole .tar.gz ({error}); pack the folder again") from None
    if not {"study.json", MERGE_FILE} & seen:
        raise UserError(f"{path}: no study in it; expected an archive that `bitladder pack` wrote")


def _safe_name(path: Path, member: tarfile.TarInfo) -> str:
    """The member's place in a result folder. Raises UserError for a link, a device, or a name that has no place."""
    root, _, name = member.name.partition("/")
    if not member.isreg() or root != _ROOT or not _NAME.fullmatch(name):
        kind = "file" if member.isreg() else "folder" if member.isdir() else "link or device"
        raise UserError(
            f"{path}: holds the {kind} {member.name!r}, which no result folder has; "
            "expected an archive that `bitladder pack` wrote"
        )
    return name
