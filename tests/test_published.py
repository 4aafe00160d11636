"""The published study beside ours: its numbers, which models they are compared with, and what is said of the rest."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from bitladder import compare_published, load_results, merge_results
from bitladder.checkpoint.expected import expect
from bitladder.cli.main import app
from bitladder.errors import UserError
from bitladder.methods import find_rung
from bitladder.models.builtin import LLAMA_1B_SHAPE
from bitladder.report import ResultsFile, write_report
from bitladder.report.published_tables import comparison_text, published_paragraphs, published_tables
from bitladder.results.store import Store
from bitladder.summary.published import PublishedComparison, likeness_of, published_study
from replay import RUNGS, write_replay

FOUR = {"fp32": RUNGS["bf16"], **RUNGS}
TWO = {name: FOUR[name] for name in ("bf16", "nf4")}
ROOT = Path(__file__).parents[1]


def altered(directory: Path, *, parameters: int | None = None, **changes: Any) -> Path:
    """The folder with another source, whose checkpoints have that many weights."""
    store = Store(directory)
    study = store.read_study()
    source = study.source.model_copy(update=changes)
    store.write_study(study.model_copy(update={"source": source}))
    for name in study.settings.rungs:
        rung = store.read_rung(name)
        assert rung is not None
        assert rung.manifest is not None
        counted = {"parameters": parameters} if parameters else {}
        manifest = rung.manifest.model_copy(update={"source": source, **counted})
        store.write_rung(rung.model_copy(update={"manifest": manifest}))
    return directory


def compare(directory: Path, *, any_model: bool = False) -> PublishedComparison:
    (one,) = compare_published(load_results(directory), any_model=any_model)
    return one


def test_published_numbers_agree_with_each_other() -> None:
    study = published_study()
    assert len(study.tasks) * len(study.rungs) == 36
    for table in study.scenarios:
        for precision, rate in table.requests_per_s.items():
            assert table.speedup[precision] == pytest.approx(rate / table.requests_per_s["BF16"], rel=5e-4)
    batch1 = study.scenarios[0].vram_mib
    weights = 4 * study.parameters / 2**20
    assert batch1["BF16"] - weights == pytest.approx(batch1["FP16"] - weights / 2, abs=1.5), "FP32 and FP16 weights"


def test_its_models_configuration_is_known_by_the_weights_it_makes(tmp_path: Path) -> None:
    LlamaConfig(**LLAMA_1B_SHAPE.config, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    for rung in published_study().rungs.values():
        assert expect(tmp_path, find_rung(rung).scheme).parameters == published_study().parameters


def test_each_cell_says_whether_the_published_score_is_inside(tmp_path: Path) -> None:
    one = compare(write_replay(tmp_path, suite="paper", rungs=FOUR, gpu=True))
    assert (one.likeness, one.machine, len(one.scores)) == ("released", None, 36)
    for cell in one.scores:
        assert cell.score.low is not None
        assert cell.score.high is not None
        assert cell.inside == (cell.score.low <= cell.published_percent <= cell.score.high)
    assert {cell.inside for cell in one.scores} == {True, False}
    rungs = {cell.precision: cell.rung for cell in one.scores}
    assert rungs == {"BF16": "fp32", "FP16": "fp16", "INT8": "int8", "INT4": "fp4"}


def test_speedups_are_over_fp32_and_over_the_baseline(tmp_path: Path) -> None:
    slow_fp32 = {**RUNGS, "fp32": RUNGS["int8"]}
    directory = write_replay(tmp_path, suite="paper", rungs=slow_fp32, gpu=True, only="performance")
    one = compare(directory)
    assert one.scores == ()
    cells = {(cell.scenario, cell.precision): cell for cell in one.speeds}
    int8, fp32 = cells["batch1", "INT8"], cells["batch1", "BF16"]
    assert int8.published_speedup == 0.4099
    assert int8.speedup_to_fp32.value == pytest.approx(1.0)
    assert int8.speedup.value == pytest.approx(fp32.speedup.value)
    assert fp32.speedup_to_fp32.value == 1.0
    fp16 = cells["max-batch", "FP16"]
    assert fp16.speedup_to_fp32.low is not None
    assert fp16.vram_bytes.value is not None
    assert len(cells) == 8
    table = next(table for table in published_tables([one]) if table.name == "published-table4")
    vram = table.rows[2][5]
    assert (vram.text, vram.value) == ("9744.6", 9744.56)


def test_what_is_not_measured_has_a_reason(tmp_path: Path) -> None:
    ends = {("fp4", "max-batch"): ("does_not_fit", "needs 9.1 GiB"), ("int8", "arc_easy"): ("failed", "a cause")}
    one = compare(write_replay(tmp_path, suite="paper", ends=ends))  # type: ignore[arg-type]
    cells = {(cell.task, cell.precision): cell for cell in one.scores}
    assert cells["arc_easy", "BF16"].score.reason == "fp32 is not among this study's precisions"
    assert cells["arc_easy", "BF16"].inside is None
    assert cells["arc_easy", "INT8"].score.reason == "failed: a cause"
    unknown = one.model_copy(update={"scores": tuple(cell for cell in one.scores if cell.inside is None)})
    assert "interval in" not in " ".join(published_paragraphs([unknown]))
    assert published_paragraphs([unknown])[-1].startswith("No published score has an interval of ours beside it")
    speeds = {(cell.scenario, cell.precision): cell for cell in one.speeds}
    assert speeds["batch1", "INT4"].speedup_to_fp32.reason == "fp32 is not among this study's precisions"
    assert speeds["max-batch", "INT4"].speedup.reason == "does not fit: needs 9.1 GiB"
    assert speeds["batch1", "INT8"].vram_bytes.reason == "measured on a CPU, which has no VRAM"


def test_a_rung_without_the_scenario_has_no_ratio(tmp_path: Path) -> None:
    directory = write_replay(tmp_path, suite="paper", rungs=FOUR, absent={("int8", "batch1")}, only="performance")
    speeds = {(cell.scenario, cell.precision): cell for cell in compare(directory).speeds}
    assert speeds["batch1", "INT8"].speedup_to_fp32.reason == "int8 has no batch1"
    assert speeds["max-batch", "INT8"].speedup_to_fp32.value is not None


def test_a_row_made_of_other_parts_is_left_out(tmp_path: Path) -> None:
    directory = write_replay(tmp_path, suite="paper", only="accuracy")
    store = Store(directory)
    study = store.read_study()
    groups = tuple(
        group.model_copy(update={"tasks": ("gsm8k",), "pooling": "documents"}) if group.name == "gsm8k" else group
        for group in study.groups
        if group.name != "hellaswag"
    )
    store.write_study(study.model_copy(update={"groups": groups}))
    one = compare(directory)
    assert len(one.scores) == 28
    assert "Not measured here as it was published: GSM8K (strict, CoT), HellaSwag." in one.notes


@pytest.mark.parametrize(
    ("changes", "shaped", "likeness", "scores"),
    [
        ({"model": "meta-llama/llama-3.2-1b"}, False, "released", True),
        ({"model": "mirror/Llama-3.2-1B"}, True, "released", True),
        ({"model": "mirror/Llama-3.2-1B"}, False, "other", None),
        ({"model": "meta-llama/Llama-3.2-1B-Instruct"}, True, "shape", False),
        ({"model": "./llama", "kind": "directory"}, True, "shape", True),
        ({"model": "./llama", "kind": "directory"}, False, "other", None),
        ({"model": "builtin:llama-3.2-1b-shape", "kind": "builtin", "speed_only": True}, True, "shape", False),
    ],
)
def test_which_models_are_compared(
    changes: dict[str, Any], shaped: bool, likeness: str, scores: bool | None, tmp_path: Path
) -> None:
    directory = write_replay(tmp_path, suite="paper")
    altered(directory, parameters=published_study().parameters if shaped else None, **changes)
    results = load_results(directory)
    assert likeness_of(results) == likeness
    compared = compare_published(results)
    if scores is None:
        assert compared == ()
        return
    (one,) = compared
    assert bool(one.scores) == scores
    assert one.speeds
    assert bool(one.notes) == (likeness == "shape")
    assert any("Random weights" in note for note in one.notes) == results.study.source.speed_only


@pytest.mark.slow
def test_report_shows_it_for_this_model_alone(tmp_path: Path) -> None:
    paper = write_replay(tmp_path / "paper", suite="paper", rungs=TWO)
    builtin = write_replay(tmp_path / "builtin", rungs=TWO, only="accuracy")
    for directory, shown in ((paper, True), (builtin, False)):
        written = {path.name: path for path in write_report(directory)}
        assert ("The published study" in written["report.md"].read_text()) == shown
        assert ('id="published-accuracy"' in written["report.html"].read_text()) == shown
        assert ("published-accuracy.csv" in written) == ("published-table4.csv" in written) == shown
        numbers = written["results.json"].read_text()
        assert ("published" in json.loads(numbers)) == shown
        assert bool(ResultsFile.model_validate_json(numbers).published) == shown


@pytest.mark.slow
def test_command_prints_cells_and_asks_before_another_models(tmp_path: Path) -> None:
    run = CliRunner().invoke
    paper = str(write_replay(tmp_path / "paper", suite="paper", rungs=FOUR))
    told = run(app, ["compare", paper]).stdout
    assert "| HellaSwag            | INT4         | fp4  |         44.15 |" in told
    assert "| INT8         | int8 |                     0.4099 |" in told
    other = str(write_replay(tmp_path / "other", suite="paper", rungs=FOUR))
    altered(Path(other), model="builtin:smollm2-135m", kind="builtin")
    refused = run(app, ["compare", other])
    assert refused.exit_code == 0
    assert refused.stdout.startswith("Nothing is compared: the published numbers are LLaMA 3.2 1B's, and this study is")
    asked = run(app, ["compare", other, "--any-model"]).stdout
    assert asked.startswith("The published numbers are LLaMA 3.2 1B's, and this is builtin:smollm2-135m")
    assert "| INT8         | int8 |                     0.4099 |" in asked
    (one,) = json.loads(run(app, ["compare", paper, "--json"]).stdout)
    assert len(one["scores"]) == 36
    unplanned = write_replay(tmp_path / "unplanned", suite="builtin", only="accuracy")
    altered(unplanned, model="meta-llama/Llama-3.2-1B", kind="hub")
    for nothing, why in ((other, "numbers are LLaMA 3.2 1B's"), (str(unplanned), "no task and no scenario that was")):
        empty = run(app, ["compare", nothing, "--json"])
        assert (empty.exit_code, empty.stdout) == (1, ""), "of the app alone; the command line makes it 2"
        assert isinstance(empty.exception, UserError)
        assert why in str(empty.exception)
    assert run(app, ["compare", str(unplanned)]).stdout == (
        "Nothing is compared: this study plans no task and no scenario that was published.\n"
    )


def test_each_machine_has_tables_of_its_own(tmp_path: Path) -> None:
    accuracy = write_replay(tmp_path / "accuracy", suite="paper", rungs=FOUR, only="accuracy")
    performance = write_replay(tmp_path / "performance", suite="paper", rungs=FOUR, only="performance", gpu=True)
    merged = merge_results([accuracy, performance], tmp_path / "merged")
    compared = compare_published(merged)
    assert [(one.machine, len(one.scores), len(one.speeds)) for one in compared] == [
        ("Replayed CPU", 36, 0),
        ("NVIDIA T4, Replayed CPU", 0, 8),
    ]
    tables = published_tables(compared)
    assert [table.name for table in tables] == [
        *("published-accuracy", "published-table3-machine2", "published-table4-machine2"),
    ]
    assert tables[0].title == "Published accuracy beside ours, on Replayed CPU"
    assert "cells that have one on Replayed CPU." in comparison_text(merged)


@pytest.mark.parametrize(("study", "compared", "code"), [(0, 0, 0), (1, 0, 1), (0, 2, 2), (2, 0, 2)])
def test_make_paper_compares_what_there_is(study: int, compared: int, code: int, tmp_path: Path) -> None:
    """Exit 1 is a study of which some did not end well; after bad input there is nothing to compare."""
    fake = tmp_path / "bitladder"
    fake.write_text(f'#!/bin/sh\necho "$@"\ntest "$1" = study && exit {study}\nexit {compared}\n')
    fake.chmod(0o755)
    command = ["make", "--no-print-directory", "--silent", "--old-file=setup", "paper", f"BIN={tmp_path}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode == 0) == (code == 0)
    assert f"Error {code}" in ran.stderr or code == 0
    expected = ["study meta-llama/Llama-3.2-1B --config examples/paper.yaml --out paper", "compare paper"]
    assert [line.strip() for line in ran.stdout.splitlines()] == expected[: 1 if study == 2 else 2]
