"""The report's tables, as text against golden files and cell by cell against the summary.

``BITLADDER_UPDATE_GOLDEN=1 pytest tests/test_report_tables.py`` writes the golden files anew; read their diff.
"""

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from bitladder.decide import recommend
from bitladder.records.base import Unknown
from bitladder.report.accuracy_tables import accuracy_tables
from bitladder.report.content import Report, compose
from bitladder.report.output import to_markdown
from bitladder.report.provenance_tables import checkpoint_table
from bitladder.report.table import Cell, Table, footnote_letter, to_csv
from bitladder.results.store import load_results
from bitladder.summary.summarize import summarize
from bitladder.summary.table import Estimate, Summary
from bitladder.text.words import escape
from bitladder.units import MIB, UNKNOWN
from replay import BUILTIN_GROUPS, BUILTIN_TASKS, RUNGS, write_broken_replay, write_replay
from replay_outcomes import RungReplay

GOLDEN = Path(__file__).parent / "golden"


def eight_rungs() -> dict[str, RungReplay]:
    ladder = ("fp32", "bf16", "fp16", "int8", "int8-t0", "fp4", "nf4", "nf4-dq")
    return {name: RUNGS.get(name) or replace(RUNGS["fp4"], lost=0.04) for name in ladder}


def read(directory: Path) -> tuple[Summary, Report]:
    results = load_results(directory)
    summary = summarize(results)
    return summary, compose(results, summary, recommend(summary))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Summary, Report]]:
    root = tmp_path_factory.mktemp("studies")
    return {
        "builtin": read(write_replay(root / "builtin", divergence=True)),
        "paper_gpu": read(write_replay(root / "paper_gpu", suite="paper", rungs=eight_rungs(), gpu=True)),
        "broken": read(write_broken_replay(root / "broken")),
    }


def table(tables: list[Table] | Report, name: str) -> Table:
    return next(found for found in (tables.tables if isinstance(tables, Report) else tables) if found.name == name)


def cell(found: Table, row: str, column: str) -> Cell:
    index = [part.header for part in found.columns].index(column)
    return next(cells[index] for cells in found.rows if cells[0].text == row)


@pytest.mark.parametrize("name", ["builtin", "paper_gpu", "broken"])
def test_markdown_equals_its_golden_file(reports: Mapping[str, tuple[Summary, Report]], name: str) -> None:
    text = to_markdown(reports[name][1])
    golden = GOLDEN / f"report_{name}.md"
    if os.environ.get("BITLADDER_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("name", ["builtin", "paper_gpu", "broken"])
def test_unknown_is_never_a_number_and_always_has_a_reason(
    reports: Mapping[str, tuple[Summary, Report]], name: str
) -> None:
    unknown = 0
    for found in reports[name][1].tables:
        for row in found.rows:
            assert len(row) == len(found.columns)
            for part in row:
                if part.value is None:
                    unknown += 1
                    assert part.text == UNKNOWN and part.reason, (found.name, row[0].text)
                    assert found.footnote_of(part) in [footnote_letter(i) for i in range(len(found.footnotes))]
                else:
                    assert part.text != UNKNOWN
    assert unknown > 0 or name == "builtin"


def test_a_difference_is_bold_only_where_its_paired_interval_excludes_0(
    reports: Mapping[str, tuple[Summary, Report]],
) -> None:
    summary, report = reports["paper_gpu"]
    bold = plain = 0
    for rung in summary.rungs:
        if rung.rung == "bf16":
            continue
        marks = [(task.title, task.difference_points) for task in rung.tasks]
        for title, difference in [*marks, ("Aggregate", rung.aggregate.difference_points)]:
            for name, unit in (("table2", "%"), ("table2-points", "points"), ("table2-recovery", "%")):
                clear = cell(table(report, name), title, f"{rung.rung} ({unit})").mark == "clear"
                assert clear == difference.excludes(0)
                bold, plain = bold + clear, plain + (not clear)
    assert bold > 10
    assert plain > 10


def test_no_interval_means_no_shown_difference() -> None:
    assert not Estimate(value=-9.0, reason="one question").excludes(0)
    assert not Estimate(value=0.0, low=-1.0, high=0.0).excludes(0)
    assert Estimate(value=-2.0, low=-3.0, high=-1.0).excludes(0)


def test_csv_numbers_are_in_the_unit_of_their_header(reports: Mapping[str, tuple[Summary, Report]]) -> None:
    summary, report = reports["builtin"]
    rung = summary.rung("int8")
    scenario = rung.scenario("batch1") if rung else None
    assert rung and scenario
    main, tokens = (
        {row["Precision"]: row for row in csv.DictReader(io.StringIO(to_csv(table(report, name))))}
        for name in ("table3", "table3c")
    )
    memory, latency, first = (scenario.metrics[name] for name in ("study_vram_bytes", "latency_s", "ttft_s"))
    assert memory.value and latency.low and first.value and first.high
    assert float(main["int8"]["Average resident memory (MiB)"]) == pytest.approx(memory.value / MIB)
    assert float(main["int8"]["Mean request latency (s) low"]) == latency.low
    assert float(tokens["int8"]["First token (ms)"]) == pytest.approx(first.value * 1000)
    assert float(tokens["int8"]["First token (ms) high"]) == pytest.approx(first.high * 1000)
    loaded = cell(table(report, "checkpoints"), "int8", "Weights in memory (MiB)")
    assert loaded.value == pytest.approx((rung.loaded_bytes or 0) / MIB)
    assert loaded.text == "155.4"


def test_csv_of_unknown_cells_is_empty_with_a_reason(reports: Mapping[str, tuple[Summary, Report]]) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(table(reports["broken"][1], "table4")))))
    fp4 = next(row for row in rows if row["Precision"] == "fp4")
    assert fp4["Throughput (requests/s)"] == fp4["Requests"] == ""
    assert "Requests: fp4: needs 9.1 GiB, 6.0 GiB free" in fp4["reasons"]


