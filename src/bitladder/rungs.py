"""The ladder: one row a rung. Adding a rung is adding a row."""

from dataclasses import dataclass

from bitladder.errors import UnknownNameError
from bitladder.records import Audit, Manifest, Scheme


@dataclass(frozen=True)
class Rung:
    """A row of the ladder."""

    name: str
    title: str
    scheme: Scheme
    needs: tuple[str, ...] = ()
    """packages that it cannot do without"""
    note: str = ""


def _plain(stored_type: str) -> Scheme:
    return Scheme(method="plain", stored_type=stored_type, compute_type=stored_type, rest_type=stored_type)


def _int8(threshold: float) -> Scheme:
    return Scheme(method="llm.int8", stored_type="I8", compute_type="F16", rest_type="BF16", int8_threshold=threshold)


def _four_bit(stored_type: str, compute_type: str, double_quantization: bool = False) -> Scheme:
    return Scheme(
        method="bnb-4bit",
        stored_type=stored_type,
        compute_type=compute_type,
        rest_type="BF16",
        double_quantization=double_quantization,
    )


BASELINE = "bf16"
NEGLIGIBLE_SHARE = 0.05
"""share of the weights of matrix products in another type than the scheme's that leaves a checkpoint its name"""

_BNB = ("bitsandbytes",)
RUNGS: dict[str, Rung] = {
    rung.name: rung
    for rung in (
        Rung("fp32", "FP32", _plain("F32"), note="control; the published study's 'BF16' row is this one"),
        Rung("bf16", "BF16", _plain("BF16"), note="baseline"),
        Rung("fp16", "FP16", _plain("F16")),
        Rung("int8", "INT8 (LLM.int8)", _int8(6.0), _BNB),
        Rung("int8-t0", "INT8 (LLM.int8, no outliers)", _int8(0.0), _BNB),
        Rung("fp4", "INT4 (FP4)", _four_bit("FP4", "F32"), _BNB, note="what load_in_4bit=True gives"),
        Rung("nf4", "INT4 (NF4)", _four_bit("NF4", "BF16"), _BNB),
        Rung("nf4-dq", "INT4 (NF4, double quantization)", _four_bit("NF4", "BF16", True), _BNB),
    )
}


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
    scheme = audit.found if audit.found is not None and audit.declared.method != "other" else audit.declared
    if scheme.method == "other":
        methods = (finding.data.get("quant_method") for finding in audit.findings if finding.check == "scheme")
        return f"{scheme.stored_type} ({next(filter(None, methods), 'unknown format')})"
    known = (rung.title for rung in RUNGS.values() if rung.scheme == scheme)
    return partial_title(next(known, f"{scheme.stored_type} ({scheme.method})"), _unquantized_share(audit))


def _unquantized_share(audit: Audit) -> float:
    """Share of the weights of matrix products that the audit found to be left as they were."""
    if audit.declared.method not in ("llm.int8", "bnb-4bit"):
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
