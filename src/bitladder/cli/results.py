"""Commands on a folder of results: ``report``, ``recommend``, ``compare``, ``merge`` and ``pack``."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from bitladder.errors import UnknownNameError, UserError
from bitladder.units import parse_bytes, parse_percent, parse_points

if TYPE_CHECKING:
    from bitladder.decide.recommendation import Limits, Recommendation
    from bitladder.report.table import Table as ReportTable
    from bitladder.summary.table import Summary

Value = TypeVar("Value")

MaxMemory = Annotated[
    str | None,
    typer.Option(
        help="Most peak memory at batch 1, such as 2GiB: of the device minus its idle use; "
        "on a CPU the process's resident size, libraries included."
    ),
]
MaxDrop = Annotated[str | None, typer.Option(help="Most points of the aggregate below the baseline, such as 1pt.")]
MinRecovery = Annotated[
    str | None,
    typer.Option(help="Instead of --max-drop: least aggregate as a share of the baseline's own, such as 99%."),
]
OnMachine = Annotated[
    str | None, typer.Option("--machine", help="Part of the name of the machine to decide on, where there are several.")
]
Optimize = Annotated[str | None, typer.Option(help="latency, throughput or memory (peak at batch 1); by default each.")]


def parse_limits(
    max_memory: str | None, max_drop: str | None, optimize: str | None, min_recovery: str | None = None
) -> "Limits":
    """Raises UserError for a flag that is no size, no number of points, no number of per cent or no goal, and for two
    that say how much may be lost."""
    from bitladder.decide.recommendation import Limits
    from bitladder.summary.metrics import CRITERIA

    goals = {str(goal): goal for goal in CRITERIA}
    if optimize is not None and optimize not in goals:
        raise UnknownNameError("goal", optimize, goals)
    if min_recovery is not None and max_drop is not None:
        raise UserError("--min-recovery and --max-drop both say how much may be lost; give one of them")
    return Limits(
        max_memory_bytes=_parsed("--max-memory", max_memory, parse_bytes),
        max_drop_points=_parsed("--max-drop", max_drop, parse_points),
        min_recovery_percent=_parsed("--min-recovery", min_recovery, parse_percent),
        optimize=None if optimize is None else goals[optimize],
    )


def _parsed(flag: str, text: str | None, parse: Callable[[str], Value]) -> Value | None:
    """A limit of more than 0, or None where the flag is absent."""
    if text is None:
        return None
    try:
        value = parse(text)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from None
    if not value:
        raise UserError(f"{flag}: found {text!r}, expected more than 0")
    return value


def report_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of `bitladder study`.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write to; DIR/report by default.")] = None,
    max_memory: MaxMemory = None,
    max_drop: MaxDrop = None,
    optimize: Optimize = None,
    machine: OnMachine = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the written paths as JSON.")] = False,
) -> None:
    """Write report.html, report.md, CSV, JSON, SVG and PNG. Needs neither weights nor torch."""
    import json

    from bitladder.report import write_report
    from bitladder.units import counted

    written = write_report(directory, out, parse_limits(max_memory, max_drop, optimize), machine)
    if json_output:
        typer.echo(json.dumps([str(path) for path in written]))
    else:
        typer.echo(f"{written[0]} and {counted(len(written) - 1, 'file')} beside it")


def recommend_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of `bitladder study`.")],
    max_memory: MaxMemory = None,
    max_drop: MaxDrop = None,
    min_recovery: MinRecovery = None,
    optimize: Optimize = None,
    machine: OnMachine = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
) -> None:
    """Say which precision to deploy, why, and why not the others. Exit 1 where none can be said."""
    from bitladder.decide import recommend
    from bitladder.results.store import load_results
    from bitladder.summary.metrics import recovery_margin_points
    from bitladder.summary.summarize import summarize

    limits = parse_limits(max_memory, max_drop, optimize, min_recovery)
    results = load_results(directory)
    summary = summarize(results, limits.max_drop_points, machine)
    if limits.min_recovery_percent is not None:
        points = recovery_margin_points(limits.min_recovery_percent, summary.baseline, summary.baseline_score)
        summary = summarize(results, points, machine)
    answer = recommend(summary, limits)
    if json_output:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        print_recommendation(summary, answer)
    if not answer.picks:
        raise typer.Exit(1)


def print_recommendation(summary: "Summary", answer: "Recommendation") -> None:
    """The headline and one row a rung; then why, on stdout."""
    from rich.table import Table

    from bitladder.cli.terminal import Terminal
    from bitladder.decide.sentence import headline
    from bitladder.report.overview import OUTCOMES, overview_table
    from bitladder.units import counted

    typer.echo(f"{headline(summary, answer)}\n")
    _print_overview(overview_table(summary, answer))
    if summary.notes:
        typer.echo(f"\n{counted(len(summary.notes), 'caveat')} to know before you rely on this: see the report.")
    typer.echo(f"\n{answer.sentence}")
    for reason in answer.reasons:
        typer.echo(f"- {reason}")
    table = Table("Precision", "Verdict", "Why", show_edge=False, show_lines=True)
    for verdict in answer.verdicts:
        goals = f" for {', '.join(verdict.goals)}" if verdict.goals else ""
        outcome = OUTCOMES[verdict.outcome][0]
        accuracy = f"\n{verdict.accuracy}" if verdict.accuracy and verdict.accuracy != outcome else ""
        table.add_row(verdict.rung, f"{outcome}{goals}{accuracy}", "\n".join(verdict.reasons))
    typer.echo()
    Terminal().print(table)


_WIDE = 96
"""columns of a terminal that the first table needs with its intervals"""


def _print_overview(overview: "ReportTable") -> None:
    from rich.table import Table

    from bitladder.cli.terminal import Terminal
    from bitladder.report.table import table_to_text

    console = Terminal()
    if not console.is_terminal:
        typer.echo(table_to_text(overview))
        return
    wide = console.width >= _WIDE
    table = Table(box=None, padding=(0, 1), show_edge=False)
    for index, column in enumerate(overview.columns):
        words = [word for row in overview.rows for word in row[index].text.split()]
        table.add_column(
            column.header.replace(" ", "\n"),
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric,
            min_width=max(map(len, words), default=None),
        )
    for row in overview.rows:
        table.add_row(*(f"{cell.text}\n{cell.interval}".strip() if wide else cell.text for cell in row))
    console.print(table)
    notes = [*overview.notes, *overview.footnotes] if wide else ["95% intervals: in a wider window, and in the report."]
    typer.echo("\n".join(f"- {note}" for note in notes))


def compare_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of `bitladder study`.")],
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Print the published numbers beside another model's too.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Print the published study of LLaMA 3.2 1B beside this one, cell by cell.

    Whether each published score lies in our 95% interval, and each published speed-up and memory beside ours. With
    --json a study of which nothing is compared ends with 2 and the reason.
    """
    import json

    from bitladder.errors import UserError
    from bitladder.report.published_tables import compare_published, comparison_text
    from bitladder.results.store import load_results

    results = load_results(directory)
    if not json_output:
        typer.echo(comparison_text(results, any_model=any_model))
        return
    compared = compare_published(results, any_model=any_model)
    if not compared:
        raise UserError(f"{directory}: {comparison_text(results, any_model=any_model)}")
    typer.echo(json.dumps([one.model_dump(mode="json") for one in compared], indent=2))


