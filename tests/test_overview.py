"""The first screen: the sentence that a person can say aloud, the first table, and the chart."""

import json
from pathlib import Path

import pytest

from bitladder.decide import recommend
from bitladder.decide.recommendation import Limits
from bitladder.decide.sentence import headline
from bitladder.report.accuracy_figures import frontier_figure
from bitladder.report.figure import Figure, MissingFigure
from bitladder.report.overview import overview_table
from bitladder.report.table import table_to_markdown
from bitladder.results.store import load_results
from bitladder.summary.summarize import summarize
from bitladder.summary.table import Estimate, Summary
from bitladder.units import supported
from replay import RUNGS, write_replay


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    directory = tmp_path_factory.mktemp("study")
    write_replay(directory)
    return summarize(load_results(directory))


def said(summary: Summary, **limits: object) -> str:
    return headline(summary, recommend(summary, Limits.model_validate(limits)))


def test_what_to_deploy_can_be_said_aloud(summary: Summary) -> None:
    assert said(summary, max_drop_points=5.0, optimize="latency").startswith("Deploy ")
    text = said(summary, max_drop_points=5.0)
    assert len(text.split()) < 40 and "[" not in text, "no interval: the table has them"
    small = said(summary, max_drop_points=5.0, optimize="memory")
    assert small == "Deploy nf4 for memory: 111 instead of 256 MiB of weights, no measurable loss, 62% slower."


def test_where_nothing_is_picked_it_says_what_to_do(summary: Summary) -> None:
    assert said(summary, max_memory_bytes=100 * 2**20) == "No precision can be recommended: none meets the limits."
    few = said(summary, max_drop_points=0.1)
    assert few.startswith("Stay with bf16 for now: too few questions were asked to clear ")


def test_the_first_table_marks_the_pick_and_has_every_rung(summary: Summary) -> None:
    answer = recommend(summary, Limits(max_drop_points=5.0, optimize="memory"))
    table = overview_table(summary, answer)
    assert [row[0].text for row in table.rows] == [rung.rung for rung in summary.rungs] == list(RUNGS)
    marks = {row[0].text: (row[1].text, row[1].mark) for row in table.rows}
    assert marks["nf4"] == ("deploy for memory", "good")
    assert marks["fp4"] == ("out", "bad")
    for row, rung in zip(table.rows, summary.rungs, strict=True):
        assert row[2].value == rung.aggregate.score_percent.value, "the CSV has all digits"
        assert row[5].value == rung.metric("batch1", "latency_s").value
    assert "no interval" not in table_to_markdown(table)


def test_the_chart_joins_what_nothing_beats(summary: Summary) -> None:
    figure = frontier_figure(summary)
    assert isinstance(figure, Figure)
    (rows,) = figure.spec["datasets"].values()
    for row in rows:
        beaten = any(
            other["speed"] >= row["speed"] and other["score"] >= row["score"] and other is not row for other in rows
        )
        assert row["front"] != beaten
    assert {row["rung"] for row in rows} == set(RUNGS)
    alone = summary.model_copy(update={"rungs": summary.rungs[:1]})
    assert isinstance(frontier_figure(alone), MissingFigure)
    assert json.dumps(figure.spec)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("83.89", "77.61", "88.01"), ("84", "78", "88")),
        (("0.5781", "0.5722", "0.5840"), ("0.578", "0.572", "0.584")),
        (("29,657", "27,282", "32,240"), ("29,700", "27,300", "32,200")),
        (("1.50 s", "1.10 s", "1.90 s"), ("1.5 s", "1.1 s", "1.9 s")),
        (("100.00", "92.85", "100.00"), ("100", "93", "100")),
        (("0.31", "0.04", "1.20"), ("0.31", "0.04", "1.20")),
        (("-0.56", "-7.23", "+5.99"), ("-0.56", "-7.23", "+5.99")),
        (("2.0000", "2.0000", "2.0000"), ("2.0000", "2.0000", "2.0000")),
        (("n/a", "n/a", "n/a"), ("n/a", "n/a", "n/a")),
        (("900 ms", "0.8 s", "1.1 s"), ("900 ms", "0.8 s", "1.1 s")),
    ],
)
def test_numbers_have_the_digits_that_their_interval_supports(
    texts: tuple[str, str, str], expected: tuple[str, str, str]
) -> None:
    assert supported(*texts) == expected


def test_a_copy_is_told_as_one(summary: Summary) -> None:
    copy = summary.rungs[1].model_copy(update={"rung": "copy", "same_as": "bf16", "tasks": (), "scenarios": ()})
    unknown = copy.aggregate.model_copy(update={"score_percent": Estimate(value=None, reason="same content as bf16")})
    copied = summary.model_copy(update={"rungs": (*summary.rungs, copy.model_copy(update={"aggregate": unknown}))})
    table = overview_table(copied, recommend(copied, Limits(max_drop_points=5.0)))
    assert table.rows[-1][1].text == "as bf16"


def test_the_study_on_disk_is_read_as_before(tmp_path: Path) -> None:
    """The headline is made when it is shown: results.json has the sentence with the figures."""
    write_replay(tmp_path)
    answer = recommend(summarize(load_results(tmp_path)))
    assert "headline" not in answer.model_dump()
