"""``bitladder recommend``: which rung of a finished study to deploy, within limits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitladder.cli.limits import MaxDrop, MaxMemory, MinRecovery, OnMachine, Optimize, parse_limits

if TYPE_CHECKING:
    from bitladder.recommendation import Recommendation


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
    from bitladder.store import load_results
    from bitladder.summary.margin import recovery_margin_points
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
        print_recommendation(answer)
    if not answer.picks:
        raise typer.Exit(1)


def print_recommendation(answer: "Recommendation") -> None:
    """The sentence, the reasons, and what became of each rung, on stdout."""
    from rich.table import Table

    from bitladder.cli.terminal import Terminal

    typer.echo(answer.sentence)
    for reason in answer.reasons:
        typer.echo(f"- {reason}")
    table = Table("Precision", "Verdict", "Why", show_edge=False, show_lines=True)
    for verdict in answer.verdicts:
        goals = f" for {', '.join(verdict.goals)}" if verdict.goals else ""
        accuracy = f"\n{verdict.accuracy}" if verdict.accuracy and verdict.accuracy != verdict.outcome else ""
        table.add_row(verdict.rung, f"{verdict.outcome}{goals}{accuracy}", "\n".join(verdict.reasons))
    typer.echo()
    Terminal().print(table)
