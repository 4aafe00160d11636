"""``bitladder report``: the tables, the figures and the recommendation of a study, from its records alone."""

from pathlib import Path
from typing import Annotated

import typer

from bitladder.cli.limits import MaxDrop, MaxMemory, OnMachine, Optimize, parse_limits


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
