"""The published study's tables, cell by cell beside ours; and a study of several machines, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from bitladder.methods import BASELINE
from bitladder.report.figure import Figure, MissingFigure
from bitladder.report.performance_tables import SCENARIOS
from bitladder.report.table import (
    Cell,
    Column,
    Table,
    estimate_cell,
    number_cell,
    table_to_text,
    text_cell,
    text_columns,
)
from bitladder.results import Results
from bitladder.results.machines import at_place, default_place, place_names, places, to_decide
from bitladder.summary.published import (
    CONTROL,
    PublishedComparison,
    compare_with_published,
    likeness_of,
    published_study,
)
from bitladder.summary.summarize import summarize
from bitladder.summary.table import Summary
from bitladder.units import MIB, format_count, format_mib, format_percent, format_ratio


@dataclass(frozen=True)
class MachinePage:
    """What one machine measured."""

    machine: str | None
    """its name; None where the study has no other"""
    results: Results
    summary: Summary

    @property
    def on_gpu(self) -> bool:
        return self.results.study.calibration.device.startswith("cuda")


Page = TypeVar("Page", MachinePage, PublishedComparison)
PagePart = TypeVar("PagePart", Table, Figure | MissingFigure)


def machine_pages(results: Results, summary: Summary) -> list[MachinePage]:
    """One page a machine; for a single machine the summary itself."""
    known = places(results)
    if len(known) == 1:
        return [MachinePage(None, results, summary)]
    names = place_names(known)
    parts = [(names[place.key], at_place(results, place)) for place in known]
    return [MachinePage(name, part, summarize(part, summary.margin_points)) for name, part in parts]


def split_notes(pages: Sequence[MachinePage]) -> list[str]:
    """What a reader of several machines' figures has to know."""
    if len(pages) == 1:
        return []
    names = "; ".join(str(page.machine) for page in pages)
    return [f"Measured on {len(pages)} machines, split so that no table and no figure mixes them: {names}."]


def split(pages: Sequence[Page], make: Callable[[Page], Iterable[PagePart]]) -> tuple[PagePart, ...]:
    """The tables or the figures of every page, under names and titles of their own."""
    return tuple(
        replace(
            part,
            name=f"{part.name}-machine{index}" if index > 1 else part.name,
            title=f"{part.title}, on {page.machine}" if page.machine else part.title,
        )
        for index, page in enumerate(pages, 1)
        for part in make(page)
    )


_PRECISION_COLUMNS = (
    *text_columns("Published as"),
    Column("Ours", numeric=False, help="the rung that the published precision is"),
)
_OURS = (
    "The published BF16 is our fp32: its 4,880 MiB at batch size 1 are 4,714 MiB of FP32 weights and 166 MiB; BF16 "
    "weights are 2,357 MiB. So every published speed-up is one over fp32. The published INT4, which load_in_4bit=True "
    "gives, is our fp4."
)


def compare_published(results: Results, *, any_model: bool = False) -> tuple[PublishedComparison, ...]:
    """The published study of LLaMA 3.2 1B beside this one, once a machine that measured.

    Empty where the model is another one, unless ``any_model``, and where nothing published was planned.
    """
    summary = summarize(to_decide(results, default_place(results)))
    return compare_pages(machine_pages(results, summary), any_model=any_model)


def compare_pages(pages: Sequence[MachinePage], *, any_model: bool = False) -> tuple[PublishedComparison, ...]:
    compared = (
        compare_with_published(page.results, page.summary, machine=page.machine, any_model=any_model) for page in pages
    )
    return tuple(one for one in compared if one is not None)


def published_tables(comparisons: Sequence[PublishedComparison]) -> tuple[Table, ...]:
    """Scores, then each scenario; every machine has its own, which say whose they are."""
    return split(comparisons, _tables)


def _tables(one: PublishedComparison) -> list[Table]:
    scores = [_score_table(one)] if one.scores else []
    return scores + [_speed_table(one, name) for name in dict.fromkeys(cell.scenario for cell in one.speeds)]


