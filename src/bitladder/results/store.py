"""A study's folder. Measuring writes here and reporting reads here; they meet nowhere else.

study.json              settings, source, calibration, plan
rungs/RUNG.json         manifest and audit of each rung's checkpoint
records/ID.json         one measurement each
documents/HASH.json     the questions, once a task
journals/ID.jsonl       batches of a measurement that isn't finished
prompts/HASH.json       the token ids that performance or divergence was measured on
references/HASH.safetensors
                        what a divergence is from: the baseline's hidden states and head
checkpoints/RUNG/       the weights; nothing here needs them again

A merged folder has ``merge.json`` instead, and all but the weights of each joined folder under ``parts/HASH/``.
"""

import re
from collections.abc import Collection
from itertools import chain
from pathlib import Path

from bitladder.errors import BrokenFileError, UserError
from bitladder.files import naming, remove_unfinished, write_atomically
from bitladder.records import (
    AccuracyOutcome,
    Divergence,
    JournalEntry,
    MeasurementRecord,
    MergeRecord,
    Prompts,
    Record,
    RungRecord,
    StudyRecord,
    TaskDocuments,
    hash_json,
    measurement_id,
    parse_record,
)
from bitladder.results import Results as Results
from bitladder.results import is_planned, join, same_contents
from bitladder.results.stages import measured_items, read_as_one

