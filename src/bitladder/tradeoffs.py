"""What a rung that is best for one goal costs elsewhere, in stored figures."""

from collections.abc import Sequence

from bitladder.summary.metrics import METRICS
from bitladder.summary.table import Estimate, RungSummary, Summary
from bitladder.units import format_bytes


def run_memory(summary: Summary, rung: RungSummary) -> str | None:
    """What fewer bytes of weights leave of the memory of a run, where both were measured."""
    baseline = summary.rung(summary.baseline)
    if baseline is None or baseline is rung:
        return None
    found = []
    for name, place in (("batch1", "batch 1"), ("max-batch", "the largest batch")):
        ours, theirs = (one.scenario(name) for one in (rung, baseline))
        peaks = [one.metric("peak_memory_bytes").value for one in (ours, theirs) if one]
        if len(peaks) == 2 and None not in peaks:
            found.append(f"{format_bytes(peaks[0])} at {place} ({summary.baseline} {format_bytes(peaks[1])})")
    return f"{rung.rung}: peak memory of a run {', '.join(found)}" if found else None


def longer_answers(best: RungSummary, within: Sequence[RungSummary]) -> list[str]:
    """The rungs that are later with the first token than the one of the shortest latency, and sooner with each other:
    with more new tokens they may be faster. Only where the intervals of the time a token don't meet."""
    ours = [best.metric("batch1", name) for name in ("ttft_s", "tpot_s")]
    found = []
    for rung in within:
        first, token = theirs = [rung.metric("batch1", name) for name in ("ttft_s", "tpot_s")]
        if _is_less(ours[0], first) and _is_less(token, ours[1]):
            firsts, tokens = (
                f"{METRICS[name].quantity.text(one.value)} against {METRICS[name].quantity.text(other.value)}"
                for name, one, other in zip(("ttft_s", "tpot_s"), theirs, ours, strict=True)
            )
            found.append(
                f"{rung.rung} may be faster than {best.rung} for longer answers: {tokens} a token after the first, "
                f"which takes {firsts}"
            )
    return found


def _is_less(one: Estimate, other: Estimate) -> bool:
    """Beyond both intervals."""
    return one.high is not None and other.low is not None and one.high < other.low
