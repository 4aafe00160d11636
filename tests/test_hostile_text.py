"""Names and texts from outside through everything that shows them: none commands, none poses as something else."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table as RichTable

from bitladder.cli.main import run
from bitladder.cli.terminal import PrintableStream, Terminal, printable_streams
from bitladder.records import TaskGroup
from bitladder.report import write_report
from bitladder.report.table import Column, Table, number_cell, text_cell, to_csv
from bitladder.results.store import Store
from bitladder.text.words import escape, one_line, printable
from lm_eval_logs import LoggedTask, write_logs
from replay import RUNGS, write_replay
from replay_outcomes import TaskReplay

COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffe\uffff]")
NAMES = {
    "escape": "\x1b]0;owned\x07\x1b[2J\x1b[31mred",
    "carriage return": "real\rPASS: fine",
    "bell and null": "a\x07\x00b",
    "c1": "a\x9b31mred",
    "turned": "gpj.\u202efdp\u2066",
    "no character": "a\ufffeb\uffff",
    "formula": '=HYPERLINK("http://evil.example/";"x")',
    "plus": "+1+cmd|' /C calc'!A0",
    "minus": "-2+3+cmd|' /C calc'!A0",
    "at": "@SUM(A1:A9)",
    "after a separator": "a;=1+1",
    "tab": "\t=1+1",
    "html": "</td></script><script>alert(1)</script><img src=http://evil.example/a onerror=alert(1)>",
    "markdown": "|`![i](http://evil.example/a.png) [l](javascript:alert(1)) ![r][r]",
    "reference": "[r]: http://evil.example/",
    "lines": "one\n# heading\n| a |\n|---|",
    "rich markup": "[bold red]x[/nope]",
    "template": "{{ ''.__class__ }}{% raw %}",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each name is a task's, and a reason why a measurement failed or a rung was refused."""
    folder = tmp_path_factory.mktemp("hostile") / "study"
    tasks = tuple(TaskReplay(name, "choice", 40, 0.8) for name in NAMES.values())
    groups = tuple(
        TaskGroup(name=name, title=name, tasks=(name,), pooling="documents", in_aggregate=True)
        for name in NAMES.values()
    )
    everything = " ".join(NAMES.values())
    rungs = {name: RUNGS[name] for name in ("bf16", "nf4", "fp4")}
    ends = {("nf4", "batch1"): ("failed", everything)}
    broken = {"fp4": ("refused", everything)}
    return write_replay(folder, tasks=tasks, groups=groups, rungs=rungs, ends=ends, broken_rungs=broken)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report(study: Path) -> Path:
    write_report(study)
    return study / "report"


def shown(name: str) -> str:
    return " ".join(printable(" ".join(name.split())).split())


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_in_csv_begins_no_formula(report: Path, kind: str) -> None:
    cells = {
        cell
        for path in report.glob("*.csv")
        for row in csv.reader(io.StringIO(path.read_text(), newline=""))
        for cell in row
    }
    assert not any(COMMANDS.search(cell) for cell in cells)
    named = [cell for cell in cells if one_line(NAMES[kind]) in cell.replace("'", "") or NAMES[kind] in cell]
    named += [cell for cell in cells if cell.replace("'", "") == one_line(NAMES[kind]).replace("'", "")]
    assert named
    for cell in cells:
        for part in cell.split(";"):
            assert not re.match(r"\s*[=+\-@](?!\d+(\.\d+)?\s*$)", part) or _is_number(part), cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def test_numbers_stay_numbers_in_csv() -> None:
    columns = (Column("a"), Column("=b", numeric=False), Column("c", numeric=False))
    rows = ((number_cell(-1.5, str), text_cell("-1.5"), text_cell("-1.5 points; -2; =1")),)
    header, row = csv.reader(io.StringIO(to_csv(Table("t", "t", columns, rows))))
    assert header == ["a", "a low", "a high", "'=b", "c", "reasons"]
    assert row == ["-1.5", "", "", "-1.5", "'-1.5 points; -2; '=1", ""]


def test_the_report_has_no_controls_and_one_script_of_ours(report: Path) -> None:
    for path in report.iterdir():
        if path.suffix != ".png":
            assert not COMMANDS.search(path.read_text()), path.name
    page = (report / "report.html").read_text()
    assert page.count("<script>") == page.count("</script>") == 2
    assert "<img src=http" not in page
    assert "script-src &#39;sha256-" in page


