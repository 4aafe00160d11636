"""How many choices depend on the batch, and how far next-token distributions lie from the baseline's."""

from __future__ import annotations

from collections.abc import Sequence

from bitladder.report.accuracy_tables import absence
from bitladder.report.table import Cell, Column, Table, estimate_cell, number_cell, text_cell, text_columns
from bitladder.stats.power import ONE_SIDED_ALPHA
from bitladder.stats.verdict import EXCESS_POINTS
from bitladder.summary.table import ChoiceChange, DependenceSummary, Estimate, RungSummary, Summary
from bitladder.units import format_count, format_percent, format_points, format_rate, format_raw, points_text

PARAGRAPH = (
    "Each precision scored some documents again: in batches of other documents, in a forward of their own (batch 1), "
    "and by cached decoding, which prefills the question and goes on one token a step. What changes between two plans "
    "of batches is a precision's noise floor. A precision whose flips against the baseline are shown to be less than "
    f"{points_text(EXCESS_POINTS)} above its own floor or the baseline's is indistinguishable from it."
)
NOT_SCORED = "not scored in this way, not yet, or all documents fit one batch, which has no other plan"
_NO_FLOOR = "no floor to test against"
_COLUMNS = (
    Column("Documents", interval=False),
    Column("Other batches", "% changed"),
    Column("Documents at batch 1", interval=False),
    Column("Batch 1", "% changed"),
    Column("Cached decoding", "% changed"),
    Column("Cached against batch 1", "% changed"),
    Column("Against the baseline", "% changed"),
    Column("p", interval=False, help="one-sided mid-p McNemar, the larger of both floors'"),
    Column("Above the larger floor", "points"),
    Column("Flips", numeric=False),
)


def dependence_points(summary: Summary) -> tuple[str, ...]:
    """One sentence a precision."""
    return tuple(
        sentence for rung in summary.rungs if rung.dependence if (sentence := _sentence(rung.rung, rung.dependence))
    )


def _sentence(rung: str, found: DependenceSummary) -> str:
    parts = [
        f"{format_percent(one.percent.value)}% of choices {how} ({one.changed} of {one.documents:,})"
        for one, how in (
            (found.second_plan, "depend on what else is in the batch"),
            (found.batch1, "differ at batch 1"),
            (found.steps, "differ between prefill at batch 1 and cached decoding"),
        )
        if one is not None
    ]
    return f"{rung}: {', '.join(parts)}." if parts else ""


def dependence_tables(summary: Summary) -> list[Table]:
    measured = [rung for rung in summary.rungs if rung.dependence]
    rows = tuple((text_cell(rung.rung), *_cells(rung.dependence)) for rung in measured if rung.dependence)
    notes = (
        "Batch 1 and cached decoding are held against the study's own batches, and then against each other. They also "
        "round otherwise, by the number of rows and the model's own attention, which quantized activations enlarge: "
        "outlier columns are not all that changes choices there. "
        "Brackets: 95% interval of one share by itself.",
        f"Flips: above the floor where p is at most {ONE_SIDED_ALPHA:g}; indistinguishable where the interval of what "
        f"is above the larger floor lies below {points_text(EXCESS_POINTS)}; else not settled.",
        *_largest(measured),
    )
    title = f"Choices that depend on the batch, and flips against {summary.baseline}"
    tables = [Table("dependence", title, (*text_columns("Precision"), *_COLUMNS), rows, notes)]
    by_task = tuple(
        (text_cell(rung.rung), text_cell(one.title), *_cells(one))
        for rung in measured
        for one in rung.dependence_by_task
    )
    if by_task:
        columns = (*text_columns("Precision", "Task"), *_COLUMNS)
        tables.append(Table("dependence-tasks", f"{title}, by task", columns, by_task, secondary=True))
    return [*tables, _product_table(measured)]


def _cells(found: DependenceSummary) -> tuple[Cell, ...]:
    second, single = found.second_plan, found.batch1
    return (
        number_cell(second.documents if second else None, format_count, NOT_SCORED),
        _share(second),
        number_cell(single.documents if single else None, format_count, NOT_SCORED),
        _share(single),
        _share(found.cached),
        _share(found.steps),
        _share(found.against_baseline, "the baseline itself, or one without a floor of its own"),
        number_cell(found.p_value, format_raw, _NO_FLOOR),
        estimate_cell(found.excess_points or Estimate(value=None, reason=_NO_FLOOR), format_points),
        text_cell(found.flips, reason=None if found.flips else _NO_FLOOR),
    )


