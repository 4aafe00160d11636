"""What a command leaves that faults were injected into: how it ended, whole files, and what two equal studies share."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def last_line(output: str) -> str:
    return next((line for line in reversed(output.splitlines()) if line.strip()), "")


def judge(code: int | None, output: str, orphans: int, *, killed: bool) -> Iterator[str]:
    """What is wrong with how a disturbed command ended."""
    if orphans:
        yield f"{orphans} processes were left"
    if "Traceback" in output or code not in (0, 1, 2, *([-9] if killed else [])):
        yield f"ends with {code}: {output[-3000:]}"
    elif code == 2 and not last_line(output).startswith("error: "):
        yield f"ends without a line: {output[-1500:]}"
    elif any(word in output for word in ("Errno", "os error", "OSError")):
        yield f"an error of the machine's as Python says it: {output[-1500:]}"
    elif code == 1 and "not measured: " not in output and "failed" not in output:
        yield f"ends with 1, unsaid: {output[-1500:]}"


def torn_files(out: Path) -> Iterator[str]:
    """Records and reports that are not whole. Temporary files and journals may be cut off."""
    from bitladder.errors import BrokenFileError
    from bitladder.results.store import Store

    for path in out.rglob("*.json"):
        if ".tmp" not in str(path):
            try:
                json.loads(path.read_bytes())
            except ValueError:
                yield f"{path}: torn"
    store = Store(out)
    if store.has_study():
        try:
            store.load()
        except BrokenFileError as error:
            yield f"unreadable: {error}"


def describe(root: Path) -> dict[str, Any]:
    """All that two studies of the same have in common: files, and of records what is no time."""
    from bitladder.files import sha256_file
    from bitladder.results.store import Store

    results = Store(root / "out").load()
    found: dict[str, Any] = {"files": sorted(_lasting_files(root))}
    study = results.study.model_dump(mode="json")
    del study["calibration"]["layer_rates"]
    found["study.json"] = study
    for name, rung in results.rungs.items():
        found[f"rung {name}"] = rung.model_dump(mode="json")
    for record in results.records:
        about = record.model_dump(mode="json", include={"measurement_id", "item", "status", "reason", "content_hash"})
        found[f"{record.rung} {record.item.kind}"] = about
        if record.item.kind != "performance" and record.outcome is not None:
            # a journal has answers, and not how they were computed
            outcome = record.outcome.model_dump(mode="json", exclude={"scoring"})
            found[f"{record.rung} {record.item.kind} outcome"] = outcome
    for path in (root / "out").rglob("*"):
        if path.is_file() and path.parent.name in ("documents", "prompts", "references"):
            found[f"content of {path.relative_to(root)}"] = sha256_file(path)
    return found


def _lasting_files(root: Path) -> Iterator[str]:
    """All but what whoever writes to the cache next removes, an hour later: other studies may be writing there now."""
    shared = (root / "cache", root / "cache" / "requests")
    for path in root.rglob("*"):
        if path.parent not in shared or path.suffix != ".tmp":
            yield str(path.relative_to(root))


def differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    for name in expected.keys() | found.keys():
        ours, theirs = expected.get(name, ()), found.get(name, ())
        if name == "files":
            left, lacks = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
            if left or lacks:
                yield f"left: {left}, lacks: {lacks}"
        else:
            yield from (f"{name}{where}" for where in _differing(ours, theirs))


def _differing(ours: Any, theirs: Any) -> Iterator[str]:
    """Each value that differs, with where it is."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for key in ours:
            yield from (f".{key}{where}" for where in _differing(ours[key], theirs[key]))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from (f"[{number}]{where}" for where in _differing(one, other))
    elif ours != theirs:
        yield f": {str(theirs)[:300]}, not {str(ours)[:300]}"