def test_markdown_has_no_links_images_or_blocks_of_names(report: Path) -> None:
    text = (report / "report.md").read_text()
    images = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert images and all(re.fullmatch(r"[\w-]+\.png", place) for place in images)
    assert not re.search(
        r"(?<!\\)<(?!/?(?:details|summary)>)|javascript:(?<!\]\\\(javascript:)|^\[r\]:|^# heading", text, re.MULTILINE
    )
    assert "][r]" not in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("~~~", r"\~~~"),
        ("===", r"\==="),
        ("> a", r"\> a"),
        ("-4.33 [a, b]", "-4.33 [a, b]"),
        ("[a]: b", r"\[a]: b"),
        ("![a](b)", r"![a]\(b)"),
        ("a\x1b", r"a\\u001b"),
    ],
)
def test_escaped_markdown(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """Exit code and all that a command shows."""
    monkeypatch.setattr(sys, "argv", ["bitladder", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


def test_commands_on_a_study(study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        ("recommend", str(study)),
        ("recommend", str(study), "--json"),
        ("verdict", f"{study}:bf16", f"{study}:nf4"),
        ("verdict", f"{study}:bf16", f"{study}:nf4", "--json"),
        ("diff", str(study), "nf4"),
    ):
        code, text = command(capsys, monkeypatch, *arguments)
        assert code in (0, 1) and not COMMANDS.search(text), arguments
        assert "\\u001b" in text or "recommend" not in arguments
        if "--json" in arguments:
            start = text.index("{")
            json.JSONDecoder().raw_decode(text[start:])


def test_the_plan(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bitladder.cli.dry_run import show_plan

    with printable_streams():
        show_plan(Store(study).read_study(), (), {})
    text = capsys.readouterr().out
    assert not COMMANDS.search(text) and "\\u001b]0;owned" in text and "[bold red]x[/nope]" in text


@pytest.mark.parametrize("kind", NAMES)
def test_an_error_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name = NAMES[kind].replace("\x00", "").replace("/", "")
    for arguments in (
        ("audit", str(tmp_path / name)),
        ("recommend", str(tmp_path / name)),
        ("verdict", str(tmp_path / name), "other"),
        ("study", f"x{name}", "--batch-size", f"x{name}"),
        ("quantize", "builtin:smollm2-135m", "--rung", f"x{name}", "--out", str(tmp_path / "out")),
    ):
        code, text = command(capsys, monkeypatch, *arguments)
        assert code == 2 and not COMMANDS.search(text), (arguments, text)
        assert text.startswith("error: ") and text.count("\n") == 1


def test_logs_of_hostile_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name.replace("/", "").replace("\x00", "") for name in NAMES.values() if "\n" not in name]
    for folder in ("base", "other"):
        write_logs(tmp_path / folder, [LoggedTask(name, {("acc", "none"): [1.0] * 30}) for name in names])
    code, text = command(capsys, monkeypatch, "verdict", str(tmp_path / "base"), str(tmp_path / "other"))
    assert code == 1 and not COMMANDS.search(text) and "\\u001b]0;owned" in text


def test_a_bug_and_what_libraries_print(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        print("printed \x1b[2J", file=sys.stderr)
        raise AssertionError("a\x1b]0;owned\x07")

    monkeypatch.setattr("bitladder.results.store.load_results", fail)
    code, text = command(capsys, monkeypatch, "recommend", "x")
    assert code == 70 and not COMMANDS.search(text)
    assert "printed \\u001b[2J" in text and "a\\u001b]0;owned\\u0007" in text


def test_what_rich_draws_keeps_its_own_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    table = RichTable()
    table.add_column(style="bold")
    table.add_row("a\x1b]0;owned\x07")
    with printable_streams():
        Terminal().print(table)
    assert "\x1b[1m" in stream.getvalue() and "\x1b]" not in stream.getvalue()
    assert "\\u001b]0;owned" in stream.getvalue()


def test_progress_bars_may_move_the_cursor_and_nothing_more() -> None:
    stream = io.StringIO()
    written = PrintableStream(stream)
    for text in ("\r 50%", "\n", "\x1b[A", "\n\n\x1b[A\x1b[A", "a\rb", "\x1b[Ax", "\r\r"):
        written.write(text)
    assert stream.getvalue() == "\r 50%\n\x1b[A\n\n\x1b[A\x1b[Aa\\u000db\\u001b[Ax\r\\u000d"
    assert not hasattr(written, "buffer")


@pytest.mark.slow
def test_a_name_that_an_ascii_stream_has_no_letters_for() -> None:
    code = "from bitladder.cli.main import run; run()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "verdict", "\u00e9\x1b", "b"],
        env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        timeout=60,
    )
    assert ran.returncode == 2 and ran.stderr.startswith(b"error: \\xe9\\u001b: no such folder")
