"""Tells what a checkpoint *is*, ours or anyone's: facts about its files and its memory, each with a severity.

Checks are independent of each other: (checkpoint, loaded model or None) -> findings.
"""

from dataclasses import replace
from pathlib import Path

from bitladder.auditing.loaded import (
    check_causal,
    check_config,
    check_hardware,
    check_library,
    check_loaded_types,
    check_manifest,
    check_memory,
    check_operators,
    check_tokenizer,
)
from bitladder.auditing.stored import (
    Check,
    Subject,
    check_bytes,
    check_decoding,
    check_float32_values,
    check_four_bit_values,
    check_head,
    check_kept,
    check_layers,
    check_numbers,
    check_scheme,
    check_size,
)
from bitladder.checkpoint.architecture import (
    Architecture,
    describe_refusal,
    library_warnings,
    read_architecture,
    require_format,
)
from bitladder.checkpoint.config import read_config
from bitladder.checkpoint.loading import load_model, require_generation_config
from bitladder.checkpoint.manifest import read_manifest
from bitladder.checkpoint.memory import FailingModelError, Loaded, find_hardware, observe_forward
from bitladder.checkpoint.scheme import config_scheme, declared_scheme, found_scheme, is_carried
from bitladder.checkpoint.tensors import read_tensors
from bitladder.errors import BrokenFileError, NotCausalError, UnknownNameError, UserError
from bitladder.methods import method_of
from bitladder.records import Audit, Finding, LoadPolicy
from bitladder.records.base import Unknown

__all__ = ["CHECKS", "SOUNDNESS_CHECKS", "Check", "Subject"]

SOUNDNESS_CHECKS: tuple[Check, ...] = (
    check_manifest,
    check_config,
    check_scheme,
    check_head,
    check_decoding,
    check_numbers,
)
"""what a command that would use a checkpoint asks first: do the files hold what manifest and config say, in numbers?"""

CHECKS: tuple[Check, ...] = (
    *SOUNDNESS_CHECKS,
    check_tokenizer,
    check_bytes,
    check_kept,
    check_layers,
    check_size,
    check_float32_values,
    check_four_bit_values,
    check_loaded_types,
    check_causal,
    check_memory,
    check_operators,
    check_library,
    check_hardware,
)


def audit(
    directory: Path,
    *,
    as_rung: str | None = None,
    device: str = "cpu",
    load: bool = True,
    trust_remote_code: bool = False,
) -> Audit:
    """All findings on the checkpoint in ``directory``, held to ``as_rung``, else its manifest, else its config.

    With ``load``, the model is loaded on ``device`` and run once; where it can't be, a finding says why. Raises
    BrokenFileError for a file that can't be parsed, UserError for a directory without config or weights and for a
    device that isn't there, UnknownNameError for an unknown rung or architecture.
    """
    policy = LoadPolicy(device=device, trust_remote_code=trust_remote_code)
    subject = read_subject(directory, as_rung=as_rung, policy=policy)
    loaded: Loaded | None = None
    not_loaded = Finding(check="load", severity="info", message="not loaded: not asked to")
    if load:
        try:
            loaded, why_not = _load(subject)
            not_loaded = Finding(check="load", severity="info", message=f"not loaded: {why_not}")
        except FailingModelError as error:
            not_loaded = Finding(check="load", severity="error", message=str(error))
    findings = [finding for check in CHECKS for finding in check(subject, loaded)]
    if loaded is None:
        findings.append(not_loaded)
    return Audit(
        checkpoint=str(directory),
        content_hash=subject.content_hash,
        declared=subject.declared,
        declared_by=subject.declared_by,
        found=subject.found,
        stored_bytes=subject.tensor_bytes,
        loaded_bytes=None if loaded is None else sum(loaded.bytes_after.values()),
        findings=tuple(findings),
    )


def require_sound(directory: Path, policy: LoadPolicy = LoadPolicy()) -> None:
    """Raise BrokenFileError where a checkpoint's files aren't what its manifest or config says; nothing is loaded."""
    subject = read_subject(directory, policy=policy)
    for check in SOUNDNESS_CHECKS:
        for finding in check(subject, None):
            if finding.severity == "error":
                raise BrokenFileError(f"{directory}: {finding.message}; make or fetch it again")


def read_subject(directory: Path, *, as_rung: str | None = None, policy: LoadPolicy = LoadPolicy()) -> Subject:
    """What the checks look at. Raises as `audit`."""
    config = read_config(directory)
    tensors = read_tensors(directory)
    require_generation_config(directory)
    manifest = read_manifest(directory)
    carried = manifest if manifest is not None and is_carried(manifest, config, tensors) else None
    manifest = None if carried else manifest
    found = found_scheme(config, tensors)
    try:
        architecture: Architecture | Unknown = read_architecture(directory, tensors, found, policy)
    except (BrokenFileError, NotCausalError, UnknownNameError):  # nobody can load it
        raise
    except UserError as error:
        architecture = Unknown(str(error))
    declared, declared_by = declared_scheme(config, manifest, as_rung, found)
    return Subject(
        directory=directory,
        tensors=tensors,
        config=config,
        manifest=manifest,
        carried=carried,
        declared=declared,
        declared_by=declared_by,
        found=found,
        architecture=architecture,
        hardware=find_hardware(policy.device),
        policy=policy,
    )


def _load(subject: Subject) -> tuple[Loaded | None, str]:
    """The model's one forward, or why there is none."""
    for check, why_not in (
        (check_manifest, "its files aren't those of its manifest"),
        (check_config, "its tensors aren't those that its config describes"),
        (check_decoding, "its weights can't be decoded"),
    ):
        if any(finding.severity == "error" for finding in check(subject, None)):
            return None, why_not
    said, found = (method_of(one) for one in (config_scheme(subject.config, subject.found), subject.found))
    if said is not found and not (said.foreign or found.foreign):
        return None, f"its config says {said.name}, its tensors are {found.name}"
    try:
        if found.foreign:
            require_format(subject.directory, subject.policy.device)
        with library_warnings() as remarks:
            model = load_model(subject.directory, subject.policy)
            loaded = observe_forward(model)
        return replace(loaded, remarks=tuple(remarks)), ""
    except UserError as error:  # such as too large for memory; another library's format may lack a kernel, too
        if isinstance(error, FailingModelError | BrokenFileError) and not found.foreign:
            raise
        return None, str(error)
    except (ImportError, ValueError, RuntimeError) as error:
        # Other libraries' formats need packages and hardware of their own, and say so in exceptions of all kinds.
        if not found.foreign:
            raise
        return None, f"its format {describe_refusal(error, subject.policy.device)}"
