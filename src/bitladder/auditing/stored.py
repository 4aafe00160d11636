"""Checks of what the files hold: bytes, scheme, layers, head, scales, values."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bitladder.checkpoint.architecture import Architecture, is_known_format
from bitladder.checkpoint.expected import expect
from bitladder.checkpoint.memory import Hardware, Loaded
from bitladder.checkpoint.scheme import DeclaredBy, config_scheme, found_scheme, quantization_of
from bitladder.checkpoint.tensors import TensorInfo, bytes_by_dtype, content_hash
from bitladder.checkpoint.weights import bits_of, describe_not_finite, find_dequantized, pieces, tensor_values
from bitladder.methods import NEGLIGIBLE_SHARE, RUNGS, method_of
from bitladder.methods.method import FLOATS, describe_kept, is_packed, kind_of, module_of
from bitladder.records import Finding, LoadPolicy, Manifest, Scheme, Severity
from bitladder.records.base import Unknown
from bitladder.text.words import name_some
from bitladder.units import format_bytes


@dataclass(frozen=True)
class Subject:
    """A checkpoint as its files show it, and the device it is to run on."""

    directory: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    manifest: Manifest | None
    carried: Manifest | None
    """of the checkpoint that this one was made from, where another library took it along"""
    declared: Scheme
    declared_by: DeclaredBy
    found: Scheme
    architecture: Architecture | Unknown
    """or why transformers can't build it here"""
    hardware: Hardware
    policy: LoadPolicy = field(default_factory=LoadPolicy)

    @cached_property
    def content_hash(self) -> str:
        """Of all weights, which reading takes a while; a look at what has no manifest goes without."""
        return content_hash(self.directory)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all stored tensors, the files' headers not counted."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())


Check = Callable[[Subject, Loaded | None], list[Finding]]

SIZE_TOLERANCE = 0.03
"""share of the predicted size that headers, small buffers and norms kept in FP32 may make"""
PREDICTED_TYPES = frozenset({"F32", "BF16", "F16"})
PACKED = "4-bit codes"
"""what a layer holds, whatever type the codes are packed in"""
_ROUNDING = 1e-9
"""of a share that a manifest holds"""


