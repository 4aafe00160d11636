"""The flags of ``study``, made from `Settings` and `Command`: a setting is named, typed and explained there, once."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

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
