"""``bitladder pack``: the records of a result folder as one small archive."""

from pathlib import Path
from typing import Annotated

import typer


def pack_command(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out folder of `bitladder study` or `bitladder merge`.")
    ],
    out: Annotated[Path | None, typer.Option(help="File to write; DIR.tar.gz by default.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the path and its size as JSON.")] = False,
) -> None:
    """Pack a study's records, without weights, for `bitladder merge` on another machine."""
    import json

    from bitladder.archive import pack
    from bitladder.units import format_bytes

    path = pack(directory, out)
    size_bytes = path.stat().st_size
    if json_output:
        typer.echo(json.dumps({"archive": str(path), "size_bytes": size_bytes}))
    else:
        typer.echo(f"{path}: {format_bytes(size_bytes)}")
