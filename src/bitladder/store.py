"""A study's folder. Measuring writes here and reporting reads here; they meet nowhere else.

study.json              settings, source, calibration, plan
rungs/RUNG.json         manifest and audit of each rung's checkpoint
records/ID.json         one measurement each
documents/HASH.json     the questions, once a task
prompts/HASH.json       the token ids that performance was measured on
checkpoints/RUNG/       the weights; nothing here needs them again
"""

from dataclasses import dataclass
from pathlib import Path

from bitladder.errors import UserError
from bitladder.files import write_atomically
from bitladder.records import (
    MeasurementRecord,
    Prompts,
    Record,
    RungRecord,
    StudyRecord,
    TaskDocuments,
    measurement_id,
    parse_record,
)


@dataclass(frozen=True)
class Results:
    """What a study has, in the order of its plan: records that exist for the rungs' present content."""

    directory: Path
    study: StudyRecord
    rungs: dict[str, RungRecord]
    records: tuple[MeasurementRecord, ...]

    def of(self, rung: str) -> tuple[MeasurementRecord, ...]:
        return tuple(record for record in self.records if record.rung == rung)


class Store:
    """Atomic reads and writes of one study's records. One process writes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write_study(self, study: StudyRecord) -> None:
        self._write("study.json", study)

    def read_study(self) -> StudyRecord:
        """Raises UserError where there is no study, BrokenFileError where it can't be read."""
        path = self.directory / "study.json"
        if not path.is_file():
            raise UserError(f"{self.directory}: no study.json; expected the --out folder of `bitladder study`")
        return parse_record(StudyRecord, path.read_bytes(), path)

    def has_study(self) -> bool:
        return (self.directory / "study.json").is_file()

    def write_rung(self, record: RungRecord) -> None:
        self._write(f"rungs/{record.rung}.json", record)

    def read_rung(self, rung: str) -> RungRecord | None:
        path = self.directory / "rungs" / f"{rung}.json"
        return parse_record(RungRecord, path.read_bytes(), path) if path.is_file() else None

    def write_measurement(self, record: MeasurementRecord) -> None:
        self._write(f"records/{record.measurement_id}.json", record)

    def read_measurement(self, identity: str) -> MeasurementRecord | None:
        path = self.directory / "records" / f"{identity}.json"
        return parse_record(MeasurementRecord, path.read_bytes(), path) if path.is_file() else None

    def write_documents(self, documents: TaskDocuments) -> None:
        if not (self.directory / "documents" / f"{documents.documents_hash}.json").is_file():
            self._write(f"documents/{documents.documents_hash}.json", documents)

    def read_documents(self, documents_hash: str) -> TaskDocuments | None:
        path = self.directory / "documents" / f"{documents_hash}.json"
        return parse_record(TaskDocuments, path.read_bytes(), path) if path.is_file() else None

    def write_prompts(self, prompts: Prompts) -> None:
        if not self._prompts_path(prompts.prompts_hash).is_file():
            self._write(f"prompts/{prompts.prompts_hash}.json", prompts)

    def read_prompts(self, prompts_hash: str) -> Prompts | None:
        path = self._prompts_path(prompts_hash)
        return parse_record(Prompts, path.read_bytes(), path) if path.is_file() else None

    def has_prompts(self, prompts_hash: str) -> bool:
        return self._prompts_path(prompts_hash).is_file()

    def _prompts_path(self, prompts_hash: str) -> Path:
        return self.directory / "prompts" / f"{prompts_hash}.json"

    def checkpoint_directory(self, rung: str) -> Path:
        return self.directory / "checkpoints" / rung

    def load(self) -> Results:
        """All records of the present plan. A record of another rung or plan stays on disk and is left out."""
        study = self.read_study()
        rungs: dict[str, RungRecord] = {}
        records: list[MeasurementRecord] = []
        for rung in study.settings.rungs:
            rung_record = self.read_rung(rung)
            if rung_record is None:
                continue
            rungs[rung] = rung_record
            if rung_record.content_hash is None:
                continue
            for item in study.items:
                record = self.read_measurement(measurement_id(rung_record.content_hash, item))
                if record is not None:
                    records.append(record.model_copy(update={"rung": rung}))
        return Results(self.directory, study, rungs, tuple(records))

    def _write(self, name: str, record: Record) -> None:
        write_atomically(self.directory / name, record.model_dump_json(indent=None) + "\n")


def load_results(directory: Path) -> Results:
    """All records of a study's folder. Raises UserError where there is none, BrokenFileError where it can't be read."""
    return Store(Path(directory)).load()
