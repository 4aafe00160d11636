"""Quantization methods and the ladder: one row a method, one row a rung.

A method's file owns everything that depends on how weights are quantized.
"""

from dataclasses import dataclass

from bitladder.errors import UnknownNameError
from bitladder.methods.bitsandbytes import LLM_INT8
from bitladder.methods.bnb_4bit import BNB_4BIT
from bitladder.methods.method import Method
from bitladder.methods.other import OTHER
from bitladder.methods.plain import PLAIN
from bitladder.methods.torchao_int8 import TORCHAO_INT8
from bitladder.records import Audit, Manifest, MethodName, Scheme

METHODS: dict[MethodName, Method] = {method.name: method for method in (BNB_4BIT, LLM_INT8, TORCHAO_INT8, OTHER, PLAIN)}
"""A checkpoint is of the first that knows its settings, or its tensors, for its own."""


@dataclass(frozen=True)
class Rung:
    """A row of the ladder."""

    name: str
    title: str
    scheme: Scheme
    note: str = ""

    @property
    def method(self) -> Method:
        return method_of(self.scheme)


BASELINE = "bf16"
NEGLIGIBLE_SHARE = 0.05
"""share of the weights of matrix products in another type than the scheme's that leaves a checkpoint its name"""

RUNGS: dict[str, Rung] = {
    rung.name: rung
    for rung in (
        Rung("fp32", "FP32", PLAIN.scheme("F32"), note="control; the published study's 'BF16' row is this one"),
        Rung("bf16", "BF16", PLAIN.scheme("BF16"), note="baseline"),
        Rung("fp16", "FP16", PLAIN.scheme("F16")),
        Rung("int8", "INT8 (LLM.int8)", LLM_INT8.scheme(6.0)),
        Rung("int8-t0", "INT8 (LLM.int8, no outliers)", LLM_INT8.scheme(0.0)),
        Rung("int8-torchao", "INT8 (torchao, weight only)", TORCHAO_INT8.scheme()),
        Rung("fp4", "INT4 (FP4)", BNB_4BIT.scheme("FP4", "F32"), note="what load_in_4bit=True gives"),
        Rung("nf4", "INT4 (NF4)", BNB_4BIT.scheme("NF4", "BF16")),
        Rung("nf4-dq", "INT4 (NF4, double quantization)", BNB_4BIT.scheme("NF4", "BF16", double_quantization=True)),
    )
}


def method_of(scheme: Scheme) -> Method:
    """The row that answers for the scheme."""
    return METHODS[scheme.method]


def find_rung(name: str) -> Rung:
    """The row of that name. Raises UnknownNameError."""
    if name not in RUNGS:
        raise UnknownNameError("rung", name, RUNGS)
    return RUNGS[name]


def ready_title(name: str, audit: Audit | None) -> str:
    """`rung_title`, where a ready checkpoint under a name of its own is called by what its audit found."""
    if audit is None:
        return rung_title(name)
    if name in RUNGS:
        return partial_title(rung_title(name), _unquantized_share(audit))
    foreign = method_of(audit.declared).foreign
    scheme = audit.found if audit.found is not None and not foreign else audit.declared
    if method_of(scheme).foreign:
        methods = (finding.data.get("quant_method") for finding in audit.findings if finding.check == "scheme")
        return f"{scheme.stored_type} ({next(filter(None, methods), 'unknown format')})"
    known = (rung.title for rung in RUNGS.values() if rung.scheme == scheme)
    return partial_title(next(known, f"{scheme.stored_type} ({scheme.method})"), _unquantized_share(audit))


def _unquantized_share(audit: Audit) -> float:
    """Share of the weights of matrix products that the audit found to be left as they were."""
    method = method_of(audit.declared)
    if method.foreign or not method.quantizes:
        return 0.0
    return next((float(finding.data["share"]) for finding in audit.findings if finding.check == "layers"), 0.0)


def made_title(manifest: Manifest) -> str:
    """`rung_title`, and what share of its weights such a checkpoint is named after where that isn't nearly all."""
    return partial_title(rung_title(manifest.rung), manifest.unquantized_share)


def partial_title(title: str, unquantized_share: float) -> str:
    """A title with the share of the weights of matrix products that it is true of."""
    whole = unquantized_share <= NEGLIGIBLE_SHARE
    return title if whole else f"{title}, {1 - unquantized_share:.0%} of the linear weights"


def rung_title(name: str) -> str:
    """How tables call a rung; a ready checkpoint added under a name of its own keeps that name."""
    return RUNGS[name].title if name in RUNGS else name
