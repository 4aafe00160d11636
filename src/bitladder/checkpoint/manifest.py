"""``bitladder.json``: the record that stands beside a checkpoint, and the hashes it is held to."""

import functools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bitladder import environment
from bitladder.files import sha256_file
from bitladder.records import Manifest, ManifestFile, Scheme, parse_record
from bitladder.rungs import method_of

MANIFEST_NAME = "bitladder.json"

# bitsandbytes in plain ones too: their recipes were hashed with it.
_LIBRARIES = ("accelerate", "bitsandbytes", "safetensors", "tokenizers", "torch", "transformers")


def library_versions(scheme: Scheme) -> dict[str, str]:
    """Installed versions of Python and the libraries that a checkpoint's bytes depend on; none of them is imported."""
    return environment.library_versions(tuple(dict.fromkeys((*_LIBRARIES, *method_of(scheme).packages))))


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of a checkpoint, None where it has none. Raises BrokenFileError where it can't be read."""
    path = directory / MANIFEST_NAME
    mend = "restore it from a copy, or make the checkpoint anew"
    return parse_record(Manifest, path.read_bytes(), path, mend) if path.is_file() else None


def verify_files(directory: Path, manifest: Manifest, names: Iterable[str] | None = None) -> list[str]:
    """What differs from the manifest, one line a file: missing, another size, another SHA-256. Empty is good.

    ``names``: of these files alone.
    """
    differences = []
    same_size = []
    for name in manifest.files if names is None else names:
        recorded = manifest.files[name]
        path = directory / name
        if not path.is_file():
            differences.append(f"{name}: missing")
        elif path.stat().st_size != recorded.size_bytes:
            differences.append(f"{name}: {path.stat().st_size:,} bytes, {recorded.size_bytes:,} recorded")
        else:
            same_size.append(name)
    for name, found in hash_files(directory, same_size).items():
        if found.sha256 != manifest.files[name].sha256:
            differences.append(f"{name}: SHA-256 {found.sha256[:12]}…, {manifest.files[name].sha256[:12]}… recorded")
    return differences


def suspect_files(directory: Path, manifest: Manifest, since_ns: int) -> list[str]:
    """Names of what may differ from the manifest, found without reading: missing files, and weights of another size or
    written at ``since_ns`` or later. What people edit beside the weights is their own."""
    suspects = []
    for name, recorded in manifest.files.items():
        path = directory / name
        if not path.is_file():
            suspects.append(name)
        elif name.endswith(".safetensors"):
            status = path.stat()
            if status.st_size != recorded.size_bytes or status.st_mtime_ns >= since_ns:
                suspects.append(name)
    return suspects


def hash_files(directory: Path, names: Iterable[str] | None = None) -> dict[str, ManifestFile]:
    """Size and SHA-256 of the named files of a directory, or of all below it but a manifest.

    Hashed side by side; a file that hasn't changed since this process last hashed it is not read again.
    """
    if names is None:
        found = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
        names = [name for name in found if name != MANIFEST_NAME]
    names = sorted(names)
    with ThreadPoolExecutor() as pool:
        files = pool.map(_hash_file, [directory / name for name in names])
        return dict(zip(names, files, strict=True))


def _hash_file(path: Path) -> ManifestFile:
    status = path.stat()
    return _hash_unchanged(path.resolve(), status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _hash_unchanged(path: Path, inode: int, size_bytes: int, mtime_ns: int) -> ManifestFile:
    return ManifestFile(sha256=sha256_file(path), size_bytes=size_bytes)
