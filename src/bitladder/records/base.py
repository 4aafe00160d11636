"""The base of all records, what is not known and why, and the machine that made them.

`Unknown` is the only type for what is not known. Code asks for its kind; its words are made where they are shown.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from bitladder.errors import BrokenFileError
from bitladder.files import parse_json

# History: 1 - first release.
SCHEMA_VERSION = 1


class Record(BaseModel):
    """Base of everything stored or sent: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


AnyRecord = TypeVar("AnyRecord", bound=Record)


def hash_json(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value or record in canonical form: sorted keys, no spaces."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_record(kind: type[AnyRecord], text: str | bytes, path: Path, mend: str) -> AnyRecord:
    """Parse a stored record. Raises BrokenFileError on bad JSON, another schema version, or wrong fields.

    ``mend``: what to do about a file that can't be read.
    """
    fields = parse_json(text, path, mend)
    found = fields.get("schema_version") if isinstance(fields, dict) else None
    if "schema_version" in kind.model_fields and found != SCHEMA_VERSION:
        raise BrokenFileError(
            f"{path}: schema version {found!r}, this bitladder reads {SCHEMA_VERSION}; "
            "use the bitladder that wrote it, or another --out"
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BrokenFileError(f"{path}: not a {kind.__name__}: {where}: {first['msg']}; {mend}") from None


class Gpu(Record):
    """One accelerator, as its driver tells, or torch. The serial number is recorded, never compared."""

    name: str | None
    total_memory_bytes: int | None
    compute_capability: str | None
    driver: str | None
    serial: str | None = None
    unknown: dict[str, str] = {}
    """why a field is None"""

    @property
    def title(self) -> str:
        """Its name, or what stands for one."""
        return self.name or "GPU of unknown model"


class Machine(Record):
    """The hardware and the libraries that a measurement ran with."""

    cpu_model: str
    cpu_count: int
    """logical processors that may be used, as affinity and a container's quota allow"""
    total_memory_bytes: int
    platform: str
    gpus: tuple[Gpu, ...]
    gpus_unknown: str | None = None
    """why the driver, which is there, tells of no GPU"""
    versions: dict[str, str]

    @property
    def identity(self) -> str:
        """Hash of what makes two machines one: GPU models and drivers, CPU model, library versions; no serial."""
        return hash_json([[(gpu.name, gpu.driver) for gpu in self.gpus], self.cpu_model, self.versions])


class JournalEntry(Record):
    """What one batch of a measurement gave."""

    key: str
    """what it was computed with: an entry of another machine isn't used"""
    plan: str
    batch: int
    values: str
    """base64 of FP32, (2, targets): log-probability, and 1 where the target is the first choice"""
    elapsed_s: float
    """that the measurement had taken by then, in all its runs"""


BadStatus = Literal["failed", "timeout", "does_not_fit", "refused"]
"""how a checkpoint or a measurement ended that did not end well"""
UnknownKind = Literal[
    "underivable",  # what was measured gives no such figure
    "not_made",  # the study has not come to the checkpoint
    "not_measured",  # nor to the measurement
    "unplanned",  # none of the merged studies plans it
    "elsewhere",  # another machine measured it
    "same_content",  # it is measured as another rung's
    "not_asked",  # the stages so far ask no document of the task
    BadStatus,
]
Value = TypeVar("Value")

_WORDS: dict[UnknownKind, str] = {  # of a bad end its name
    "underivable": "{detail}",
    "not_made": "not made yet; run the study again to go on",
    "not_measured": "not measured yet; run the study again to go on",
    "unplanned": "measured by none of the merged studies",
    "elsewhere": "not measured on this machine",
    "same_content": "same content as {detail}, not measured",
    "not_asked": "none of its documents were asked yet",
}


@dataclass(frozen=True)
class Unknown:
    """Stands where a figure or an answer would."""

    detail: str = ""
    """of a figure all that is said of it, of a bad end what its record says, of ``same_content`` the other rung"""
    kind: UnknownKind = "underivable"
    subject: str = ""
    """whose it is, before everything else that is said"""

    def of(self, subject: str) -> "Unknown":
        """The same, told of something that lacks its figure for want of this one."""
        return replace(self, subject=f"{subject}: {self.subject}")

    @property
    def bad_status(self) -> BadStatus | None:
        """None where there is nothing that ended."""
        return self.kind if self.kind in get_args(BadStatus) else None  # type: ignore[return-value]  # one of them

    @property
    def reason(self) -> str:
        """For people."""
        words = _WORDS.get(self.kind, self.kind.replace("_", " ")).format(detail=self.detail)
        return self.subject + (": ".join(filter(None, (words, self.detail))) if self.bad_status else words)


def known(value: Value | Unknown | None) -> Value | None:
    """The first of the two fields in which a record has what may be unknown."""
    return None if isinstance(value, Unknown) else value


def all_known(values: Iterable[Value | Unknown]) -> list[Value] | Unknown:
    """The values where all are known, else the first that isn't."""
    found: list[Value] = []
    for value in values:
        if isinstance(value, Unknown):
            return value
        found.append(value)
    return found


def reason_of(value: Any) -> str | None:
    """The second: why there is none."""
    return value.reason if isinstance(value, Unknown) else None