def check_bytes(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Stored bytes by type, and by kind of module and type."""
    by_kind: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, tensor in subject.tensors.items():
        by_kind[kind_of(name, tensor)][tensor.dtype] += tensor.size_bytes
    by_dtype = bytes_by_dtype(subject.tensors)
    types = ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in by_dtype.items())
    kinds = sorted(((kind, sum(types.values())) for kind, types in by_kind.items()), key=lambda item: -item[1])
    parts = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in kinds)
    data = {"by_dtype": by_dtype, "by_kind": {kind: dict(by_kind[kind]) for kind, _ in kinds}}
    return [Finding(check="bytes", severity="info", message=f"{types}; {parts}", data=data)]


def check_kept(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """What a quantized checkpoint has in a floating type, scales aside: of a small model most may be its embedding."""
    if not method_of(subject.declared).quantizes:
        return []
    kept: dict[str, int] = defaultdict(int)
    types: set[str] = set()
    for name, tensor in subject.tensors.items():
        kind = kind_of(name, tensor)
        if tensor.dtype in FLOATS and kind != "quantization state" and not is_packed(name, subject.tensors):
            kept[kind] += tensor.size_bytes
            types.add(tensor.dtype)
    if not kept:
        return []
    share = sum(kept.values()) / subject.tensor_bytes
    message = f"{describe_kept(kept)} ({share:.0%} of all) stay {'/'.join(sorted(types))}"
    return [Finding(check="kept", severity="info", message=message, data={"by_kind": dict(kept), "share": share})]


def check_scheme(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """The scheme found against the declared one, field by field; of other libraries' schemes only what both show."""
    findings = []
    declared, found, manifest = subject.declared, subject.found, subject.manifest
    if manifest is not None and manifest.rung in RUNGS and manifest.scheme != RUNGS[manifest.rung].scheme:
        message = f"the manifest calls itself {manifest.rung} but states another scheme than that rung's"
        findings.append(Finding(check="scheme", severity="error", message=message))
    differences = {
        field: {"declared": getattr(declared, field), "found": getattr(found, field)}
        for field in type(declared).model_fields
        if getattr(declared, field) != getattr(found, field)
    }
    if not isinstance(subject.architecture, Unknown) and subject.architecture.in_fp32:
        others = {name: one for name, one in subject.tensors.items() if name not in subject.architecture.in_fp32}
        if found_scheme(subject.config, others).rest_type == declared.rest_type:
            differences.pop("rest_type", None)  # what the family keeps in FP32 is no part of what a type is asked for
    severity: Severity = "error"
    data: dict[str, object] = {"differences": differences}
    foreign = method_of(declared).foreign
    if foreign:
        data["quant_method"] = method = (quantization_of(subject.config) or {}).get("quant_method")
        if not is_known_format(method):
            message = (
                f"config.json says that it is quantized by {method!r}, which the installed transformers doesn't know"
            )
            findings.append(Finding(check="scheme", severity="error", message=message))
        differences.pop("stored_type", None)  # named by the config as numbers, by the file as their packing
        severity = "warning"
    if differences:
        parts = [
            f"{field.replace('_', ' ')} {pair['found']}, declared {pair['declared']}"
            for field, pair in differences.items()
        ]
        message = f"found {'; '.join(parts)} (by {subject.declared_by})"
        findings.append(Finding(check="scheme", severity=severity, message=message, data=data))
    elif foreign:
        message = f"quantized by {data['quant_method']}: {declared.stored_type}, stored as {found.stored_type}"
        findings.append(Finding(check="scheme", severity="info", message=message, data=data))
    return findings


def check_layers(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Linear layers that the declared scheme covers, and that are stored in another type or unquantized."""
    if isinstance(subject.architecture, Unknown):
        return []
    declared, linear = subject.declared, subject.architecture.linear
    quantizes = method_of(declared).quantizes
    left: dict[str, int] = {}
    stored_types: dict[str, set[str]] = defaultdict(set)
    names = subject.architecture.loaded_names
    stored_whole = {names[stored_name] for stored_name in subject.tensors}
    for stored_name, tensor in subject.tensors.items():
        name = names[stored_name]
        weight = f"{module_of(name)}.weight"
        # what another library packed a weight into stands in its place; a table beside a weight is none of it
        packs_weight = not name.endswith("bias") and weight not in stored_whole
        if name in linear or packs_weight:
            stored_type = PACKED if is_packed(stored_name, subject.tensors) else tensor.dtype
            stored_types[name if name in linear else weight].add(stored_type)
    for name, weights in linear.items():
        types = stored_types.get(name, set())
        as_declared = not types or not types <= FLOATS if quantizes else types <= {declared.stored_type}
        if not as_declared:
            left[name] = weights
    if not left:
        return []
    share = sum(left.values()) / sum(linear.values())
    listed = [name for name in left if _is_skipped(module_of(name), subject)]
    what = "left unquantized" if quantizes else f"stored in another type than {declared.stored_type}"
    by_config = f", {len(listed):,} of them named by the config" if listed else ""
    message = (
        f"{len(left):,} of {len(linear):,} linear layers ({share:.1%} of their weights) {what}{by_config}: "
        f"{name_some(list(left))}"
    )
    data = {"layers": sorted(left), "share": share}
    severity = _layers_severity(subject, share, all_listed=len(listed) == len(left))
    return [Finding(check="layers", severity=severity, message=message, data=data)]


def _layers_severity(subject: Subject, share: float, all_listed: bool) -> Severity:
    """A rung leaves out what its manifest says its method can't replace; other people's checkpoints may leave out what
    their config says, or little."""
    if subject.declared_by != "config":
        known = subject.manifest.unquantized_share if subject.manifest is not None else 0.0
        if share > known + _ROUNDING:
            return "error"
        return "warning" if share > NEGLIGIBLE_SHARE else "info"
    if all_listed:
        return "info"
    if method_of(subject.declared).foreign:
        return "warning" if share > NEGLIGIBLE_SHARE else "info"
    return "error" if share > NEGLIGIBLE_SHARE else "warning"


def _is_skipped(module: str, subject: Subject) -> bool:
    """Whether the config's quantization settings leave the module out."""
    quantization = quantization_of(subject.config) or {}
    for key in ("llm_int8_skip_modules", "modules_to_not_convert", "ignore", "ignored_layers"):
        for pattern in quantization.get(key) or ():
            if pattern.startswith("re:"):
                if re.match(pattern.removeprefix("re:"), module):
                    return True
            elif f".{pattern}." in f".{module}.":
                return True
    return False


def check_head(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """A head that is stored although it is, or should be, the embedding."""
    pair = _head_like_embedding(subject)
    if pair is None or isinstance(subject.architecture, Unknown):
        return []
    head, embedding = (subject.tensors[name] for name in pair)
    tied = subject.architecture.tied_head
    data = {"head": pair[0], "embedding": pair[1], "bytes": head.size_bytes}
    if equal_values(subject.directory, head, embedding):
        message = f"{pair[0]} holds the embedding a second time: {format_bytes(head.size_bytes)} more in the file"
        message += "" if tied else " and, since the config doesn't tie them, in memory"
        return [Finding(check="head", severity="warning", message=message, data=data)]
    if tied:
        message = (
            f"the config ties head and embedding, but {pair[0]} holds other values; libraries differ in which wins"
        )
        return [Finding(check="head", severity="error", message=message, data=data)]
    return []


def _head_like_embedding(subject: Subject) -> tuple[str, str] | None:
    """Names of a stored head and of an embedding that has its type and shape."""
    named: dict[str, list[str]] = defaultdict(list)
    for name, tensor in subject.tensors.items():
        named[kind_of(name, tensor)].append(name)
    for head, embedding in product(named["head"], named["embedding"]):
        first, second = subject.tensors[head], subject.tensors[embedding]
        if (first.dtype, first.shape) == (second.dtype, second.shape):
            return head, embedding
    return None


def check_size(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Size of the stored tensors against what the config's model takes in the declared scheme."""
    declared = subject.declared
    predictable = not method_of(declared).foreign and {declared.compute_type, declared.rest_type} <= PREDICTED_TYPES
    if not predictable or isinstance(subject.architecture, Unknown):
        return []
    found_bytes = subject.tensor_bytes
    predicted_bytes = expect(subject.directory, declared, subject.policy).tensor_bytes
    doubled = sum(int(finding.data["bytes"]) for finding in check_head(subject, None))
    excess = (found_bytes - doubled) / predicted_bytes - 1
    off = abs(excess) > SIZE_TOLERANCE
    severity: Severity = "info"
    if off:
        severity = "warning" if subject.declared_by == "config" else "error"
    message = (
        f"{format_bytes(found_bytes)} stored, {format_bytes(predicted_bytes)} predicted for "
        f"{declared.stored_type} ({excess:+.1%})"
    )
    data = {"found_bytes": found_bytes, "predicted_bytes": predicted_bytes, "doubled_head_bytes": doubled}
    return [Finding(check="size", severity=severity, message=message, data=data)]


def check_decoding(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Scales, maps and settings of every packed weight against the weight, by the methods that are said and found."""
    schemes = (subject.declared, config_scheme(subject.config, subject.found), subject.found)

    def read(name: str) -> bytes:
        return bits_of(subject.directory, subject.tensors[name]).tobytes()

    methods = dict.fromkeys(map(method_of, schemes))
    problems = {name: problem for method in methods for name, problem in method.undecodable(subject.tensors, read)}
    if not problems:
        return []
    name, problem = next(iter(problems.items()))
    more = f"; nor can {name_some(list(problems)[1:])}" if len(problems) > 1 else ""
    message = f"{name} can't be decoded: {problem}{more}"
    return [Finding(check="decoding", severity="error", message=message, data={"tensors": sorted(problems)})]


def check_numbers(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Weights and scales that are NaN or infinite: nothing that is measured of them means anything."""
    values = tensor_values(subject.directory)
    message = describe_not_finite(values)
    if message is None:
        return []
    data = {
        "nans": {name: one.nans for name, one in values.items() if one.nans},
        "infinities": {name: one.infinities for name, one in values.items() if one.infinities},
    }
    return [Finding(check="numbers", severity="error", message=message, data=data)]


def check_float32_values(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """FP32 whose every value is a BF16 value: the low 16 bits are zero, so half the bytes say nothing."""
    stored = {name: tensor for name, tensor in subject.tensors.items() if tensor.dtype == "F32" and tensor.shape}
    if method_of(subject.declared).quantizes or subject.found.stored_type != "F32":
        return []
    total_bytes = sum(tensor.size_bytes for tensor in stored.values())
    for tensor in sorted(stored.values(), key=lambda tensor: -tensor.size_bytes):
        for piece in pieces(subject.directory, tensor):
            if np.any(piece & np.uint32(0xFFFF)):
                return []
    message = (
        "every FP32 value is a BF16 value: the weights were BF16 before, and half of each is zero; "
        "as BF16 they are the same in half the bytes"
    )
    data = {"tensors": len(stored), "bytes": total_bytes}
    return [Finding(check="float32-values", severity="warning", message=message, data=data)]


def check_four_bit_values(subject: Subject, loaded: Loaded | None) -> list[Finding]:
    """Matrices that were dequantized from 4 bits: a block of neighbouring weights has at most 16 different values."""
    found = find_dequantized(subject.directory, subject.tensors)
    if found is None:
        return []
    message = f"{found.text}; what is measured against them is not measured against the original"
    data = {"block_by_tensor": dict(found.block_by_tensor), "share": found.share}
    return [Finding(check="was-4-bit", severity="warning", message=message, data=data)]


def equal_values(directory: Path, first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two stored tensors of one type and shape hold the same bits."""
    pairs = zip(pieces(directory, first), pieces(directory, second), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)
