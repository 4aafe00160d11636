"""The command line: thin over the Python API. Results on stdout, everything else on stderr.

Exit codes: 0 done, 1 a check or some measurements failed, 2 bad input, 70 a bug of ours, 130 interrupted.
"""

import errno
import logging
import signal
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from bitladder.cli.audit import audit_command
from bitladder.cli.compare import compare_command
from bitladder.cli.diff import diff_command
from bitladder.cli.merge import MergeCommand, merge_command
from bitladder.cli.pack import pack_command
from bitladder.cli.publish import publish_command
from bitladder.cli.quantize import quantize_command
from bitladder.cli.recommend import recommend_command
from bitladder.cli.report import report_command
from bitladder.cli.setting_flags import add_settings_command
from bitladder.cli.study import study_command
from bitladder.cli.surroundings import describe_name, name_in, open_streams, require_names
from bitladder.cli.terminal import printable_streams
from bitladder.cli.verdict import verdict_command
from bitladder.printable import one_line

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
    from bitladder.home import lend_home_to_libraries
    from bitladder.processors import heed_quota

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

    from bitladder.wording import describe_mismatch

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
