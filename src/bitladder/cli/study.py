"""``bitladder study``: quantize, audit, measure, report."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from bitladder.store import Results


def study_command(given: Mapping[str, Any]) -> None:
    """Quantize MODEL to every rung, audit, measure accuracy and performance, and say which rung to deploy."""
    from bitladder.cli.libraries import libraries_on_stderr
    from bitladder.cli.progress import TerminalProgress
    from bitladder.defaults import ASKED_FROM_S
    from bitladder.hub_kernels import forbid_hub_kernels
    from bitladder.study.settings import load_command

    flags = {name: value for name, value in given.items() if name != "config"}
    command, settings = load_command(given["config"], flags | {"add": flags["add"] or None})
    if not settings.trust_remote_code:
        forbid_hub_kernels()
    if command.dry_run:
        from bitladder.cli.dry_run import print_plan

        print_plan(settings, command.out, command.json_output)
        return
    from bitladder.study.run import run_study

    with libraries_on_stderr(), TerminalProgress() as progress:
        results = run_study(settings, command.out, progress, asked_from_s=None if command.yes else ASKED_FROM_S)
    _answer(results, command.json_output)


def _answer(results: "Results", json_output: bool) -> None:
    """Write the report and print the answer; exit 1 where a rung, a measurement or the report did not end well."""
    from bitladder.cli.recommend import print_recommendation
    from bitladder.decide import recommend
    from bitladder.errors import UserError
    from bitladder.report import ResultsFile, write_report
    from bitladder.summary.summarize import summarize

    place, unwritten = results.directory / "report" / "results.json", ""
    try:
        written = write_report(results.directory)
        answer = ResultsFile.model_validate_json(place.read_text(encoding="utf-8"))
    except UserError as error:  # what took hours stands
        unwritten = str(error)
        summary = summarize(results)
        answer = ResultsFile(summary=summary, recommendation=recommend(summary))
    if json_output:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        print_recommendation(answer.recommendation)
        if not unwritten:
            typer.echo(f"\nreport: {written[0]}")
    failures = [failure for rung in answer.summary.rungs for failure in rung.failures]
    for failure in failures:
        typer.echo(f"not measured: {failure}", err=True)
    if failures and any(record.was_disturbed for record in results.records):
        typer.echo(
            "what was disturbed is measured again by the same command, where the machine is otherwise idle; where it "
            "can't be, --only accuracy measures what needs no time of its own",
            err=True,
        )
    if unwritten:
        typer.echo(f"no report: {unwritten}; then run `bitladder report {results.directory}`", err=True)
    if unwritten or failures or any(rung.status != "ok" for rung in answer.summary.rungs):
        raise typer.Exit(1)
