"""Commands on one checkpoint: ``audit``, ``quantize`` and ``publish``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitladder.machine.libraries import forbid_hub_kernels

if TYPE_CHECKING:
    from bitladder.publish import Publication
    from bitladder.quantization import Checkpoint
    from bitladder.records import Audit


def _forbid(trusted: bool) -> bool:
    if not trusted:
        forbid_hub_kernels()
    return trusted


TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", callback=_forbid, help="Run code that comes with the model.")
]


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

    from bitladder.auditing import audit
    from bitladder.cli.progress import libraries_on_stderr
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
        _print_audit(found, f"{model} (as {as_rung})" if as_rung else f"{model} (by its {found.declared_by})")
    if not found.passed:
        raise typer.Exit(1)


def _print_audit(audit: "Audit", name: str) -> None:
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
    from bitladder.checkpoint.scheme import describe_scheme
    from bitladder.units import format_bytes

    if not audit.passed:
        more = f" (and {len(audit.errors) - 1} more)" if len(audit.errors) > 1 else ""
        return f"FAIL: {name} is not what it says: {audit.errors[0].message}{more}"
    warnings = dict.fromkeys(finding.check for finding in audit.findings if finding.severity == "warning")
    memory = "not loaded" if audit.loaded_bytes is None else f"{format_bytes(audit.loaded_bytes)} in memory"
    noted = f"; warnings: {', '.join(warnings)}" if warnings else ""
    kept = "".join(f", of which {finding.message}" for finding in audit.findings if finding.check == "kept")
    declared = describe_scheme(audit.declared, audit.computed_here)
    return (
        f"PASS: {name} is what it says: {declared}; weights {format_bytes(audit.stored_bytes)} "
        f"on disk{kept}; {memory}{noted}"
    )


def quantize_command(
    model: Annotated[str, typer.Argument(help="Hub id, directory, or builtin:smollm2-135m.")],
    rung: Annotated[str, typer.Option(help="Rung of the ladder, such as int8 or nf4.")],
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint to; nothing in it is overwritten.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    device: Annotated[str, typer.Option(help="Where to quantize: cpu or cuda[:N], which gives other bytes.")] = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Make a rung that leaves much of the weights as they are.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Quantize MODEL to a rung and write the checkpoint: weights, tokenizer, generation config, manifest."""
    from bitladder.cli.progress import libraries_on_stderr
    from bitladder.quantization import quantize

    with libraries_on_stderr():
        checkpoint = quantize(
            model,
            rung,
            out,
            revision=revision,
            device=device,
            trust_remote_code=trust_remote_code,
            allow_partial=allow_partial,
        )
    if json_output:
        typer.echo(checkpoint.manifest.model_dump_json(indent=2))
    else:
        _print_made(checkpoint)


def _print_made(checkpoint: "Checkpoint") -> None:
    from rich.table import Table

    from bitladder.cli.terminal import Terminal
    from bitladder.methods import made_title
    from bitladder.units import format_bytes

    manifest = checkpoint.manifest
    weights_bytes = sum(manifest.bytes_by_dtype.values())
    in_files = sum(file.size_bytes for name, file in manifest.files.items() if name.endswith(".safetensors"))
    by_dtype = ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in manifest.bytes_by_dtype.items())
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in (
        ("checkpoint", str(checkpoint.directory)),
        ("rung", made_title(manifest)),
        ("source", " at ".join(filter(None, (manifest.source.model, manifest.source.revision)))),
        ("weights", f"{format_bytes(weights_bytes)} ({in_files:,} bytes of files), {manifest.parameters:,} parameters"),
        ("by type", by_dtype),
        ("content hash", manifest.content_hash),
        ("note", manifest.source.note),
    ):
        if value:
            table.add_row(name, value)
    Terminal().print(table)


def publish_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint directory with its bitladder.json.")],
    repo: Annotated[
        str, typer.Option(metavar="ORG/NAME", help="Model repository on the Hub, made where there is none.")
    ],
    public: Annotated[bool, typer.Option("--public", help="For all to see; private by default.")] = False,
    results: Annotated[
        Path | None, typer.Option(metavar="STUDY", help="The --out folder of the study whose figures the card shows.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Audit, then print every file and the card; send nothing.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where the audit loads it: cpu, cuda:N or cuda:N,M.")] = "cpu",
    trust_remote_code: TrustRemoteCode = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print what is published as JSON.")] = False,
) -> None:
    """Upload an audited checkpoint to the Hub, with a model card written from the results.

    Log in with `hf auth login` first. What fails its audit is not published.
    """
    from bitladder.cli.progress import libraries_on_stderr
    from bitladder.publish import publish_checkpoint

    with libraries_on_stderr():
        published = publish_checkpoint(
            directory,
            repo,
            public=public,
            results=results,
            dry_run=dry_run,
            device=device,
            trust_remote_code=trust_remote_code,
        )
    if json_output:
        typer.echo(published.model_dump_json(indent=2))
    else:
        _print_published(published)


def _print_published(published: "Publication") -> None:
    from rich import box
    from rich.table import Table

    from bitladder.cli.terminal import Terminal

    visibility = "private" if published.private else "public"
    if published.url is not None:
        done = "published" if published.changed else "up to date, nothing to send"
        typer.echo(f"{published.url} ({visibility}): {done}, commit {published.commit}")
        return
    table = Table("file", "bytes", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[1].justify = "right"
    for name, size_bytes in published.files.items():
        table.add_row(name, f"{size_bytes:,}")
    Terminal().print(table)
    typer.echo(f"dry run: nothing was sent to {published.repository} ({visibility}). Its README.md:\n")
    typer.echo(published.card)
