"""``bitladder compare``: the published study of LLaMA 3.2 1B, cell by cell beside a study's own figures."""

from pathlib import Path
from typing import Annotated

import typer


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
    from bitladder.store import load_results

    results = load_results(directory)
    if not json_output:
        typer.echo(comparison_text(results, any_model=any_model))
        return
    compared = compare_published(results, any_model=any_model)
    if not compared:
        raise UserError(f"{directory}: {comparison_text(results, any_model=any_model)}")
    typer.echo(json.dumps([one.model_dump(mode="json") for one in compared], indent=2))
