"""The base of all records, their hash, and the machine that made them."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bitladder.errors import BrokenFileError
from bitladder.json_files import parse_json

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
