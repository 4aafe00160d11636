"""The report as files: self-contained, inert whatever the names in it, made without torch."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bitladder.cli.results import report_command
from bitladder.decide.recommendation import Limits
from bitladder.errors import BrokenFileError, UserError
from bitladder.report import ResultsFile, write_report
from bitladder.report.output import mark_begun
from bitladder.results.store import Store
from replay import BUILTIN_GROUPS, RUNGS, write_replay

EVIL = "<script>alert(1)</script>"
BREAKOUT = '</script><img src=x onerror="alert(2)">'
TEMPLATE = "{{ 7 * 7 }}"


class Page(HTMLParser):
    """What a browser would run, fetch and show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._within = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts[-1] += data
        elif self._within != "style":
            self.text.append(data)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose names and messages all try to break out of the page."""
    groups = (
        BUILTIN_GROUPS[0].model_copy(update={"title": EVIL}),
        BUILTIN_GROUPS[1].model_copy(update={"title": BREAKOUT}),
        *BUILTIN_GROUPS[2:],
    )
    directory = write_replay(
        tmp_path_factory.mktemp("study"), groups=groups, ends={("fp4", "batch1"): ("failed", f"{BREAKOUT} {TEMPLATE}")}
    )
    store = Store(directory)
    study = store.read_study()
    source = study.source.model_copy(update={"model": EVIL, "note": BREAKOUT})
    store.write_study(study.model_copy(update={"source": source}))
    return directory


@pytest.fixture(scope="module")
def written(directory: Path) -> list[Path]:
    return write_report(directory)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study without performance."""
    return write_replay(tmp_path_factory.mktemp("small"), only="accuracy")


@pytest.fixture(scope="module")
def page(written: list[Path]) -> Page:
    return Page(written[0].read_text())


