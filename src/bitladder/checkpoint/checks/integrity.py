"""Checks of the files against the manifest that stands beside them, the config that describes them and the tokenizer
that is to give its token ids."""

from bitladder.checkpoint.checks.subject import Subject
from bitladder.checkpoint.forward import Loaded
from bitladder.checkpoint.loading import require_tokenizer
from bitladder.checkpoint.manifest import MANIFEST_NAME, verify_files
from bitladder.checkpoint.tensors import bytes_by_dtype
from bitladder.errors import UserError
from bitladder.records import Finding
from bitladder.unknown import Unknown
from bitladder.wording import name_some


def check_manifest(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Every file's size and SHA-256, the content hash and the bytes by type against the manifest."""
    if subject.carried is not None:
        source = f"{subject.carried.rung} of {subject.carried.source.model}"
        message = (
            f"not a checkpoint of bitladder's: {MANIFEST_NAME} is that of {source}, which it was made from, and says "
            "nothing of these files"
        )
        return [Finding(check="manifest", severity="warning", message=message)]
    manifest = subject.manifest
    if manifest is None:
        return []
    problems = verify_files(subject.directory, manifest)
    if subject.content_hash != manifest.content_hash:
        problems.append(f"content hash {subject.content_hash[:12]}…, {manifest.content_hash[:12]}… recorded")
    stored = bytes_by_dtype(subject.tensors)
    if stored != manifest.bytes_by_dtype:
        problems.append(f"bytes by type {stored}, {manifest.bytes_by_dtype} recorded")
    return [
        Finding(check="manifest", severity="error", message=f"not as the manifest says: {problem}")
        for problem in problems
    ]


def check_config(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """The stored tensors against the model that config.json describes."""
    architecture = subject.architecture
    if isinstance(architecture, Unknown):
        return [
            Finding(check="config", severity="warning", message=f"not held against its config: {architecture.reason}")
        ]
    problems = {
        "are missing": architecture.missing,
        "have another shape": architecture.mismatched,
        "belong to no part of it": architecture.unexpected,
    }
    return [
        Finding(
            check="config",
            severity="error",
            message=f"config.json describes a {architecture.name}; {len(names):,} tensors {what}: {name_some(names)}",
            data={"tensors": list(names)},
        )
        for what, names in problems.items()
        if names
    ]


def check_tokenizer(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Whether texts can be given to the model, which a network alone doesn't need."""
    if isinstance(subject.architecture, Unknown):
        return []
    try:
        require_tokenizer(subject.directory, subject.policy)
    except UserError as error:
        message = str(error).removeprefix(f"{subject.directory}: ")
        return [Finding(check="tokenizer", severity="warning", message=message)]
    return []
