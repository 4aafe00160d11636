"""A study of several machines, one machine at a time: each has its own tables and figures, which say whose they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from bitladder.report.figure import Figure, MissingFigure
from bitladder.report.table import Table
from bitladder.results import Results
from bitladder.results.machines import at_place, place_names, places
from bitladder.summary.published import PublishedComparison
from bitladder.summary.summarize import summarize
from bitladder.summary.table import Summary


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
Part = TypeVar("Part", Table, Figure | MissingFigure)


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


def split(pages: Sequence[Page], make: Callable[[Page], Iterable[Part]]) -> tuple[Part, ...]:
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
