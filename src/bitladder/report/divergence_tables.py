"""How far each precision's next-token distributions lie from the baseline's: cheap and sensitive, and no verdict."""

from __future__ import annotations

from bitladder.report.accuracy_tables import absence
from bitladder.report.table import Cell, Column, Table, estimate_cell, number_cell, text_cell
from bitladder.summary.table import RungSummary, Summary
from bitladder.units import format_percent, format_rate, format_raw

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
