"""``bitladder study``: quantize, audit, measure, report. Its flags are made from `Settings`."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from bitladder.results.store import Results

_FIRST, _LAST = ("out",), ("dry_run", "yes", "json_output")
"""of a command's own flags, where its help has them"""
_CONFIG = Annotated[
    Path | None, typer.Option(help="study.yaml: keys are these flags' names, such as prompt-tokens; flags win.")
]


def add_settings_command(app: typer.Typer, name: str, command: Callable[[Mapping[str, Any]], None]) -> None:
    """Register a command that gets all flags by their settings' names, None where one was not given."""

    class SettingsCommand(TyperCommand):
        """Makes its flags once they are asked for: `bitladder --help` needs no settings, nor what makes them."""

        def get_params(self, ctx: Any) -> list[Any]:
            if not self.params:
                made = typer.main.get_command(_app(command))
                self.params, self.callback = made.params, made.callback
            return super().get_params(ctx)

    app.command(name, cls=SettingsCommand, help=command.__doc__)(_no_parameters)


def _no_parameters() -> None:
    """What typer finds before there are flags."""


def _app(command: Callable[[Mapping[str, Any]], None]) -> typer.Typer:
    def with_flags(**given: Any) -> None:
        command(given)

    with_flags.__signature__ = inspect.Signature(list(_flags()))  # type: ignore[attr-defined]
    with_flags.__doc__ = command.__doc__
    app = typer.Typer(add_completion=False)
    app.command()(with_flags)
    return app


def _flags() -> Iterator[inspect.Parameter]:
    from bitladder.records import Settings
    from bitladder.study.settings import Command

    settings, command = dict(Settings.model_fields), Command.model_fields
    model = settings.pop("model")
    yield _parameter("model", Annotated[str | None, typer.Argument(help=model.description)])
    yield from _of_fields(command, _FIRST)
    yield _parameter("config", _CONFIG)
    yield from _of_fields(settings, settings)
    yield from _of_fields(command, _LAST)


def _of_fields(fields: Mapping[str, "FieldInfo"], names: Iterable[str]) -> Iterator[inspect.Parameter]:
    for name in names:
        key = fields[name].alias or name
        yield _parameter(key, _flag(key.replace("_", "-"), fields[name]))


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag(name: str, field: "FieldInfo") -> Any:
    """How typer takes a setting: a number, a switch or a path as such, anything else as text that `Settings` reads."""
    kind = _kind(field)
    names = [f"--{name}/--no-{name}" if kind is bool and field.default is True else f"--{name}"]
    metavar = "<str>" if kind == list[str] else None
    return Annotated[kind | None, typer.Option(*names, help=_help(field), metavar=metavar)]


def _kind(field: "FieldInfo") -> Any:
    is_union = get_origin(field.annotation) in (Union, UnionType)
    kinds = [one for one in get_args(field.annotation) if one is not NoneType] if is_union else [field.annotation]
    if field.json_schema_extra == {"format": "path"} or kinds == [Path]:
        return Path
    if get_origin(kinds[0]) is dict and get_args(kinds[0])[1] is str:
        return list[str]  # given once for each name
    return kinds[0] if kinds[0] in (bool, int, float) else str


def _help(field: "FieldInfo") -> str:
    text, default = field.description or "", field.get_default(call_default_factory=True, validated_data={})
    if "(default: " in text or not default or default is True:
        return text
    return f"{text} (default: {','.join(default) if isinstance(default, tuple) else default})"


def study_command(given: Mapping[str, Any]) -> None:
    """Quantize MODEL to every rung, audit, measure accuracy and performance, and say which rung to deploy."""
    from bitladder.cli.progress import TerminalProgress, libraries_on_stderr
    from bitladder.machine.libraries import forbid_hub_kernels
    from bitladder.records.study import ASKED_FROM_S
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
    from bitladder.cli.results import print_recommendation
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
        print_recommendation(answer.summary, answer.recommendation)
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