def test_writes_every_format(directory: Path, written: list[Path]) -> None:
    names = {path.name for path in written}
    assert written[0] == directory / "report" / "report.html"
    assert {"report.md", "results.json", "table1.csv", "table2.csv", "table3.csv", "table4.csv"} <= names
    assert {f"figure{number}.{kind}" for number in range(1, 7) for kind in ("svg", "png")} <= names
    assert all(path.stat().st_size > 0 for path in written)
    assert (directory / "report" / "figure4.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_inert(page: Page) -> None:
    assert len(page.scripts) == 2
    assert not any("alert(" in script for script in page.scripts[:1])
    assert json.dumps(EVIL)[1:-1] not in page.scripts[1]
    assert [attributes for tag, attributes in page.tags if tag == "img" and attributes["src"] == "x"] == []
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    text = "".join(page.text)
    assert f"Which precision for {EVIL}?" in text
    assert BREAKOUT in text
    assert TEMPLATE in text


def test_page_loads_nothing(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "action", "data"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:image/svg+xml;base64,")), address
    style = next(tag for tag, _ in page.tags if tag == "style")
    assert style and "url(" not in "".join(page.text)


def test_only_the_pages_own_scripts_may_run(page: Page) -> None:
    policy = next(
        attributes["content"] or ""
        for tag, attributes in page.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == " ".join(f"'sha256-{digest}'" for digest in hashes)


def test_charts_are_the_figures_specifications(page: Page) -> None:
    found = re.match(r"const figures = (\{.*\});\n", page.scripts[1])
    assert found
    figures = json.loads(found[1])
    assert list(figures) == [f"figure{number}" for number in range(7)]
    for spec in figures.values():
        assert spec.pop("$schema").startswith("https://vega.github.io/"), "a name that Vega never fetches"
        assert "://" not in json.dumps(spec)
    identities = [attributes.get("id") for _, attributes in page.tags]
    assert all(identities.count(name) == 1 for name in figures)
    assert EVIL in found[1].encode().decode("unicode_escape")


def test_footnotes_lead_somewhere(page: Page) -> None:
    identities = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(identities) == len(set(identities))
    targets = {attributes["href"] for tag, attributes in page.tags if tag == "a" and attributes.get("href")}
    assert len(targets) > 10
    assert {(target or "")[1:] for target in targets} <= set(identities)


def test_markdown_shows_names_as_text(written: list[Path]) -> None:
    text = written[1].read_text()
    assert "# Which precision for \\<script>alert(1)\\</script>?" in text
    assert not re.search(r"(?<!\\)<(?!/?(?:details|summary)>)", text)


def test_results_hold_every_number(directory: Path, written: list[Path]) -> None:
    results = ResultsFile.model_validate_json((directory / "report" / "results.json").read_text())
    rung = results.summary.rung("nf4")
    assert rung
    assert rung.aggregate.difference_points.value == pytest.approx(-100 * 2 / 140)
    assert results.recommendation.verdicts


def test_study_without_performance_says_so(small: Path) -> None:
    written = write_report(small)
    assert {path.name for path in written if path.suffix == ".png"} == {"figure1.png", "figure2.png"}
    text = written[1].read_text()
    assert "This study does not measure the batch size 1." in text
    assert "This study does not measure the largest batch." in text


@pytest.mark.slow
def test_command_needs_no_torch_and_writes_the_same_bytes_again(small: Path, tmp_path: Path) -> None:
    written = write_report(small)
    code = (
        "import sys, typer\n"
        "from bitladder.cli.results import report_command\n"
        "app = typer.Typer()\n"
        "app.command()(report_command)\n"
        "app(standalone_mode=False)\n"
        "print([name for name in ('torch', 'transformers', 'lm_eval', 'bitsandbytes') if name in sys.modules])\n"
    )
    arguments = [sys.executable, "-c", code, str(small), "--out", str(tmp_path)]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout == f"{tmp_path / 'report.html'} and {len(written) - 1} files beside it\n[]\n"
    for first in written:
        assert first.suffix == ".png" or first.read_bytes() == (tmp_path / first.name).read_bytes(), first.name


app = typer.Typer()
app.command()(report_command)


@pytest.mark.slow
def test_report_is_written_again_only_where_something_differs(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    files = write_report(small, out)

    def times() -> list[int]:
        return [path.stat().st_mtime_ns for path in files]

    first = times()
    assert write_report(small, out) == files
    assert times() == first

    (out / "report.md").write_text("altered")
    assert write_report(small, out) == files
    assert "altered" not in (out / "report.md").read_text()
    assert min(times()) > max(first)

    second = times()
    write_report(small, out, Limits(max_drop_points=7.5))
    assert min(times()) > max(second)


def test_limits_decide_and_set_the_margin(small: Path) -> None:
    ran = CliRunner().invoke(app, [str(small), "--json", "--max-drop", "2pt", "--optimize", "memory"])
    paths = [Path(path) for path in json.loads(ran.stdout)]
    assert paths[0] == small / "report" / "report.html"
    assert all(path.is_file() for path in paths)
    results = ResultsFile.model_validate_json((small / "report" / "results.json").read_text())
    assert results.summary.margin_points == 2.0
    assert results.recommendation.limits.optimize == "memory"
    assert "undecided" in paths[1].read_text()


def test_folder_without_a_study_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no study\.json; expected the --out folder"):
        write_report(tmp_path)


def test_a_folder_of_something_else_is_refused_and_one_that_a_killed_report_left_is_not(
    small: Path, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(UserError, match=r"holds report\.html and no report; name a new folder, or one of an earlier"):
        write_report(small, tmp_path)
    with pytest.raises(UserError, match=r"report\.html: a file; expected a new folder"):
        write_report(small, tmp_path / "report.html")
    with pytest.raises(UserError, match="and no report"):
        write_report(small, small)
    assert (tmp_path / "report.html").read_text() == "mine"
    mark_begun(tmp_path)
    assert write_report(small, tmp_path)[0].read_text() != "mine"


def test_broken_record_is_named(tmp_path: Path) -> None:
    directory = write_replay(tmp_path, only="accuracy")
    record = next((directory / "records").glob("*.json"))
    record.write_text(record.read_text()[:100])
    with pytest.raises(BrokenFileError, match=re.escape(record.name) + ".*or delete it and run the same study again"):
        write_report(directory)
    (directory / "study.json").write_text("{")
    with pytest.raises(BrokenFileError, match="restore it from a copy or an archive of `bitladder pack`, or run the"):
        write_report(directory)


def test_a_study_without_the_baseline_has_a_report(tmp_path: Path) -> None:
    page = write_report(write_replay(tmp_path, rungs={"nf4": RUNGS["nf4"]}))[1].read_text()
    assert "no drop is known without bf16" in page
    assert "the baseline is not in the study" in page