class MergeCommand(TyperCommand):
    """Its help calls the inputs paths; typer's own would say ``<list[Path]>``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inputs = next(param for param in self.params if param.name == "inputs")
        setattr(inputs, "display_type_rich", lambda ctx: "<path>...")  # noqa: B010


def merge_command(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="DIR", help="Folders of `bitladder study` or `merge`, or archives of `pack`."),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the merged study.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print what was merged as JSON.")] = False,
) -> None:
    """Join result folders of one model by the content of their rungs. Tables of it never mix machines."""
    import json

    from bitladder.results.machines import place_names, places
    from bitladder.results.merge import merge_results
    from bitladder.units import counted

    results = merge_results(inputs, out)
    names = list(place_names(places(results)).values())
    rungs = results.study.rungs
    if len(results.parts) == 1:
        typer.echo("note: a single study, given once or more: nothing was joined with it", err=True)
    if json_output:
        answer = {
            "directory": str(out),
            "studies": len(results.parts),
            "machines": names,
            "rungs": rungs,
            "measurements": len(results.records),
        }
        typer.echo(json.dumps(answer))
    else:
        typer.echo(f"{out}: {counted(len(results.records), 'measurement')} of {', '.join(rungs)} on {'; '.join(names)}")


def pack_command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out folder of `bitladder study` or `bitladder merge`.")
    ],
    out: Annotated[Path | None, typer.Option(help="File to write; DIR.tar.gz by default.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the path and its size as JSON.")] = False,
) -> None:
    """Pack a study's records, without weights, for `bitladder merge` on another machine."""
    import json

    from bitladder.results.merge import pack
    from bitladder.units import format_bytes

    path = pack(directory, out)
    size_bytes = path.stat().st_size
    if json_output:
        typer.echo(json.dumps({"archive": str(path), "size_bytes": size_bytes}))
    else:
        typer.echo(f"{path}: {format_bytes(size_bytes)}")
