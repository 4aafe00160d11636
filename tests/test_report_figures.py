"""The six figures: what they draw, in which order and colours, and that they fit the page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bitladder.methods import RUNGS as LADDER
from bitladder.records import TaskGroup
from bitladder.report.accuracy_figures import accuracy_figures
from bitladder.report.figure import Figure, MissingFigure, chunks, colours, wrap_label
from bitladder.report.performance_figures import _shade, normalised, performance_figures
from bitladder.results.store import load_results
from bitladder.summary.summarize import summarize
from bitladder.summary.table import ScenarioSummary, Summary
from replay import RUNGS, write_broken_replay, write_replay
from replay_outcomes import TaskReplay
from test_report_tables import eight_rungs

LONG = "A task whose long title was written without thinking_of_any_axis_that_has_to_hold_it"


def replayed(directory: Path, rungs: int, tasks: int, gpu: bool = False) -> Summary:
    chosen = {2: {name: RUNGS[name] for name in ("bf16", "nf4")}, 5: RUNGS, 8: eight_rungs()}[rungs]
    replays = tuple(TaskReplay(f"task{index}", "choice", 60, 0.7, has_norm=index % 2 == 0) for index in range(tasks))
    groups = tuple(
        TaskGroup(
            name=task.name,
            title=f"{LONG} {index}" if index % 3 == 2 else f"Task {index}",
            tasks=(task.name,),
            pooling="documents",
            in_aggregate=True,
        )
        for index, task in enumerate(replays)
    )
    return summarize(load_results(write_replay(directory, rungs=chosen, tasks=replays, groups=groups, gpu=gpu)))


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return summarize(load_results(write_replay(tmp_path_factory.mktemp("study"), suite="paper")))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return summarize(load_results(write_broken_replay(tmp_path_factory.mktemp("study"))))


def drawn(figure: Figure | MissingFigure) -> Figure:
    assert isinstance(figure, Figure)
    return figure


def rows(figure: Figure | MissingFigure) -> list[dict[str, Any]]:
    """All data rows of a figure, in order."""
    return [row for values in drawn(figure).spec["datasets"].values() for row in values]


@pytest.mark.parametrize(("rungs", "tasks"), [(2, 1), (8, 10), (5, 13)])
def test_every_figure_fits_a_page_of_900_pixels(tmp_path: Path, rungs: int, tasks: int) -> None:
    summary = replayed(tmp_path, rungs, tasks)
    figures = [drawn(figure) for figure in accuracy_figures(summary)]
    if tasks < 10:
        figures += [drawn(figure) for figure in performance_figures(summary, "max-batch", on_gpu=False)]
    for figure in figures:
        size = re.search(r'<svg[^>]* width="([0-9.]+)" height="([0-9.]+)"', figure.svg)
        assert size
        assert 250 < float(size[1]) < 900, figure.name


@pytest.fixture(scope="module")
def accuracy(summary: Summary) -> list[Figure | MissingFigure]:
    return accuracy_figures(summary)


def test_figure_1_draws_the_summary_in_two_panels(summary: Summary, accuracy: list[Figure | MissingFigure]) -> None:
    figure = drawn(accuracy[0])
    shown = [(row["title"], row["rung"], row["value"], row["low"], row["high"]) for row in rows(figure)]
    expected = [
        (task.title, rung.rung, score.value, score.low, score.high)
        for rung in summary.rungs
        for task in rung.tasks
        for score in (task.score, task.score_norm)
        if score.value is not None
    ]
    assert sorted(shown) == sorted(expected)
    assert len(shown) == 45 + 15
    titles = [panel["layer"][0]["title"] for panel in figure.spec["vconcat"]]
    assert titles == [
        "acc (%), n = 70 to 280 questions a task",
        ["acc_norm (%) where the task has it; not", "compared"],
    ]


def marks(figure: Figure | MissingFigure, kind: str) -> int:
    """How many marks of a kind the picture has."""
    return drawn(figure).svg.count(f'aria-roledescription="{kind}"')


def test_every_row_is_drawn(summary: Summary, accuracy: list[Figure | MissingFigure]) -> None:
    score, drop = accuracy
    assert marks(score, "bar") == 60
    assert marks(score, "tick") == 55, "GSM8K is generated and has no chance"
    assert marks(score, "rule mark") == 2 * 60
    assert marks(drop, "bar") == 4 * 10
    bars, heat = performance_figures(summary, "batch1", on_gpu=False)
    assert marks(bars, "bar") == marks(bars, "text mark") == 4 * 5
    assert marks(heat, "rect mark") == marks(heat, "text mark") == 4 * 5


def test_a_whisker_far_beyond_every_bar_leaves_the_bars_their_room(summary: Summary) -> None:
    first = summary.rungs[0].scenario("batch1")
    assert first
    latency = first.metrics["latency_s"].model_copy(update={"low": 1e-6, "high": 1e6})
    wild = first.model_copy(update={"metrics": {**first.metrics, "latency_s": latency}})
    rungs = (summary.rungs[0].model_copy(update={"scenarios": (wild,)}), *summary.rungs[1:])
    figure = drawn(performance_figures(summary.model_copy(update={"rungs": rungs}), "batch1", on_gpu=False)[0])
    shown = [row for row in rows(figure) if row["metric"] == "latency_s"]
    assert max(row["top"] for row in shown) == 2 * max(row["value"] for row in shown)
    assert "1,000,000" in shown[0]["tooltip"]
    assert figure.caption.endswith("↑: one beyond 2 times the highest bar is cut there; the table has its end.")
    assert [row["short"].endswith("↑") for row in shown] == [True] + [False] * (len(shown) - 1)
    assert "cut" not in drawn(performance_figures(summary, "batch1", on_gpu=False)[0]).caption


def test_what_no_interval_tells_apart_is_grey(summary: Summary) -> None:
    """Dark against white would say best and worst of what may be equal."""
    heat = drawn(performance_figures(meeting(summary, "latency_s"), "batch1", on_gpu=False)[1])
    fills = {row["metric"]: {one["fill"] for one in rows(heat) if one["metric"] == row["metric"]} for row in rows(heat)}
    assert len(fills["latency_s"]) == 1 and len(fills["requests_per_s"]) > 1


def meeting(summary: Summary, metric: str) -> Summary:
    """The summary, where all intervals of a metric at batch 1 hold one value."""

    def widened(scenario: ScenarioSummary) -> ScenarioSummary:
        wide = scenario.metrics[metric].model_copy(update={"low": 1e-6, "high": 1e6})
        return scenario.model_copy(update={"metrics": {**scenario.metrics, metric: wide}})

    return summary.model_copy(
        update={
            "rungs": tuple(
                rung.model_copy(update={"scenarios": tuple(widened(one) for one in rung.scenarios)})
                for rung in summary.rungs
            )
        }
    )


def test_figure_2_fills_only_differences_whose_interval_excludes_0(accuracy: list[Figure | MissingFigure]) -> None:
    filled = {(row["title"], row["rung"]): row["filled"] for row in rows(accuracy[1])}
    assert filled["MMLU", "fp4"] is True
    assert filled["MMLU", "nf4"] is False
    assert filled["Aggregate", "fp4"] is True
    assert "bf16" not in {rung for _, rung in filled}


def test_rungs_keep_the_order_of_the_ladder_where_the_first_lacks_a_value(broken: Summary) -> None:
    for figure in (accuracy_figures(broken)[0], performance_figures(broken, "batch1", on_gpu=False)[0]):
        domains = re.findall(r'"domain": (\[[^\]]*"fp16"[^\]]*\])', json.dumps(drawn(figure).spec))
        assert domains
        assert {tuple(json.loads(domain)) for domain in domains} == {("fp16", "int8", "fp4")}


def test_a_figure_without_data_is_left_out_with_a_reason(broken: Summary, tmp_path: Path) -> None:
    drop = accuracy_figures(broken)[1]
    assert isinstance(drop, MissingFigure)
    assert drop.reason == "no precision could be compared with the baseline on a task with signal"
    heat = performance_figures(broken, "max-batch", on_gpu=False)[1]
    assert isinstance(heat, MissingFigure)
    assert heat.reason == "comparing needs figures of two precisions"
    nothing = summarize(load_results(write_replay(tmp_path, only="accuracy")))
    assert all(isinstance(figure, MissingFigure) for figure in performance_figures(nothing, "batch1", on_gpu=False))


def test_bars_say_what_is_left_out(broken: Summary, tmp_path: Path) -> None:
    caption = drawn(performance_figures(broken, "batch1", on_gpu=False)[0]).caption
    assert caption.endswith("Not known, so left out: bf16, nf4.")
    short = summarize(load_results(write_replay(tmp_path, gpu=True)))
    caption = drawn(performance_figures(short, "batch1", on_gpu=True)[0]).caption
    assert caption.endswith("Not known, so left out: GPU utilisation.")


def test_heat_map_writes_the_real_value_and_greys_the_unknown(broken: Summary) -> None:
    cells = {(row["rung"], row["metric"]): row for row in rows(performance_figures(broken, "batch1", on_gpu=False)[1])}
    rung = broken.rung("int8")
    scenario = rung.scenario("batch1") if rung else None
    assert scenario
    assert cells["int8", "latency_s"]["text"] == f"{scenario.metrics['latency_s'].value:.3f}"
    assert cells["bf16", "latency_s"]["text"] == "n/a"
    assert cells["bf16", "latency_s"]["fill"] == cells["nf4", "study_vram_bytes"]["fill"] == "#c9ced6"
    assert cells["bf16", "latency_s"]["tooltip"] == "bf16: No space left on device"
    # fp16 is the fastest of the three and the largest: darkest in latency, lightest in memory.
    assert cells["fp16", "latency_s"]["fill"] == "#084594"
    assert cells["fp16", "study_vram_bytes"]["fill"] == "#eff5fb"


def test_normalised_puts_the_best_at_1() -> None:
    assert normalised([1.0, 3.0, None, 2.0], "higher") == [0.0, 1.0, None, 0.5]
    assert normalised([1.0, 3.0, None, 2.0], "lower") == [1.0, 0.0, None, 0.5]
    assert normalised([2.0, 2.0], "lower") == [None, None]
    assert normalised([197.5, 198.4], "higher") == [None, None], "no more apart than measurements are"
    assert normalised([None, None], "lower") == [None, None]


def test_numbers_in_the_heat_map_can_be_read() -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for step in range(101):
        low, high = sorted(luminance(colour) for colour in _shade(step / 100))
        assert (high + 0.05) / (low + 0.05) > 4.0, step


def test_a_rung_has_one_colour_whatever_is_beside_it() -> None:
    ladder = colours(list(LADDER))
    assert list(ladder) == list(LADDER)
    assert len(set(ladder.values())) == len(ladder)
    assert list(colours(["nf4", "bf16"]).items()) == [("nf4", ladder["nf4"]), ("bf16", ladder["bf16"])]
    mixed = colours(["bf16", "mine", "yours", "nf4"])
    assert mixed["bf16"] == ladder["bf16"]
    assert len(set(mixed.values())) == 4


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("MMLU social sciences", 12, ["MMLU social", "sciences"]),
        ("ARC-Challenge", 8, ["ARC-", "Challeng", "e"]),
        ("hendrycks_test_law", 12, ["hendrycks_", "test_law"]),
        ("one two three four five", 5, ["one", "two", "thre…"]),
        ("", 5, [""]),
    ],
)
def test_labels_wrap(text: str, width: int, lines: list[str]) -> None:
    assert wrap_label(text, width).split("\n") == lines
    assert all(len(line) <= width for line in lines)


def test_many_tasks_stand_in_rows_of_nearly_equal_length() -> None:
    assert [list(part) for part in chunks(7, 3)] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [len(part) for part in chunks(10, 10)] == [10]


def test_a_number_stands_at_its_bar_and_not_at_the_end_of_a_whisker(summary: Summary) -> None:
    """There it read as the height of the whisker."""
    for panel in drawn(performance_figures(summary, "max-batch", on_gpu=False)[0]).spec["concat"]:
        (number,) = (layer for layer in panel["layer"] if layer["mark"]["type"] == "text")
        lines = [layer["mark"] for layer in panel["layer"] if "y2" in layer["encoding"]]
        assert number["encoding"]["y"]["field"] == "value"
        assert lines and all(line["xOffset"] > 0 > number["mark"]["dx"] for line in lines), "beside each other"


@pytest.mark.parametrize("on_gpu", [True, False])
def test_more_utilisation_is_neither_better_nor_worse(summary: Summary, tmp_path: Path, on_gpu: bool) -> None:
    found = summarize(load_results(write_replay(tmp_path, gpu=True, batches=30))) if on_gpu else summary
    heat = drawn(performance_figures(found, "max-batch", on_gpu=on_gpu)[1])
    name = "gpu_utilisation_percent" if on_gpu else "cpu_percent"
    cells = [row for row in rows(heat) if row["metric"] == name]
    assert {row["fill"] for row in cells} == {"#c9ced6"}
    assert any(row["fill"] != "#c9ced6" for row in rows(heat)), "the others are shaded"
    assert f"neither better nor worse ({'GPU' if on_gpu else 'CPU'} utilisation)" in heat.caption
    assert "more GPU utilisation" not in heat.caption
