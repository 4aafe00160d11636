"""The command line: thin over the Python API. Results on stdout, everything else on stderr."""

import errno
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bitladder.cli.checkpoints import audit_command, publish_command, quantize_command
from bitladder.cli.logs import diff_command, verdict_command
from bitladder.cli.results import (
    MergeCommand,
    compare_command,
    merge_command,
    pack_command,
    recommend_command,
    report_command,
)
from bitladder.cli.study import add_settings_command, study_command
from bitladder.cli.terminal import printable_streams
from bitladder.errors import UserError
from bitladder.text.words import one_line

_PLACES = ("HOME", "BITLADDER_CACHE", "XDG_CACHE_HOME", "HF_HOME", "TMPDIR")
_NAMES = ("stdin", "stdout", "stderr")


def open_streams() -> None:
    """Open on nothing what of the three is closed, and let no character fail that the terminal can't show.

    A file that is opened next gets the lowest free number: without this a pipe or a log would become a child process's
    standard output.
    """
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets this number, the lowest that is free
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # ``\\u2026`` for what the encoding lacks, and ``\\udce9`` for a byte of a name that isn't UTF-8
            stream.reconfigure(errors="backslashreplace")


def require_names() -> None:
    """Raise UserError where the working folder was deleted, and for a name that is no text: none can stand in a record.

    A name is bytes to the system; what of it isn't in the encoding of names, UTF-8 on most machines, Python keeps as
    lone surrogates, which no JSON takes.
    """
    try:
        folder = str(Path.cwd())
    except FileNotFoundError:
        raise UserError("the folder that this runs in was deleted; change to another one") from None
    places = {"the folder that this runs in": folder, **{name: os.environ.get(name, "") for name in _PLACES}}
    for what, name in (*(("argument", argument) for argument in sys.argv[1:]), *places.items()):
        if not is_text(name):
            raise UserError(f"{what} {describe_name(name)}")


def is_text(name: str) -> bool:
    """Whether a name holds nothing that its encoding lacks."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def name_in(error: UnicodeEncodeError) -> str:
    """The name that could not be written, of a whole record what stands there between quotes."""
    text, start = error.object, error.start
    end = text.find('"', start)
    return text[text.rfind('"', 0, start) + 1 : end if end >= 0 else len(text)]


def describe_name(name: str) -> str:
    """A name that is no text, readable, and what to do about it."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        return f"'{shown}': not UTF-8; rename it, or give a link of another name"
    shown = name.encode("ascii", "backslashreplace").decode("ascii")
    return f"'{shown}': not {encoding}, the encoding of names here; set LC_ALL=C.UTF-8, or give a link of another name"


EXIT_BAD_INPUT, EXIT_BUG, EXIT_INTERRUPTED = 2, 70, 130

app = typer.Typer(
    name="bitladder",
    help=(
        "Which numeric precision should I deploy this language model in?\n\n"
        "bitladder study builtin:smollm2-135m --out study\n\n"
        "bitladder recommend study --max-memory 2GiB --max-drop 1pt\n\n"
        "bitladder verdict logs/bf16 logs/nf4 --max-drop 1pt\n\n"
        "bitladder quantize meta-llama/Llama-3.2-1B --rung nf4 --out llama-nf4\n\n"
        "bitladder audit llama-nf4\n\n"
        "bitladder publish llama-nf4 --repo my-org/llama-nf4"
    ),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
add_settings_command(app, "study", study_command)
app.command("report")(report_command)
app.command("recommend")(recommend_command)
app.command("verdict")(verdict_command)
app.command("diff")(diff_command)
app.command("compare")(compare_command)
app.command("quantize")(quantize_command)
app.command("audit")(audit_command)
app.command("merge", cls=MergeCommand)(merge_command)
app.command("pack")(pack_command)
app.command("publish")(publish_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from bitladder.package import __version__

        typer.echo(f"bitladder {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    require_names()


def _interrupt(*_: object) -> None:
    """A study that is told to end says how it goes on, as after Ctrl-C."""
    raise KeyboardInterrupt


def run() -> None:
    """Entry point: runs a command and turns what it raised into an exit code."""
    open_streams()
    with printable_streams():
        _run()


def _run() -> None:
    from bitladder.errors import UserError, describe_machine_error
    from bitladder.files import lend_home_to_libraries
    from bitladder.machine.host import heed_quota

    logging.basicConfig(format="%(message)s")
    logging.getLogger("bitladder").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _interrupt)
    heed_quota()
    lend_home_to_libraries()
    try:
        code = app(prog_name="bitladder", standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except UserError as error:
        _end(EXIT_BAD_INPUT, f"error: {one_line(str(error))}")
    except (KeyboardInterrupt, typer.Abort):
        _end(EXIT_INTERRUPTED, "interrupted; run the same command again to go on")
    except UnicodeEncodeError as error:  # of a file's name inside a folder that was named
        if error.encoding not in ("utf-8", sys.getfilesystemencoding()):
            _end_with_bug()
        _end(EXIT_BAD_INPUT, f"error: file {describe_name(name_in(error))}")
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            _end(EXIT_BAD_INPUT, "error: no space left where the output goes; make room, or send it elsewhere")
        said = describe_machine_error(error)
        if said is None:
            _end_with_bug()
        _end(EXIT_BAD_INPUT, f"error: {one_line(said)}")
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "show"):  # the parser's own usage errors
            _show_usage_error(error)
            sys.exit(EXIT_BAD_INPUT)
        _end_with_bug()
    sys.exit(code if isinstance(code, int) else 0)


def _show_usage_error(error: Any) -> None:
    from pydantic import ValidationError

    from bitladder.text.words import describe_mismatch

    cause, flag = error.__cause__, getattr(error, "param", None)
    if isinstance(cause, ValidationError) and flag is not None:
        typer.echo(f"error: {flag.opts[0]}: {describe_mismatch(cause.errors()[0])}", err=True)
    else:
        error.message = one_line(error.message)  # shown by a console of typer's
        error.show()


def _end_with_bug() -> NoReturn:
    traceback.print_exc()
    _end(EXIT_BUG, "this is a bug in bitladder: please report it with the lines above")


def _end(code: int, line: str) -> NoReturn:
    typer.echo(line, err=True)
    sys.exit(code)
