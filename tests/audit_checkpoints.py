"""Checkpoints to audit: how the tests tamper with one, and how they fake the parts that hardware decides."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.auditing import Check, Subject, read_subject
from bitladder.checkpoint.memory import Loaded
from bitladder.records import Finding

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
UP = "model.layers.0.mlp.up_proj"

CopyRung = Callable[[str], Path]
"""Rung's name -> a fresh copy of the tiny model's checkpoint on it, to tamper with"""


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(directory: Path, edit: "Callable[[dict[str, torch.Tensor]], object]") -> None:
    """Replace the weights' file (never write into it: it may be a hard link into the cache)."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    (directory / WEIGHTS).unlink()
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def flip_byte(path: Path, offset: int) -> None:
    """Change one byte of a file, in a new file of that name."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.unlink()
    path.write_bytes(content)


def run_check(check: Check, directory: Path, loaded: Loaded | None = None, **changes: Any) -> list[Finding]:
    """Findings of one check on the checkpoint in ``directory``; ``changes`` replace fields of its subject."""
    as_rung = changes.pop("as_rung", None)
    return check(replace(subject_of(directory, as_rung), **changes), loaded)


def subject_of(directory: Path, as_rung: str | None = None) -> Subject:
    return read_subject(directory, as_rung=as_rung)


def severities(findings: list[Finding]) -> list[str]:
    return [finding.severity for finding in findings]
