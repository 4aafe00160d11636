"""``bitladder audit``: what a checkpoint is, and whether it is what it says."""

from typing import TYPE_CHECKING, Annotated

import typer

from bitladder.cli.remote_code import TrustRemoteCode

if TYPE_CHECKING:
    from bitladder.records import Audit


def audit_command(
    model: Annotated[
        str,
        typer.Argument(metavar="DIR", help="Checkpoint directory, ours or any other; or builtin:NAME, or a Hub id."),
    ],
    as_rung: Annotated[
        str | None, typer.Option("--as", metavar="RUNG", help="Hold it to this rung, whatever it says of itself.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to load it and run it once: cpu, cuda:N or cuda:N,M.")] = "cpu",
    load: Annotated[bool, typer.Option("--load/--no-load", help="Load the model and run one forward.")] = True,
    trust_remote_code: TrustRemoteCode = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the audit as JSON.")] = False,
) -> None:
    """Tell what a checkpoint is: types, sizes, memory after a forward, operators, and whether it is what it says.

    Exit code 1 where it isn't.
    """
    from pathlib import Path

    from bitladder.checkpoint.audit import audit
    from bitladder.cli.libraries import libraries_on_stderr
    from bitladder.errors import UserError
    from bitladder.models.source import resolve_model

    if not load and device != "cpu":
        raise UserError(f"--device {device}: found --no-load, which loads it nowhere; leave out one of the two")
    with libraries_on_stderr():
        directory = Path(model) if Path(model).is_dir() else resolve_model(model).directory
        found = audit(directory, as_rung=as_rung, device=device, load=load, trust_remote_code=trust_remote_code)
    if json_output:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _print(found, f"{model} (as {as_rung})" if as_rung else f"{model} (by its {found.declared_by})")
    if not found.passed:
        raise typer.Exit(1)


def _print(audit: "Audit", name: str) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from bitladder.cli.terminal import Terminal

    colours = {"error": "red", "warning": "yellow", "info": "default"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("severity")
    table.add_column("check", no_wrap=True)
    table.add_column("finding", overflow="fold")
    for finding in sorted(audit.findings, key=lambda one: list(colours).index(one.severity)):
        severity = Text(finding.severity, style=colours[finding.severity])
        table.add_row(severity, finding.check, Text(finding.message))
    Terminal().print(table)
    typer.echo(verdict(audit, name))


def verdict(audit: "Audit", name: str) -> str:
    """One line: what the checkpoint called ``name`` is, or why it isn't what it says."""
    from bitladder.checkpoint.declared import describe_scheme
    from bitladder.units import format_bytes

    if not audit.passed:
        more = f" (and {len(audit.errors) - 1} more)" if len(audit.errors) > 1 else ""
        return f"FAIL: {name} is not what it says: {audit.errors[0].message}{more}"
    warnings = dict.fromkeys(finding.check for finding in audit.findings if finding.severity == "warning")
    memory = "not loaded" if audit.loaded_bytes is None else f"{format_bytes(audit.loaded_bytes)} in memory"
    noted = f"; warnings: {', '.join(warnings)}" if warnings else ""
    kept = "".join(f", of which {finding.message}" for finding in audit.findings if finding.check == "kept")
    return (
        f"PASS: {name} is what it says: {describe_scheme(audit.declared)}; weights {format_bytes(audit.stored_bytes)} "
        f"on disk{kept}; {memory}{noted}"
    )
