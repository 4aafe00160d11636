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

    Whether each published score lies in our 95% interval, and each published speed-up and memory beside ours.
    """
    import json

    from bitladder.report.markdown import table_to_markdown
    from bitladder.report.published_tables import compare_published, published_paragraphs, published_tables
    from bitladder.stats.published import likeness_of, published_study
    from bitladder.store import load_results

    results = load_results(directory)
    compared = compare_published(results, any_model=any_model)
    if json_output:
        typer.echo(json.dumps([one.model_dump(mode="json") for one in compared], indent=2))
        return
    if compared:
        for paragraph in published_paragraphs(compared):
            typer.echo(f"{paragraph}\n")
        for table in published_tables(compared):
            typer.echo(f"{table.title}\n\n{table_to_markdown(table)}\n")
    elif likeness_of(results) == "other":
        # Another model's figures differ from these whatever it does: side by side they would read as a finding.
        typer.echo(
            f"nothing is compared: the published numbers are {published_study().title}'s, and this study is of "
            f"{results.study.source.model}; --any-model prints them side by side"
        )
    else:
        typer.echo("nothing is compared: this study plans no task and no scenario that was published")
