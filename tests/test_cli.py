"""The command line: help, exit codes, one-line errors, answers on stdout and the rest on stderr."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest
import typer
from typer.core import TyperGroup

from bitladder.cli import main
from bitladder.cli.progress import libraries_on_stderr
from bitladder.errors import UserError
from bitladder.executors.forkserver import ForkServer
from bitladder.records import Settings
from bitladder.results.store import load_results
from bitladder.study.settings import _OF_COMMAND, Command
from replay import RUNGS, write_replay

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = (
    "",
    "study",
    "quantize",
    "audit",
    "report",
    "recommend",
    "verdict",
    "diff",
    "compare",
    "merge",
    "pack",
    "publish",
)


@dataclass(frozen=True)
class Ran:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def bitladder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs the entry point in this process."""

    def run(*arguments: str) -> Ran:
        for name, value in {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["bitladder", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.run()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, captured.out, captured.err)

    return run


H100 = Path(__file__).parent / "h100" / "smollm2-135m.tar.gz"


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_golden(command: str, flag: str, bitladder: Callable[..., Ran]) -> None:
    ran = bitladder(*command.split(), flag)
    golden = GOLDEN / f"help{'-' if command else ''}{command}.txt"
    text = "\n".join(line.rstrip() for line in ran.stdout.splitlines()) + "\n"
    if os.environ.get("BITLADDER_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert ran.returncode == 0
    assert ran.stderr == ""
    assert text == golden.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("study builtin:smollm2-135n", "unknown built-in model 'builtin:smollm2-135n'; nearest: builtin:smollm2-135m"),
        ("study builtin:smollm2-135m --rungs bf16,nf5", "unknown rung 'nf5'; nearest: nf4"),
        ("study builtin:smollm2-135m --suite papper", "unknown suite 'papper'; nearest: paper"),
        ("study builtin:smollm2-135m --device gpu", "--device: found 'gpu', expected auto, cpu, cuda or cuda:N"),
        ("study builtin:smollm2-135m --rungs ,", "--rungs: found none, expected one name or several"),
        ("study builtin:smollm2-135m --memory-limit lots", "error: --memory-limit: found 'lots', expected a size with"),
        ("study builtin:smollm2-135m --limit 0", "--limit: found 0, expected 1 or more"),
        ("study builtin:smollm2-135m --limit many", "error: --limit: found 'many', expected a whole number"),
        ("study builtin:smollm2-135m --time-limit-s 0", "error: --time-limit-s: found 0.0, expected more than 0"),
        ("study builtin:smollm2-135m --scenarios batch9", "error: --scenarios: found 'batch9', expected 'batch1' or"),
        ("study --config .", ".: a folder; expected a study.yaml"),
        ("study builtin:smollm2-135m --tasks arc_eazy", "unknown task 'arc_eazy'; nearest: arc_easy"),
        ("study builtin:smollm2-135m --device cuda:9", "device 'cuda:9' is not here; expected auto, cpu"),
        ("study builtin:smollm2-135m --limits arc_easy", "expected task=number pairs"),
        ("study some/model --limits arc=5 --tasks arc_easy", "unknown task in limits: 'arc'; nearest: arc_easy"),
        ("study some/model --tasks arc_eazy", "unknown task 'arc_eazy'; nearest: arc_easy"),
        ("study builtin:smollm2-135m --limits a=x", "error: --limits a: found 'x', expected a whole number"),
        ("study builtin:smollm2-135m --limits a=0", "error: --limits a: found '0', expected 1 or more"),
        ("study builtin:smollm2-135m --limits a=1,a=2", "--limits: found 'a' more than once, expected task=number"),
        ("study builtin:smollm2-135m --requests batch1=x", "--requests: found 'batch1=x', expected a whole number"),
        ("study builtin:smollm2-135m --requests batch1=2=3", "--requests: found 'batch1=2=3', expected a number, or"),
        ("study builtin:smollm2-135m --seed -1", "error: --seed: found -1, expected 0 or more"),
        (
            "study builtin:smollm2-135m --seed 4294967296",
            "--seed: found 4294967296, expected less than 4,294,967,296",
        ),
        ("study builtin:smollm2-135m --add a/b=some/repo", "error: --add: found the name 'a/b'; expected letters"),
        ("study builtin:smollm2-135m --tasks arc_easy --datasets absent", "absent"),
        ("study builtin:smollm2-135m --add fp8", "--add: found 'fp8', expected NAME=REPO_OR_DIR"),
        ("study builtin:smollm2-135m --add nf4=some/repo", "'nf4' is a rung of the ladder"),
        ("study builtin:smollm2-135m --add fp8=./absent", "--add fp8: './absent': no such directory"),
        (
            "study builtin:smollm2-135m --until-decided --only performance",
            "--until-decided: found --only performance, which asks no questions; leave out one of the two",
        ),
        ("study builtin:smollm2-135m --batch-dependence --only performance", "--batch-dependence: found --only perf"),
        (f"recommend {H100}", f"a file; expected the --out folder of `bitladder study`, or of `bitladder merge {H100}"),
        ("study --config absent.yaml", "absent.yaml: no such file"),
        ("study", "no model; expected a Hub id"),
        ("study no/such/model/at/all", "no such directory"),
        ("quantize builtin:smollm2-135m --rung nf9 --out x", "unknown rung 'nf9'; nearest: nf4"),
        ("audit absent", "absent"),
        ("report absent", "absent: no such folder or archive; expected the --out folder"),
        ("recommend absent --max-memory lots", "expected a size with its unit such as 2GiB"),
        ("recommend absent --max-memory 2", "--max-memory: found '2', expected a size with its unit such as 2GiB"),
        ("recommend absent", "absent: no such folder or archive; expected the --out folder"),
        ("compare absent", "absent: no such folder or archive; expected the --out folder"),
        (
            "verdict absent other",
            "absent: no such folder; expected a study's, DIR:RUNG of one, or lm-eval's --output_path",
        ),
        ("diff absent other", "absent: no such folder"),
        ("merge absent --out merged", "absent: no such folder"),
        ("pack absent", "absent: no such folder or archive; expected the --out folder"),
        ("publish absent --repo a/b", "absent: no such directory"),
        ("publish absent --repo b", "--repo: found 'b', expected ORG/NAME"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: str, says: str, tmp_path: Path, bitladder: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ForkServer, "start", lambda server: None)  # no worker is needed to find it
    out = ("--out", str(tmp_path / "out")) if arguments.startswith("study") else ()
    ran = bitladder(*arguments.split(), *out)
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    lines = ran.stderr.strip().splitlines()
    assert says in lines[-1]
    assert lines[-1].startswith("error: ")
    assert all(line.endswith(" ...") for line in lines[:-1]), "before it there is nothing but progress"
    assert "timing" not in ran.stderr, "it is told before what takes long"


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("bitladder.auditing.audit", "audit {model} --json"),
        ("bitladder.quantization.quantize", "quantize {model} --rung nf4 --out new"),
        ("bitladder.publish.publish_checkpoint", "publish {model} --repo a/b --json"),
        ("bitladder.study.run.run_study", "study {model} --json"),
        ("bitladder.cli.dry_run.prepare", "study {model} --dry-run --json"),
    ],
)
def test_what_a_library_prints_is_not_in_the_output(
    function: str, arguments: str, tiny_llama: Path, bitladder: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPTQModel greets with a picture, where ``--json`` would be read by a machine."""

    def greet(*_: object, **__: object) -> None:
        print("welcome")
        raise UserError("not today")

    monkeypatch.setattr(function, greet)
    ran = bitladder(*arguments.format(model=tiny_llama).split())
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.endswith("welcome\nerror: not today\n")


def test_nor_what_its_child_processes_print(capfd: pytest.CaptureFixture[str]) -> None:
    print("one result")
    with libraries_on_stderr():
        print("welcome", flush=True)
        subprocess.run(["echo", "compiling"], check=True)
    print("another")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("one result\nanother\n", "welcome\ncompiling\n")


def test_nor_what_is_left_in_buffers() -> None:
    """Python's of one who holds the standard output itself, and C's: both wait, since the output is no terminal."""
    code = (
        "import ctypes, sys; from bitladder.cli.progress import libraries_on_stderr\nmine = sys.stdout\n"
        "with libraries_on_stderr():\n    mine.write('python\\n'); ctypes.CDLL(None).printf(b'c\\n')\nprint('result')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert (ran.stdout, sorted(ran.stderr.split())) == ("result\n", ["c", "python"])


@pytest.mark.parametrize("missing", ["altair", "vl_convert"])
def test_a_study_keeps_its_answer_without_what_draws_the_report(
    missing: str, tmp_path: Path, bitladder: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_replay(tmp_path / "study", rungs={"bf16": RUNGS["bf16"]})
    monkeypatch.setattr("bitladder.study.run.run_study", lambda *_, **__: load_results(directory))
    for name in [name for name in sys.modules if name.startswith(("altair", "bitladder.report."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    ran = bitladder("study", "builtin:smollm2-135m", "--out", str(directory))
    assert ran.returncode == 1
    assert ran.stdout.startswith("Stay with bf16 for now: nothing else could be compared with it.")
    said = f"a report is drawn with {missing}, which can't be imported here; install it (pip)"
    assert ran.stderr == f"no report: {said}; then run `bitladder report {directory}`\n"
    ran = bitladder("report", str(directory))
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", f"error: {said}\n")


@pytest.mark.parametrize(("reason", "told"), [("disturbed: a step took long", True), ("killed", False)])
def test_a_study_that_was_disturbed_says_what_to_do(
    reason: str, told: bool, tmp_path: Path, bitladder: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_replay(tmp_path, rungs={"bf16": RUNGS["bf16"]}, ends={("bf16", "batch1"): ("failed", reason)})
    monkeypatch.setattr("bitladder.study.run.run_study", lambda *_, **__: load_results(directory))
    monkeypatch.setattr("bitladder.report.write_report", Mock(side_effect=UserError("no room")))
    ran = bitladder("study", "builtin:smollm2-135m", "--out", str(directory))
    assert ran.returncode == 1
    assert f"not measured: bf16, batch1: failed: {reason}\n" in ran.stderr
    advice = "by the same command, where the machine is otherwise idle; where it can't be, --only accuracy"
    assert (advice in ran.stderr) == told


def test_a_closed_output_is_no_bug(tmp_path: Path) -> None:
    command = f"{sys.executable} -m bitladder audit {tmp_path / 'missing'} --json"
    for closed in (">&-", "2>&-"):
        ran = subprocess.run(f"{command} {closed}", shell=True, capture_output=True, text=True, check=False)
        assert (ran.returncode, "Traceback" in ran.stderr) == (2, False)


def test_a_full_disk_behind_the_output_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `print` meets it, which names no file."""

    def write(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bitladder.cli.main.app", write)
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no space left where the output goes; make room, or send it elsewhere\n"


@pytest.mark.parametrize("place", ["a-file/x", "x" * 300])
def test_a_place_that_cannot_be_is_one_line(place: str, tmp_path: Path, bitladder: Callable[..., Ran]) -> None:
    (tmp_path / "a-file").touch()
    ran = bitladder("study", "builtin:smollm2-135m", "--out", str(tmp_path / place))
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert str(tmp_path) in line
    assert line.endswith("expected a place to read and write in")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize("command", ["study builtin:smollm2-135m --out", "pack STUDY --out"])
def test_a_place_that_takes_no_files_is_one_line(command: str, tmp_path: Path, bitladder: Callable[..., Ran]) -> None:
    write_replay(tmp_path, rungs={"bf16": RUNGS["bf16"]})
    ran = bitladder(*command.replace("STUDY", str(tmp_path)).split(), "/proc/out")
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr == "error: /proc/out: can't be made; expected a place to read and write in\n"


def test_unknown_flag_is_exit_2(bitladder: Callable[..., Ran]) -> None:
    ran = bitladder("recommend", "--max-memmory", "2GiB")
    assert ran.returncode == 2
    assert "--max-memory" in ran.stderr


def test_a_bug_keeps_its_traceback() -> None:
    code = (
        "import sys, bitladder.results.store, bitladder.cli.main as main\n"
        "def broken(directory): raise RuntimeError('ours')\n"
        "bitladder.results.store.load_results = broken\n"
        "sys.argv = ['bitladder', 'recommend', '.']\n"
        "main.run()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 70
    assert "RuntimeError: ours" in ran.stderr
    assert "bug in bitladder" in ran.stderr


def test_an_interrupted_command_says_how_to_go_on(
    bitladder: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitladder.results import store

    def interrupted(directory: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "load_results", interrupted)
    ran = bitladder("recommend", ".")
    assert (ran.returncode, ran.stderr) == (130, "interrupted; run the same command again to go on\n")


def test_a_shell_completes_commands_and_flags(bitladder: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_BITLADDER_COMPLETE", "complete_bash")
    for words, place, found in (
        ("bitladder re", "1", "report\nrecommend"),
        ("bitladder study --max-d", "2", "--max-drop"),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", place)
        assert (bitladder().stdout.strip()) == found


def test_version(bitladder: Callable[..., Ran]) -> None:
    from bitladder import __version__

    assert bitladder("--version").stdout == f"bitladder {__version__}\n"


def test_public_names_are_all_there() -> None:
    import bitladder

    for name in bitladder.__all__:
        assert getattr(bitladder, name)


def test_every_flag_of_study_is_a_key_and_every_setting_a_flag() -> None:
    """The help says of study.yaml: keys are these flags' names."""
    group = typer.main.get_command(main.app)
    assert isinstance(group, TyperGroup)
    command = group.commands["study"]
    flags = {param.name for param in command.get_params(typer.Context(command))} - {"config", "help"}
    assert flags == Settings.model_fields.keys() | set(_OF_COMMAND)


def test_every_setting_says_what_it_is() -> None:
    for name, field in (Settings.model_fields | Command.model_fields).items():
        assert field.description, name