MERGE_FILE = "merge.json"
_MEND_STUDY = "restore it from a copy or an archive of `bitladder pack`, or run the study with a new --out"
_MEND_MERGE = "merge the studies again, into a new folder"
_MEND = "restore it from a copy, or delete it and run the same study again"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Store:
    """Atomic reads and writes of one study's records. One process writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def remove_unfinished(self) -> None:
        """Remove what a killed study was writing."""
        for folder in (self.directory, *(path for path in self.directory.iterdir() if path.is_dir())):
            remove_unfinished(folder)

    def write_study(self, study: StudyRecord) -> None:
        self._write(self.directory / "study.json", study)

    def read_study(self) -> StudyRecord:
        """Raises UserError where there is no study, BrokenFileError where it can't be read."""
        path = self.directory / "study.json"
        if not path.is_file():
            expected = "expected the --out folder of `bitladder study`"
            if self.directory.is_file():
                merge = f"`bitladder merge {self.directory} --out DIR`"
                raise UserError(f"{self.directory}: a file; {expected}, or of {merge} where it is an archive")
            found = "no study.json" if self.directory.is_dir() else "no such folder or archive"
            raise UserError(f"{self.directory}: {found}; {expected}")
        return parse_record(StudyRecord, path.read_bytes(), path, _MEND_STUDY)

    def has_study(self) -> bool:
        return (self.directory / "study.json").is_file()

    def write_rung(self, record: RungRecord) -> None:
        self._write(self._path("rungs", record.rung), record)

    def read_rung(self, rung: str) -> RungRecord | None:
        path = self._path("rungs", rung)
        return parse_record(RungRecord, path.read_bytes(), path, _MEND) if path.is_file() else None

    def rung_written_ns(self, rung: str) -> int:
        """When the record of an audited checkpoint was written."""
        return self._path("rungs", rung).stat().st_mtime_ns

    def write_measurement(self, record: MeasurementRecord) -> None:
        self._write(self._path("records", record.measurement_id), record)

    def remove_measurement(self, identity: str) -> None:
        self._path("records", identity).unlink(missing_ok=True)

    def add_to_journal(self, identity: str, entry: JournalEntry) -> None:
        """A line at the end of a measurement's journal; one that is cut off by a crash is no entry."""
        path = self.journals / f"{identity}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with naming(path), path.open("ab") as file:
            # On a line of its own, whatever a killed study left.
            file.write(b"\n" + entry.model_dump_json().encode() + b"\n")

    def remove_journal(self, identity: str) -> None:
        (self.journals / f"{identity}.jsonl").unlink(missing_ok=True)

    def remove_journals(self, *, but: Collection[str]) -> None:
        """All but those of these measurements."""
        for path in self.journals.glob("*.jsonl"):
            if path.stem not in but:
                path.unlink()

    @property
    def journals(self) -> Path:
        return self.directory / "journals"

    def read_measurement(self, identity: str) -> MeasurementRecord | None:
        path = self._path("records", identity)
        return parse_record(MeasurementRecord, path.read_bytes(), path, _MEND) if path.is_file() else None

    def has_other_answers(self, rung: str) -> bool:
        """Whether questions were answered that the present plan does not ask."""
        planned = set(chain.from_iterable(map(measured_items, self.read_study().items))) if self.has_study() else set()
        found = (self.read_measurement(path.stem) for path in (self.directory / "records").glob("*.json"))
        others = (record for record in found if record and record.rung == rung and record.item not in planned)
        return any(isinstance(record.outcome, AccuracyOutcome) for record in others)

    def write_documents(self, documents: TaskDocuments) -> None:
        path = self._path("documents", documents.documents_hash)
        if not path.is_file():
            self._write(path, documents)

    def read_documents(self, documents_hash: str) -> TaskDocuments | None:
        path = self._path("documents", documents_hash)
        return parse_record(TaskDocuments, path.read_bytes(), path, _MEND) if path.is_file() else None

    def write_prompts(self, prompts: Prompts) -> None:
        path = self._path("prompts", prompts.prompts_hash)
        if not path.is_file():
            self._write(path, prompts)

    def read_prompts(self, prompts_hash: str) -> Prompts | None:
        path = self._path("prompts", prompts_hash)
        return parse_record(Prompts, path.read_bytes(), path, _MEND) if path.is_file() else None

    def has_prompts(self, prompts_hash: str) -> bool:
        return self._path("prompts", prompts_hash).is_file()

    def reference_file(self, item: Divergence) -> Path:
        return self.directory / "references" / f"{hash_json(item)[:32]}.safetensors"

    def checkpoint_directory(self, rung: str) -> Path:
        return self.directory / "checkpoints" / rung

    def load(self) -> Results:
        """All records of the present plan, each as one rung's (`same_contents`). A record of another rung, plan or
        model (`is_planned`) stays on disk and is left out."""
        study = self.read_study()
        found = ((rung, self.read_rung(rung)) for rung in study.rungs)
        rungs = {rung: record for rung, record in found if record is not None and is_planned(study, record)}
        same = same_contents(study, rungs)
        records: list[MeasurementRecord] = []
        for rung, rung_record in rungs.items():
            if rung_record.content_hash is None or rung in same:
                continue
            for item in chain.from_iterable(map(measured_items, study.items)):
                record = self.read_measurement(measurement_id(rung_record.content_hash, item))
                if record is not None:
                    records.append(record.model_copy(update={"rung": rung}))
        whole = tuple(read_as_one(study.items, records))
        return Results(self.directory, study, rungs, whole, measured=tuple(records))

    def _path(self, folder: str, name: str) -> Path:
        """Names come from records, which may come from other people: none leads out of the study's folder."""
        if not _NAME.fullmatch(name):
            raise BrokenFileError(f"{self.directory}: {name!r} is no name in {folder}; expected letters, digits, . _ -")
        return self.directory / folder / f"{name}.json"

    def _write(self, path: Path, record: Record) -> None:
        write_atomically(path, record.model_dump_json(indent=None) + "\n")


class MergedStore:
    """A folder of joined studies: each stays as it was, in a `Store` of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def part(self, name: str) -> Store:
        return Store(self.directory / "parts" / name)

    def write(self, record: MergeRecord) -> None:
        write_atomically(self.directory / MERGE_FILE, record.model_dump_json(indent=None) + "\n")

    def read(self) -> MergeRecord | None:
        """None where nothing was merged. Raises BrokenFileError where it can't be read."""
        path = self.directory / MERGE_FILE
        return parse_record(MergeRecord, path.read_bytes(), path, _MEND_MERGE) if path.is_file() else None


def load_results(directory: Path) -> Results:
    """All records of a study's folder, or of a merged one.

    Raises UserError where there is none, BrokenFileError where it can't be read.
    """
    directory = Path(directory)
    merged = MergedStore(directory)
    record = merged.read()
    if record is None:
        return Store(directory).load()
    return join(directory, [merged.part(name).load() for name in record.parts])
