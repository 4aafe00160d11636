"""``bitladder publish``: an audited checkpoint to the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitladder.cli.remote_code import TrustRemoteCode

if TYPE_CHECKING:
    from bitladder.publish import Publication


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
    from bitladder.cli.libraries import libraries_on_stderr
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
        _print(published)


def _print(published: "Publication") -> None:
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