def comparison_text(results: Results, *, any_model: bool = False) -> str:
    """`compare_published` as plain text; where nothing is compared, why."""
    compared = compare_published(results, any_model=any_model)
    if compared:
        tables = (f"{table.title}\n\n{table_to_text(table)}" for table in published_tables(compared))
        return "\n\n".join([*published_paragraphs(compared), *tables])
    if likeness_of(results) == "other":
        # Another model's figures differ from these whatever it does: side by side they would read as a finding.
        return (
            f"Nothing is compared: the published numbers are {published_study().title}'s, and this study is of "
            f"{results.study.source.model}. --any-model prints them side by side."
        )
    return "Nothing is compared: this study plans no task and no scenario that was published."


def published_paragraphs(comparisons: Sequence[PublishedComparison]) -> tuple[str, ...]:
    """Where the numbers are from, what is beside what, and how many scores agree."""
    study = comparisons[0].study
    origin = (
        f"Published: {study.citation}. Accuracy was measured on an {study.accuracy_gpu}, performance on an "
        f"{study.performance_gpu}."
    )
    lines = [*(note for one in comparisons for note in one.notes), origin, _OURS]
    for one in comparisons:
        if one.scores:
            where = f" on {one.machine}" if one.machine else ""
            known = [cell.inside for cell in one.scores if cell.inside is not None]
            missing = f"; {len(one.scores) - len(known)} more have none" if len(known) < len(one.scores) else ""
            if not known:
                lines.append(f"No published score has an interval of ours beside it{where}: the table says why.")
                continue
            lines.append(
                f"The published score lies inside our 95% interval in {sum(known)} of the {len(known)} cells that have "
                f"one{where}{missing}."
            )
    return tuple(dict.fromkeys(lines))


def _score_table(one: PublishedComparison) -> Table:
    columns = (
        *text_columns("Task"),
        *_PRECISION_COLUMNS,
        Column("Published", "%", interval=False),
        Column("Measured", "%"),
        Column("Questions", interval=False),
        *text_columns("Inside our interval"),
    )
    rows = tuple(
        (
            text_cell(cell.title),
            text_cell(cell.precision),
            text_cell(cell.rung),
            number_cell(cell.published_percent, format_percent),
            estimate_cell(cell.score, format_percent),
            number_cell(cell.questions, format_count),
            _inside_cell(cell.inside, cell.score.reason),
        )
        for cell in one.scores
    )
    notes = (
        "The interval is for drawing other questions. On all of a task's questions two careful runs of one model agree "
        "far closer; 11 of the 36 published scores are no whole number of right answers.",
    )
    return Table("published-accuracy", "Published accuracy beside ours", columns, rows, notes)


def _inside_cell(inside: bool | None, reason: str | None) -> Cell:
    if inside is None:
        return text_cell(None, reason=reason or "no interval")
    return text_cell("yes" if inside else "no", mark="plain" if inside else "clear")


def _speed_table(one: PublishedComparison, scenario: str) -> Table:
    columns = (
        *_PRECISION_COLUMNS,
        Column("Published speed-up", "ratio", interval=False),
        Column(f"Ours over {CONTROL}", "ratio"),
        Column(f"Ours over {BASELINE}", "ratio"),
        Column("Published VRAM", "MiB", interval=False),
        Column("Our VRAM", "MiB", interval=False, help="average of device memory less idle"),
    )
    rows = tuple(
        (
            text_cell(cell.precision),
            text_cell(cell.rung),
            number_cell(cell.published_speedup, format_ratio),
            estimate_cell(cell.speedup_to_fp32, format_ratio),
            estimate_cell(cell.speedup, format_ratio),
            number_cell(cell.published_vram_mib * MIB, format_mib, unit_size=MIB),
            estimate_cell(cell.vram_bytes, format_mib, unit_size=MIB),
        )
        for cell in one.speeds
        if cell.scenario == scenario
    )
    number, name = SCENARIOS[scenario]
    notes = (
        "Ratios stand beside ratios: the published prompts have other lengths, and how many tokens were generated is "
        "not said, so its requests/s are another workload's. VRAM: as in Tables 3 and 4; the published MB are MiB.",
    )
    return Table(f"published-table{number}", f"Published speed-up and memory beside ours: {name}", columns, rows, notes)
