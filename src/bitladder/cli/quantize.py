"""``bitladder quantize``: one rung's checkpoint, offline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitladder.cli.remote_code import TrustRemoteCode

if TYPE_CHECKING:
    from bitladder.quantization.quantize import Checkpoint


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
    from bitladder.cli.libraries import libraries_on_stderr
    from bitladder.quantization.quantize import quantize

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
        _print(checkpoint)


def _print(checkpoint: "Checkpoint") -> None:
    from rich.table import Table

    from bitladder.cli.terminal import Terminal
    from bitladder.rungs import made_title
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
