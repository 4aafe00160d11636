"""Commands on answers: ``verdict`` of lm-eval's logs, and ``diff`` of the questions whose answer flipped."""

from typing import TYPE_CHECKING, Annotated

import typer

from bitladder.cli.results import MaxDrop, MinRecovery, parse_limits

if TYPE_CHECKING:
    from bitladder.decide.recommendation import Limits
    from bitladder.summary.comparison import Compared, Flip


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
    from bitladder.report.table import table_to_text
    from bitladder.report.verdict_tables import verdict_tables
    from bitladder.stats.verdict import all_acceptable
    from bitladder.summary.row import counted_losses

    limits = parse_limits(None, max_drop, None, min_recovery)
    names = [name.strip() for name in tasks.split(",")] if tasks else None
    compared = _compare([base, *rungs], names, cluster, limits)
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


def _compare(places: list[str], tasks: list[str] | None, cluster: str | None, limits: "Limits") -> "Compared":
    """Verdicts on the answers at ``places``, the first of which is the baseline; with what is to be noted of each."""
    from bitladder.accuracy.answers import read_all, require_comparable, take_tasks
    from bitladder.machine.host import uncollected
    from bitladder.records.base import Unknown
    from bitladder.results.stages import Staging
    from bitladder.summary.comparison import compare_answers
    from bitladder.summary.metrics import Recovery, default_margin_points, study_margin_points

    with uncollected():
        first, *others = read_all(places, tasks, cluster)
        if tasks:
            first = take_tasks(first, tasks)
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
    return compared.model_copy(update={"notes": tuple(dict.fromkeys((*found, *compared.notes)))})


_SHORTEST_QUESTION = 60
"""characters; what stands before, such as worked examples, is left out of what people read"""


def diff_command(
    directory: Annotated[
        str,
        typer.Argument(metavar="DIR", help="The --out folder of `bitladder study`, or the baseline's lm-eval logs."),
    ],
    rung: Annotated[str, typer.Argument(metavar="RUNG", help="A rung of the study, or another folder of logs.")],
    tasks: Annotated[
        str | None, typer.Option("--tasks", "--task", help="Only these tasks or groups, comma-separated.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print all flips as JSON, with whole prompts.")] = False,
) -> None:
    """Show the questions whose answer flipped against the baseline: prompt, choices, their probabilities, both answers.

    Probabilities are over the choices alone. Generated answers are shown as they are.
    """
    import json

    from bitladder.accuracy.answers import answers_to_both, read_pair, require_comparable, take_tasks
    from bitladder.summary.comparison import find_flips

    names = [name.strip() for name in tasks.split(",")] if tasks else None
    base, other = read_pair(directory, rung, names)
    for note in dict.fromkeys((*base.notes, *other.notes)):
        typer.echo(f"note: {note}", err=True)
    if names:
        base = take_tasks(base, names)
    require_comparable(base, [other])
    base, other = answers_to_both(base, other), answers_to_both(other, base)
    flips = [
        flip
        for name, outcome in base.outcomes.items()
        for flip in find_flips(name, outcome, other.outcomes[name], base.read_documents(name))
    ]
    rolling = [name for name, one in base.outcomes.items() if one.output_type == "loglikelihood_rolling"]
    if rolling:
        typer.echo(f"note: {', '.join(rolling)}: perplexities, in which no answer can flip", err=True)
    if json_output:
        typer.echo(json.dumps([flip.model_dump(mode="json") for flip in flips], indent=2, ensure_ascii=False))
        return
    answered = [outcome for outcome in base.outcomes.values() if outcome.output_type != "loglikelihood_rolling"]
    documents = sum(len(outcome.documents) for outcome in answered)
    lost, gained, changed = ([flip for flip in flips if flip.kind == kind] for kind in ("lost", "gained", "changed"))
    typer.echo(
        f"{other.name} against {base.name}, {documents:,} documents: {len(lost):,} lost, {len(gained):,} gained, "
        f"{len(changed):,} with another choice that scores the same"
    )
    for flip in (*lost, *gained, *changed):
        typer.echo(f"\n{_shown(flip, base.name, other.name)}")


def _shown(flip: "Flip", baseline: str, rung: str) -> str:
    from bitladder.units import format_percent

    lines = [f"## {flip.task}, {flip.kind} ({flip.doc_hash[:12]})", "", _question(flip.prompt), ""]
    before, after = flip.baseline, flip.rung
    if flip.choices is None or before.probabilities is None or after.probabilities is None:
        lines.append(f"target: {flip.target.strip()}")
        for name, answer in ((baseline, before), (rung, after)):
            text = "(nothing was generated)" if answer.text is None else answer.text.strip()
            lines += ["", f"{name}, score {answer.score:g}:", *(f"    {line}" for line in text.splitlines())]
        return "\n".join(lines)
    width = max(len(baseline), len(rung), 9)
    lines.append(f"{baseline:>{width}}  {rung:>{width}}")
    pairs = zip(flip.choices, before.probabilities, after.probabilities, strict=True)
    for index, (choice, one, other) in enumerate(pairs):
        shares = (
            f"{'> ' if index == answer.choice else ''}{format_percent(100 * share)}%"
            for share, answer in ((one, before), (other, after))
        )
        right = "right:" if choice == flip.target else "      "
        lines.append("  ".join([*(f"{share:>{width}}" for share in shares), right, choice.strip()]))
    return "\n".join(lines)


def _question(prompt: str) -> str:
    """The end of a prompt, from a blank line before its last characters."""
    start = prompt.rfind("\n\n", 0, max(0, len(prompt) - _SHORTEST_QUESTION))
    return prompt if start < 0 else f"[...]{prompt[start + 1 :]}"