def _share(found: ChoiceChange | None, reason: str = NOT_SCORED) -> Cell:
    return number_cell(None, format_percent, reason) if found is None else estimate_cell(found.percent, format_percent)


def _largest(rungs: Sequence[RungSummary]) -> list[str]:
    """How far a log-likelihood moved, which shows what no choice shows."""
    parts = [
        f"{rung.rung} {format_raw(rung.dependence.second_plan.largest_nats)}"
        for rung in rungs
        if rung.dependence and rung.dependence.second_plan
    ]
    return [f"Largest change of a log-likelihood in other batches, in nats: {', '.join(parts)}."] if parts else []


def _product_table(rungs: Sequence[RungSummary]) -> Table:
    columns = text_columns("Precision", "Way", "Products of the first forwards")
    rows = tuple(
        (text_cell(rung.rung), text_cell(way), text_cell("; ".join(products) or None))
        for rung in rungs
        for way, products in rung.products.items()
    )
    notes = (
        "As PyTorch's profiler saw them: on a GPU kernels, else operators. bitsandbytes takes another 4-bit kernel by "
        "the number of rows.",
    )
    return Table("dependence-products", "Which products scored", columns, rows, notes, secondary=True)


SENTENCE = (
    "The Kullback-Leibler divergence of the next-token distributions flags damage long before a score moves. It never "
    "supports that a precision is within the margin: near the baseline it does not rank precisions by their accuracy "
    "(arXiv:2606.19558). It is in no verdict and no recommendation."
)


def divergence_table(summary: Summary) -> Table:
    """One row a precision; how exact it is stands in a note."""
    columns = (
        Column("Precision", numeric=False),
        Column("Mean KL", "nats a token"),
        Column("99th percentile", "nats"),
        Column("Largest", "nats", interval=False),
        Column("Same first choice", "%"),
        Column("Perplexity", interval=False),
        Column("Perplexity over the baseline's"),
    )
    rows = tuple(_row(rung) for rung in summary.rungs if rung.rung != summary.baseline)
    return Table("divergence", f"Divergence from {summary.baseline}", columns, rows, tuple(_notes(summary)))


def _row(rung: RungSummary) -> tuple[Cell, ...]:
    found = rung.divergence
    if found is None:
        unknown = number_cell(None, format_raw, rung.no_divergence_reason or absence(rung))
        return (text_cell(rung.rung), *[unknown] * 6)
    ratio = found.perplexity_ratio
    return (
        text_cell(rung.rung),
        estimate_cell(found.kl_mean, format_raw),
        estimate_cell(found.kl_tail, format_raw),
        number_cell(found.kl_max.value, format_raw),
        estimate_cell(found.agreement_percent, format_percent),
        number_cell(found.perplexity, format_raw),
        estimate_cell(ratio, format_rate, mark="clear" if ratio.excludes(1) else "plain"),
    )


def _notes(summary: Summary) -> list[str]:
    texts = (
        f"{one.tokens:,} tokens from {one.documents:,} documents of {one.origin}, each window forwarded by itself."
        for rung in summary.rungs
        if (one := rung.divergence)
    )
    notes = list(dict.fromkeys(texts))
    baseline = summary.rung(summary.baseline)
    if baseline is not None and baseline.divergence is not None:
        found = baseline.divergence
        notes.append(
            f"{summary.baseline} itself has a perplexity of {format_raw(found.perplexity)}; from its own logits, made "
            f"anew from its stored hidden states, it diverges by {format_raw(found.kl_mean.value)} nats, at most "
            f"{format_raw(found.kl_max.value)}. Its own rounding is a part of every figure, which a wider precision "
            "shows alone."
        )
    notes.append(
        "Brackets: 95% interval of one figure by itself; documents are the samples, since tokens of one resemble each "
        "other. Bold: the interval of the perplexity's ratio excludes 1."
    )
    return notes
