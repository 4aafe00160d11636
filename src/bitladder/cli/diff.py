"""``bitladder diff``: the questions whose answer flipped against the baseline, both ways."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bitladder.summary.flips import Flip

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
    from bitladder.summary.flips import find_flips

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
