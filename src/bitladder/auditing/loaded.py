"""Checks of the loaded model, and of the files against the manifest, the config and the tokenizer beside them."""

import re

from bitladder.auditing.stored import Subject
from bitladder.checkpoint.loading import require_tokenizer
from bitladder.checkpoint.manifest import MANIFEST_NAME, verify_files
from bitladder.checkpoint.memory import Loaded
from bitladder.checkpoint.scheme import quantization_of
from bitladder.checkpoint.tensors import bytes_by_dtype
from bitladder.errors import UserError
from bitladder.machine.host import library_versions
from bitladder.methods import method_of
from bitladder.methods.method import kind_of
from bitladder.records import Finding, Severity
from bitladder.records.base import Unknown
from bitladder.text.words import name_some
from bitladder.units import format_bytes

CONVERTED_SHARE = 0.02
"""share of the stored bytes that may appear in another type: rotary frequencies and other buffers are FP32"""
LOOKS_AHEAD = 0.05
"""standard deviations of the logits: an encoder's move by more, a causal model's by what rounding makes of experts that
get another number of tokens"""
DENSE_GROWTH = 0.5
"""share of the quantized layers' stored bytes that memory may hold beside them; unpacking 8 bits to 16 adds all of them
once, and the embedding, however large, adds nothing"""

_PRODUCTS = re.compile(r"::\w*(mm|matmul|linear|gemm|gemv|quant|scaled_dot_product)\w*")
_INT8_PRODUCTS = re.compile(r"_int_mm|int8_(scaled_mm|linear_matmul)|cutlass_scaled_mm")


