"""``bitladder merge``: several result folders as one, such as accuracy of one machine and performance of another."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand


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

    from bitladder.merge import merge_results
    from bitladder.results.machines import place_names, places
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
