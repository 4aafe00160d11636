"""Several result folders as one, and a folder's records as one small file and safely back."""

import gzip
import io
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bitladder.checkpoint.tensors import tensor_hashes
from bitladder.errors import BrokenFileError, UserError
from bitladder.files import new_directory, write_atomically
from bitladder.records import AccuracyOutcome, Divergence, MergeRecord, Prompts, Scenario, TaskDocuments, hash_json
from bitladder.results import Results, different_rungs, join
from bitladder.results.store import MERGE_FILE, MergedStore, Store, load_results
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


@dataclass(frozen=True)
class Part:
    """One unmerged folder, read whole."""

    results: Results
    documents: dict[str, TaskDocuments]
    prompts: dict[str, Prompts]

    @property
    def name(self) -> str:
        """Hash of all that is kept of it; the same wherever the folder lies."""
        results = self.results
        records = sorted(hash_json(record) for record in results.measured)
        rungs = {name: hash_json(rung) for name, rung in results.rungs.items()}
        return hash_json([hash_json(results.study), rungs, records, sorted(self.documents), sorted(self.prompts)])[:16]


def merge_results(inputs: Sequence[Path], out: Path) -> Results:
    """Join result folders, merged folders and packed archives into ``out``, and return what it holds.

    Records alone are copied, no weights. An ``out`` that holds this very merge is left as it is. Raises UserError for
    an input without a study, for studies that can't be joined, and for an ``out`` that holds something else.
    """
    out = Path(out)
    parts: dict[str, Part] = {}
    for path in inputs:
        with _folder(Path(path)) as folder:
            for part in _read_parts(folder, Path(path)):
                parts.setdefault(part.name, part)
    if not parts:
        raise UserError("nothing to merge; expected result folders of `bitladder study`")
    every = [part.results for part in parts.values()]
    for name, one, other in different_rungs(every):
        raise UserError(_describe_difference(name, one, other))
    join(out, every)
    record = MergeRecord(parts=tuple(parts))
    if MergedStore(out).read() != record:
        _require_free(out)
        _write(out, record, parts)
    return load_results(out)


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """The folder itself, or an archive's content for as long as it is read. Errors name what the user gave."""
    if not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="bitladder-merge-") as temporary:
        unpack(path, Path(temporary))
        try:
            yield Path(temporary)
        except UserError as error:
            raise type(error)(str(error).replace(temporary, str(path))) from None


def _read_parts(folder: Path, given: Path) -> list[Part]:
    results = load_results(folder)
    return [
        _read_part(part, replace(part, directory=given / part.directory.relative_to(folder)))
        for part in results.parts or (results,)
    ]


def _read_part(part: Results, shown: Results) -> Part:
    """Raises UserError where the questions of an outcome are not in the folder."""
    store = Store(part.directory)
    documents: dict[str, TaskDocuments] = {}
    for record in part.measured:
        if isinstance(record.outcome, AccuracyOutcome) and record.outcome.documents_hash not in documents:
            found = store.read_documents(record.outcome.documents_hash)
            if found is None:
                raise UserError(
                    f"{part.directory}: no documents/{record.outcome.documents_hash}.json, which "
                    f"{record.measurement_id} answers; expected a whole result folder"
                )
            documents[record.outcome.documents_hash] = found
    hashes = {item.prompts_hash for item in part.study.items if isinstance(item, Scenario)}
    hashes |= {item.texts_hash for item in part.study.items if isinstance(item, Divergence)}
    prompts = {name: cut for name in sorted(hashes) if (cut := store.read_prompts(name)) is not None}
    return Part(shown, documents, prompts)


def _require_free(out: Path) -> None:
    if MergedStore(out).read() is not None or Store(out).has_study():
        raise UserError(f"{out}: holds another study; name a new folder with --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there and is no merged study; name a new folder with --out")


def _write(out: Path, record: MergeRecord, parts: dict[str, Part]) -> None:
    """All or nothing: a merge that was interrupted leaves no folder."""
    with new_directory(out) as temporary:
        merged = MergedStore(temporary)
        for name, part in parts.items():
            store = merged.part(name)
            store.write_study(part.results.study)
            for rung in part.results.rungs.values():
                store.write_rung(rung)
            for measurement in part.results.measured:
                store.write_measurement(measurement)
            for documents in part.documents.values():
                store.write_documents(documents)
            for prompts in part.prompts.values():
                store.write_prompts(prompts)
        merged.write(record)


def _describe_difference(name: str, one: Results, other: Results) -> str:
    """How far two checkpoints of one name are apart: by tensor where both are there, else by what was recorded."""
    hashes = " and ".join(f"{(part.rungs[name].content_hash or '')[:12]} in {part.directory}" for part in (one, other))
    count = _count_differences(name, one, other)
    return f"{name} is not one checkpoint: {hashes}; {count}; measure both from one checkpoint"


def _count_differences(name: str, one: Results, other: Results) -> str:
    directories = [Store(part.directory).checkpoint_directory(name) for part in (one, other)]
    if all(directory.is_dir() for directory in directories):
        ours, theirs = (tensor_hashes(directory) for directory in directories)
        names = ours.keys() | theirs.keys()
        different = sum(ours.get(tensor) != theirs.get(tensor) for tensor in names)
        if not different:
            return f"none of {len(names):,} tensors differ, the quantization settings do"
        return f"{different:,} of {len(names):,} tensors differ"
    manifests = [part.rungs[name].manifest for part in (one, other)]
    files = [manifest.files if manifest else {} for manifest in manifests]
    weights = {file for recorded in files for file in recorded if file.endswith(".safetensors")}
    if not weights:
        return "their tensors can't be counted without both checkpoints"
    different = sum(files[0].get(file) != files[1].get(file) for file in weights)
    return f"{different} of {len(weights)} weight files differ (counting tensors needs both checkpoints)"