def check_loaded_types(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Types in memory against types in the file: loading must not convert what is measured under the file's type.

    The published study's "BF16" was BF16 weights loaded as FP32.
    """
    if loaded is None or method_of(subject.declared).foreign:
        return []
    stored = bytes_by_dtype(subject.tensors)
    total_bytes = sum(stored.values())
    findings = []
    for dtype, size_bytes in loaded.stored_bytes_before.items():
        excess = size_bytes - stored.get(dtype, 0)
        if excess > CONVERTED_SHARE * total_bytes:
            types = ", ".join(f"{name} {format_bytes(size)}" for name, size in stored.items())
            message = f"loading converts: {format_bytes(size_bytes)} {dtype} in memory, stored as {types}"
            findings.append(Finding(check="loaded-types", severity="error", message=message, data={"type": dtype}))
    return findings


def check_causal(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Whether a later token changes what the model says after earlier ones: then its scores are no language model's."""
    found = subject.found
    # Of all tokens together are LLM.int8's outlier columns, and the scale of inputs that other libraries round: there a
    # later token does change what is said of earlier ones.
    together = method_of(found).mixes_tokens(found) or found.activation_type is not None
    if loaded is None or together or not loaded.looks_ahead > LOOKS_AHEAD:
        return []
    message = (
        f"not causal: another last token moves the logits before it by {loaded.looks_ahead:.2g} standard deviations; "
        "expected a causal language model"
    )
    return [
        Finding(check="causal", severity="error", message=message, data={"standard_deviations": loaded.looks_ahead})
    ]


def check_memory(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Bytes in memory before and after one forward, against what is stored. Some formats unpack to dense weights."""
    if loaded is None:
        return []
    stored_bytes = subject.tensor_bytes
    before, after = sum(loaded.bytes_before.values()), sum(loaded.bytes_after.values())
    types = ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in loaded.bytes_after.items())
    data = {
        "stored_bytes": stored_bytes,
        "bytes_before": dict(loaded.bytes_before),
        "bytes_after": dict(loaded.bytes_after),
    }
    severity: Severity = "info"
    message = f"{format_bytes(after)} in memory after one forward ({types}), {format_bytes(stored_bytes)} stored"
    packed_bytes = sum(
        tensor.size_bytes
        for name, tensor in subject.tensors.items()
        if kind_of(name, tensor) in ("linear", "quantization state")
    )
    dense_bytes = stored_bytes + DENSE_GROWTH * packed_bytes
    method = method_of(subject.declared)
    if method.foreign:
        message = f"stays packed: {message}"
    if method.quantizes and after > dense_bytes:
        severity = "warning"
        when = "loads dense" if before > dense_bytes else "becomes dense at the first forward"
        message = (
            f"{when}: {format_bytes(stored_bytes)} stored as {subject.declared.stored_type}, {format_bytes(before)} "
            f"after loading, {format_bytes(after)} after one forward ({types}); it saves disk, not memory"
        )
    findings = [Finding(check="memory", severity=severity, message=message, data=data)]
    repacked = method.repacked_type(loaded.bytes_before, loaded.bytes_after)
    if repacked is not None:
        message = (
            f"the first forward packs the weights anew for this CPU's {repacked} instructions and rounds their block "
            f"scales to {repacked}: what answers here differs a little from what is stored, and from the same "
            "checkpoint elsewhere"
        )
        findings.append(Finding(check="memory", severity="info", message=message, data={"computed_in": repacked}))
    return findings


def check_operators(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """The matrix operators of one forward as the profiler named them, and whether an INT8 rung multiplies INT8."""
    if loaded is None:
        return []
    products = sorted(name for name in loaded.operators if _PRODUCTS.search(name))
    data = {"products": products, "operators": sorted(loaded.operators)}
    findings = [Finding(check="operators", severity="info", message=", ".join(products) or "none", data=data)]
    declared = subject.declared  # of another library's format only its config tells
    schemes = (declared,) if method_of(declared).foreign else (declared, subject.found)
    if any(method_of(scheme).multiplies_int8(scheme) for scheme in schemes) and not multiplies_int8(loaded):
        device = "CPU" if subject.hardware.kind == "cpu" else "GPU"
        message = f"no operator multiplied INT8: on this {device} the products run in a floating type"
        findings.append(Finding(check="operators", severity="warning", message=message))
    return findings


def check_library(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Which version of the format's library read it, and what it warned of, such as of kernels slower than it has."""
    if loaded is None:
        return []
    findings = []
    name = method_of(subject.declared).read_by(quantization_of(subject.config) or {})
    version = library_versions((name,)).get(name) if name is not None else None
    if version is not None:
        data = {"library": name, "version": version}
        findings.append(Finding(check="library", severity="info", message=f"read by {name} {version}", data=data))
    if loaded.remarks:
        message = f"its library warns: {' '.join(loaded.remarks)}"
        findings.append(Finding(check="library", severity="warning", message=message))
    return findings


def multiplies_int8(loaded: Loaded) -> bool:
    """Whether an INT8 matrix product ran.

    On a CPU bitsandbytes' own operator proves nothing: without AVX-512 it multiplies in FP32, else in ``_int_mm``.
    """
    names = [name for name in loaded.operators if _INT8_PRODUCTS.search(name)]
    if loaded.device == "cpu":
        names = [name for name in names if not name.startswith("bitsandbytes::")]
    return bool(names)


def check_hardware(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Whether the device multiplies the declared types in hardware; what it doesn't is emulated or decoded first."""
    declared, hardware = subject.declared, subject.hardware
    method = method_of(declared)
    codes = ["I8"] if declared.stored_type == "I8" and method.multiplies_int8(declared) else []
    findings = []
    for number_type in (*codes, declared.compute_type):
        native = hardware.multiplies(number_type)
        data = {"type": number_type, "native": native, "hardware": hardware.name}
        severity: Severity = "warning" if native is False else "info"
        if native:
            message = f"{hardware.name} multiplies {number_type} natively"
        elif native is None:
            message = f"whether {hardware.name} multiplies {number_type} natively is unknown"
        else:
            needed = hardware.requirement(number_type)
            elsewhere = f"one with {needed} multiplies it natively, and may be much faster than this one shows"
            message = f"{hardware.name} emulates {number_type}: {elsewhere}"
        findings.append(Finding(check="hardware", severity=severity, message=message, data=data))
    why_decoded = method.why_decoded(declared)
    if why_decoded is not None:
        repacked = loaded and method.repacked_type(loaded.bytes_before, loaded.bytes_after)
        message = f"{why_decoded}: each call decodes the weights to {repacked or declared.compute_type} first"
        findings.append(
            Finding(check="hardware", severity="info", message=message, data={"type": declared.stored_type})
        )
    return findings


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