def test_the_aggregate_names_its_tasks_and_takes_mmlu_once(reports: Mapping[str, tuple[Summary, Report]]) -> None:
    notes = table(reports["paper_gpu"][1], "table1").notes
    assert any("mean of ARC-Challenge, ARC-Easy, GSM8K, HellaSwag, MMLU." in note for note in notes)


def test_a_task_without_signal_says_so_and_is_compared_nowhere(tmp_path: Path) -> None:
    tasks = (replace(BUILTIN_TASKS[0], right=0.25), *BUILTIN_TASKS[1:])
    _, report = read(write_replay(tmp_path, tasks=tasks))
    for name in ("table2", "table2-points", "table2-recovery"):
        assert cell(table(report, name), "Knowledge (no signal)", table(report, name).columns[1].header).value is None
    assert "mean of Language, Arithmetic." in " ".join(table(report, "table1").notes)


def test_a_task_that_is_not_asked_yet_is_not_called_one_without_signal(tmp_path: Path) -> None:
    """Nor one that the baseline alone has yet to answer."""
    names = [task.name for task in BUILTIN_TASKS]
    absent = {("bf16", names[0]), *((rung, names[1]) for rung in RUNGS)}
    summary, report = read(write_replay(tmp_path, absent=absent))
    for rung in summary.rungs:
        assert [task.signal for task in rung.tasks] == [True, True, True, False], "Prose has a unit of its own"
        assert {task.verdict for task in rung.tasks[:2]} == {None}
    scores = table(report, "table1")
    assert [row[0].text for row in scores.rows[:3]] == ["Knowledge", "Language", "Arithmetic"]
    unasked = cell(scores, "Language", "Questions")
    assert (unasked.text, unasked.reason) == ("n/a", Unknown(kind="not_measured").reason)
    assert cell(scores, "Knowledge", "Questions").value == 140
    difference = cell(table(report, "table2-points"), "Knowledge", "nf4 (points)")
    assert difference.reason == f"bf16 has no result to compare with: {Unknown(kind='not_measured').reason}"
    assert "no signal" not in to_markdown(report)


def test_scores_with_a_unit_of_their_own_have_columns_of_their_own(tmp_path: Path) -> None:
    prose = BUILTIN_TASKS[3]
    tasks = (*BUILTIN_TASKS, replace(prose, name="other_prose"))
    group = BUILTIN_GROUPS[3].model_copy(update={"name": "other_prose", "title": "Letters", "tasks": ("other_prose",)})
    _, report = read(write_replay(tmp_path, tasks=tasks, groups=(*BUILTIN_GROUPS, group), only="accuracy"))
    headers = [column.header for column in table(report, "table1-other-scores").columns]
    assert headers == ["Precision", "Prose (bits per byte)", "Letters (bits per byte)"]
    assert "Prose" not in [row[0].text for row in table(report, "table1").rows]


def test_one_rung_has_nothing_to_compare(tmp_path: Path) -> None:
    summary, _ = read(write_replay(tmp_path, rungs={"bf16": RUNGS["bf16"]}, only="accuracy"))
    assert [found.name for found in accuracy_tables(summary)] == ["table1", "table1-other-scores"]


def test_footnote_letters_go_on_after_z() -> None:
    assert [footnote_letter(index) for index in (0, 25, 26, 51, 52, 701, 702)] == [
        *("a", "z", "aa", "az", "ba", "zz", "aaa"),
    ]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("<script>alert(1)</script>", "\\<script>alert(1)\\</script>"),
        ("a | b\nc", "a \\| b c"),
        ("[x](javascript:y)", "[x]\\(javascript:y)"),
        ("-1.2 [-3.0, +0.5]", "-1.2 [-3.0, +0.5]"),
        ("**bold** `code`", "\\*\\*bold\\*\\* \\`code\\`"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_a_ready_checkpoint_is_called_by_what_its_audit_found(reports: Mapping[str, tuple[Summary, Report]]) -> None:
    """Stored 4-bit weights of another library stand as what they are and what holds them."""
    summary, _ = reports["builtin"]
    last = summary.rungs[-1]
    assert last.audit is not None and last.audit.found is not None
    other = {"method": "other", "stored_type": "INT4"}
    audit = last.audit.model_copy(
        update={
            "declared": last.audit.declared.model_copy(update=other),
            "found": last.audit.found.model_copy(
                update={"method": "other", "stored_type": "I32", "activation_type": "INT8"}
            ),
        }
    )
    added = last.model_copy(update={"rung": "theirs", "title": "INT4 (auto-round)", "audit": audit})
    found = checkpoint_table(summary.model_copy(update={"rungs": (*summary.rungs, added)}))
    assert cell(found, "theirs", "What it is").text == "INT4 (auto-round)"
    assert cell(found, "theirs", "Stored").text == "INT4 in I32"
    assert cell(found, "theirs", "Computed in").text == "BF16, inputs INT8"
    assert cell(found, last.rung, "Stored").text == "NF4"
