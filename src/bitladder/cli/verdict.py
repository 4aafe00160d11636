"""``bitladder verdict``: whether models score within a margin of a baseline, from lm-eval's logs of any backend."""

from typing import Annotated

import typer

from bitladder.cli.limits import MaxDrop, MinRecovery, parse_limits


def verdict_command(
    base: Annotated[str, typer.Argument(metavar="BASE", help="What the others are held against.")],
    rungs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUNG...", help="lm-eval's --output_path with --log_samples; or DIR:RUNG of a bitladder study."
        ),
    ],
    max_drop: MaxDrop = None,
    min_recovery: MinRecovery = None,
    per_task: Annotated[
        bool,
        typer.Option("--per-task", help="Exit 1 also where a RUNG is shown to lose more on one task of the aggregate."),
    ] = False,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks or groups of the logs, comma-separated; default all.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(help="Field of the documents that those share which resemble each other, such as a passage's id."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
) -> None:
    """Say of each RUNG whether its score lies within a margin of BASE's, on the same questions under the same prompts.

    Reads what `lm_eval run --log_samples --output_path DIR` left, whatever the backend; needs no model and no GPU.
    Exit 1 unless every RUNG is shown to be within the margin, --max-drop: by default 1 point, or a study's own.
    """
    from bitladder.accuracy.answers import read_all, require_comparable, take_tasks
    from bitladder.collector import uncollected
    from bitladder.report.text import table_to_text
    from bitladder.report.verdict_tables import verdict_tables
    from bitladder.stages import Staging
    from bitladder.stats.verdict import all_acceptable
    from bitladder.summary.compare import compare_answers
    from bitladder.summary.counted_tasks import counted_losses
    from bitladder.summary.margin import Recovery, default_margin_points, study_margin_points
    from bitladder.unknown import Unknown

    limits = parse_limits(None, max_drop, None, min_recovery)
    with uncollected():
        names = [name.strip() for name in tasks.split(",")] if tasks else None
        first, *others = read_all([base, *rungs], names, cluster)
        if names:
            first = take_tasks(first, names)
        require_comparable(first, others)
        own_points = study_margin_points(first.study) if first.study else default_margin_points(None)
        kept = limits.min_recovery_percent
        margin = (limits.max_drop_points or own_points) if kept is None else Recovery(kept)
        unasked = Unknown(kind="not_asked")  # of a study that asks in stages
        answers = {
            one.name: {task: one.outcomes.get(task, unasked) for task in first.outcomes} for one in (first, *others)
        }
        staged = bool(first.study) and all(one.staged == first.staged for one in others)
        staging = Staging.of(first.study) if first.study and staged else None
        compared = compare_answers(first.groups, answers, first.name, margin, staging)
    found = (note for one in (first, *others) for note in one.notes)
    compared = compared.model_copy(update={"notes": tuple(dict.fromkeys((*found, *compared.notes)))})
    if json_output:
        typer.echo(compared.model_dump_json(indent=2))
    else:
        for note in compared.notes:
            typer.echo(f"note: {note}", err=True)
        for table in verdict_tables(compared):
            typer.echo(f"{table.title}\n\n{table_to_text(table)}\n")
    refused = per_task and any(counted_losses(rung) for rung in compared.others)
    if refused or not all_acceptable(rung.aggregate.verdict for rung in compared.others):
        raise typer.Exit(1)
