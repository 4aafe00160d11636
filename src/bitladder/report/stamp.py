"""Whether a report is the one that would be written now: drawing takes seconds, reading what it is made of little."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from bitladder.files import require_own_folder, sha256_file, write_atomically
from bitladder.package import FOLDER
from bitladder.recommendation import Limits
from bitladder.records import Record, hash_json
from bitladder.store import Results

STAMP = ".made-from.json"
_DRAWN_BY = ("altair", "vl-convert-python", "jinja2", "scipy")


class Stamp(Record):
    """What a report was made from, and what was written."""

    source: str
    """hash of the study's records, the limits, and everything that turns them into a report"""
    files: dict[str, str]
    """name -> SHA-256"""


def source_hash(results: Results, limits: Limits, machine: str | None) -> str:
    """Hash of everything that a report depends on; `machine`: the one that was chosen to decide on."""
    return hash_json(
        {
            "studies": [
                {
                    "study": part.study.model_dump(mode="json"),
                    "rungs": {name: record.model_dump(mode="json") for name, record in part.rungs.items()},
                }
                for part in results.parts or (results,)
            ],
            "machine": machine,
            "records": [hashlib.sha256(record.model_dump_json().encode()).hexdigest() for record in results.records],
            "limits": limits.model_dump(mode="json"),
            "libraries": {name: version(name) for name in _DRAWN_BY},
            "code": [sha256_file(path) for path in _code()],
        }
    )


def current_files(out: Path, source: str) -> list[Path] | None:
    """The files of the report in ``out`` if it was made from the same and is whole, else None."""
    try:
        stamp = Stamp.model_validate_json((out / STAMP).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    paths = {out / name: sha256 for name, sha256 in stamp.files.items()}
    whole = all(path.is_file() and sha256_file(path) == sha256 for path, sha256 in paths.items())
    return list(paths) if stamp.source == source and whole else None


def require_report_folder(out: Path) -> None:
    """Raise UserError for a file, and for a folder that holds something else than a report."""
    require_own_folder(out, "report", (STAMP,), (f".{STAMP}.*.tmp",))


def mark_begun(out: Path) -> None:
    """Make ``out`` known as a report's folder before the first file of a report is in it."""
    write_stamp(out, "", [])


def write_stamp(out: Path, source: str, paths: list[Path]) -> None:
    stamp = Stamp(source=source, files={path.name: sha256_file(path) for path in paths})
    write_atomically(out / STAMP, stamp.model_dump_json(indent=1) + "\n")


_DECIDING = (
    "decide.py",
    "evidence.py",
    "objections.py",
    "ranking.py",
    "recommendation.py",
    "sentence.py",
    "tradeoffs.py",
)
"""what a recommendation is made by"""
_COMMON = ("stages.py", "unknown.py", "units.py", "rungs.py")


def _code() -> list[Path]:
    return sorted(
        path
        for part in ("stats", "summary", "results", "report", *_DECIDING, *_COMMON)
        for path in ([FOLDER / part] if part.endswith(".py") else (FOLDER / part).rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    )
