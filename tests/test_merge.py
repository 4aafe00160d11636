"""Result folders of several machines as one: what is joined, what is refused, and what a reader then sees."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from bitladder.accuracy.answers import study_answers
from bitladder.cli.main import app
from bitladder.decide import recommend
from bitladder.decide.recommendation import Limits
from bitladder.errors import UserError
from bitladder.records import AccuracyTask, Gpu, ManifestFile, Prompts, Settings, measurement_id
from bitladder.records.base import Unknown
from bitladder.report.content import Report, compose
from bitladder.report.output import source_hash, to_markdown
from bitladder.report.published_tables import machine_pages
from bitladder.results import Results
from bitladder.results.machines import default_place, find_place, place_names, places, to_decide
from bitladder.results.merge import merge_results, pack
from bitladder.results.store import Store, load_results
from bitladder.study.prepare import prepare
from bitladder.summary.summarize import summarize
from bitladder.summary.table import Summary
from replay import BUILTIN_GROUPS, BUILTIN_TASKS, RUNGS, write_replay
from replay_outcomes import TaskReplay

CPU, GPU = "Replayed CPU", "NVIDIA T4, Replayed CPU"
LADDER = {name: RUNGS[name] for name in ("bf16", "int8", "nf4")}
KNOWLEDGE, LANGUAGE = BUILTIN_TASKS[:2]


def study(directory: Path, **settings: Any) -> Path:
    """A small study: one task, three rungs."""
    defaults = {"rungs": LADDER, "tasks": (KNOWLEDGE,), "groups": BUILTIN_GROUPS[:1]}
    return write_replay(directory, **{**defaults, **settings})


def edited(directory: Path, *, machine: dict[str, Any] | None = None, item: dict[str, Any] | None = None) -> Path:
    """The study as another machine, or with other settings of its tasks, would have left it."""
    store = Store(directory)
    results = store.load()
    calibration = results.study.calibration
    own = calibration.machine.model_copy(update=machine or {})
    changed = {old: old.model_copy(update=item or {}) for old in results.study.items}
    plan = {"calibration": calibration.model_copy(update={"machine": own}), "items": tuple(changed.values())}
    store.write_study(results.study.model_copy(update=plan))
    for record in results.records:
        (directory / "records" / f"{record.measurement_id}.json").unlink()
        new = changed[record.item]
        identity = measurement_id(record.content_hash, new)
        store.write_measurement(record.model_copy(update={"machine": own, "item": new, "measurement_id": identity}))
    return directory


def composed(results: Results, machine: str | None = None) -> tuple[Summary, Report]:
    place = default_place(results) if machine is None else find_place(results, machine)
    summary = summarize(to_decide(results, place))
    return summary, compose(results, summary, recommend(summary))


def files(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("accuracy"), only="accuracy")


@pytest.fixture(scope="module")
def performance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("performance"), only="performance", gpu=True)


@pytest.fixture(scope="module")
def merged(accuracy: Path, performance: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "study"
    merge_results([accuracy, performance], out)
    return out


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All measured on a CPU, performance once more on a GPU, where the baseline's largest batch failed."""
    root = tmp_path_factory.mktemp("twice")
    study(root / "cpu")
    study(root / "gpu", gpu=True, only="performance", ends={("bf16", "max-batch"): ("does_not_fit", "no room")})
    return merge_results([root / "cpu", root / "gpu"], root / "merged")


def test_accuracy_of_one_machine_and_performance_of_another_decide_together(merged: Path) -> None:
    results = load_results(merged)
    assert len(results.records) == 3 + 6
    assert list(place_names(places(results)).values()) == [CPU, GPU]
    summary = summarize(results)
    answer = recommend(summary)
    assert {pick.goal for pick in answer.picks} == {"latency", "throughput", "memory"}
    assert f"measured: performance on {GPU}; accuracy on {CPU}" in answer.reasons
    nf4 = summary.rung("nf4")
    assert nf4 and nf4.aggregate.difference_points.value == pytest.approx(-100 * 2 / 140)
    scenario = nf4.scenario("batch1")
    assert scenario and scenario.metric("speedup").value is not None
    assert scenario.machine and scenario.machine.gpus


def test_report_says_which_machine_each_table_is_of(merged: Path) -> None:
    _, report = composed(load_results(merged))
    titles = {table.name: table.title for table in report.tables}
    assert titles["table1"].endswith(f", on {CPU}")
    assert titles["table3"].endswith(f", on {GPU}")
    assert titles["table4"].endswith(f", on {GPU}")
    assert titles["versions"].endswith(f", on {CPU}") and titles["versions-machine2"].endswith(f", on {GPU}")
    assert titles["settings-study2"] == "Effective settings, study 2 of 2"
    assert f"Measured on 2 machines, split so that no table and no figure mixes them: {CPU}; {GPU}." in report.notes
    assert not any(section.anchor == "failures" for section in report.sections)
    assert f"performance on {GPU}" in to_markdown(report)


def test_a_measurement_made_on_two_machines_is_shown_twice_and_apart(twice: Results) -> None:
    assert len(twice.records) == 3 * 3 + 3 * 2
    _, report = composed(twice)
    tables = {table.name: table for table in report.tables}
    names = [table.name for table in report.tables] + [figure.name for figure in report.figures]
    assert len(names) == len(set(names))
    assert tables["table3"].title.endswith(f", on {CPU}")
    assert tables["table3-machine2"].title.endswith(f", on {GPU}")
    headers = {name: " ".join(column.header for column in table.columns) for name, table in tables.items()}
    assert "VRAM" not in headers["table3"] and "VRAM" in headers["table3-machine2"]
    assert "table1-machine2" not in tables
    assert {row[1].text for name in tables if name.startswith("totals") for row in tables[name].rows} == {CPU, GPU}
    failures = next(section.points for section in report.sections if section.anchor == "failures")
    assert failures == (f"bf16, max-batch: does not fit: no room, on {GPU}",)


def test_speedup_is_against_the_same_machines_baseline_or_unknown(twice: Results) -> None:
    on_gpu, on_cpu = summarize(twice, machine="T4").rung("nf4"), summarize(twice, machine=CPU).rung("nf4")
    assert on_gpu and on_cpu
    with_baseline, without = on_gpu.scenario("batch1"), on_gpu.scenario("max-batch")
    other = on_cpu.scenario("max-batch")
    assert with_baseline and without and other
    assert with_baseline.metric("speedup").value is not None
    assert without.metric("tokens_per_s").value is not None
    assert without.metric("speedup").value is None
    assert without.metric("speedup").reason == "bf16 has no max-batch: does not fit: no room"
    assert other.metric("speedup").value is not None


def test_a_machine_without_the_baseline_has_no_speedup(tmp_path: Path, accuracy: Path) -> None:
    some = study(tmp_path / "some", only="performance", gpu=True, rungs={"nf4": RUNGS["nf4"]})
    results = merge_results([accuracy, some], tmp_path / "merged")
    summary = summarize(results)
    nf4, int8 = summary.rung("nf4"), summary.rung("int8")
    assert nf4 and int8
    timed, untimed = nf4.scenario("batch1"), int8.scenario("batch1")
    assert timed and untimed
    assert timed.metric("latency_s").value is not None and untimed.metric("latency_s").value is None
    assert timed.metric("speedup").value is None
    assert timed.metric("speedup").reason == "bf16 has no batch1: measured by none of the merged studies"
    planned = [len(part.study.rungs) * len(part.study.items) for part in results.parts]
    assert (summary.planned_measurements, summary.unfinished) == (sum(planned), ""), "what none plans isn't awaited"
    page = machine_pages(results, summary)[1]
    assert [rung.rung for rung in page.summary.rungs] == ["bf16", "nf4"]
    missing = next(section for section in composed(results)[1].sections if section.anchor == "missing")
    assert missing.points == ("bf16: batch1, max-batch", "int8: batch1, max-batch")
    assert "merge anew" in missing.paragraphs[0]


def test_recommend_needs_one_machine(twice: Results) -> None:
    directory = str(twice.directory)
    with pytest.raises(UserError, match=f"2 machines; choose one with --machine: {CPU}; {GPU}"):
        summarize(twice)
    ran = CliRunner().invoke(app, ["recommend", directory])
    assert isinstance(ran.exception, UserError)
    for machine, device in (("t4", "performance on NVIDIA T4"), (CPU, f"performance on {CPU}")):
        ran = CliRunner().invoke(app, ["recommend", directory, "--machine", machine])
        assert ran.exit_code == 0, ran.output
        assert device in ran.stdout
    for wanted, found in (("V100", "no machine"), ("replayed", "2 machines")):
        with pytest.raises(UserError, match=f"--machine '{wanted}' names {found}; expected part of the name of one of"):
            find_place(twice, wanted)
    assert default_place(twice).device == "cpu"


def test_tasks_of_two_machines_stand_apart_and_make_one_aggregate(tmp_path: Path, accuracy: Path) -> None:
    language = study(
        tmp_path / "b", only="accuracy", gpu=True, tasks=(LANGUAGE,), groups=BUILTIN_GROUPS[1:2], suite="custom"
    )
    summary, report = composed(merge_results([accuracy, language], tmp_path / "merged"))
    assert report.subtitle.startswith("Suites builtin and custom ")
    assert any("82 templates" in note for note in report.notes)
    tables = {table.name: table for table in report.tables}
    assert [row[0].text for row in tables["table1"].rows] == ["Knowledge", "Aggregate"]
    assert [row[0].text for row in tables["table1-machine2"].rows] == ["Language", "Aggregate"]
    nf4 = summary.rung("nf4")
    assert nf4 and nf4.aggregate.tasks == ("bitladder_knowledge", "bitladder_language")
    assert summary.measured_on == f"Knowledge on {CPU}; Language on {GPU}"
    assert "drops: of the mean of Knowledge, Language" in report.recommendation.reasons


def test_a_task_is_compared_as_one_machine_measured_it(tmp_path: Path) -> None:
    """The GPU's answers of two rungs don't stand against the CPU's baseline."""
    both = study(tmp_path / "cpu", only="accuracy")
    some = study(tmp_path / "gpu", gpu=True, rungs={name: RUNGS[name] for name in ("int8", "nf4")})
    results = merge_results([both, some], tmp_path / "merged")
    summary, report = composed(results)
    assert summary.measured_on == f"performance on {GPU}; accuracy on {CPU}"
    of_cpu = {record.rung: record.outcome for record in results.records if record.item.device == "cpu"}
    answers = study_answers(results, "nf4")
    assert list(answers.outcomes.values()) == [of_cpu["nf4"]]
    assert answers.read_documents("bitladder_knowledge").documents
    nf4 = summary.rung("nf4")
    assert nf4 and nf4.tasks[0].difference_points.value is not None
    second = next(table for table in report.tables if table.name == "table2-points-machine2")
    assert all(cell.value is None for row in second.rows for cell in row[1:])
    first = next(table for table in report.tables if table.name == "table1-machine2")
    assert any(Unknown(kind="elsewhere").reason in reason for reason in first.footnotes)


def test_halves_of_one_machine_are_one_study(tmp_path: Path, accuracy: Path) -> None:
    timed = study(tmp_path / "timed", only="performance")
    results = merge_results([accuracy, timed], tmp_path / "merged")
    assert summarize(results) == summarize(load_results(study(tmp_path / "whole")))
    assert len(machine_pages(results, summarize(results))) == 1


def test_a_serial_number_makes_no_other_machine_and_a_driver_does(tmp_path: Path, performance: Path) -> None:
    gpu = Gpu(name="NVIDIA T4", total_memory_bytes=15 << 30, compute_capability="7.5", driver="580.10", serial="7")
    card = edited(
        study(tmp_path / "card", only="performance", gpu=True, rungs={"fp16": RUNGS["fp16"]}), machine={"gpus": (gpu,)}
    )
    results = merge_results([performance, card], tmp_path / "one")
    assert len(places(results)) == 1
    assert {gpu.serial for record in results.records for gpu in record.machine.gpus} == {None, "7"}
    newer = edited(
        study(tmp_path / "driver", only="performance", gpu=True),
        machine={"gpus": (gpu.model_copy(update={"driver": "590.1"}),)},
    )
    names = list(place_names(places(merge_results([performance, newer], tmp_path / "two"))).values())
    assert names == [f"{GPU} (driver 580.10)", f"{GPU} (driver 590.1)"]


def test_merging_again_in_steps_or_from_archives_is_the_same(
    tmp_path: Path, accuracy: Path, performance: Path, merged: Path
) -> None:
    before = files(merged)
    merge_results([accuracy, performance], merged)
    assert files(merged) == before
    archives = [pack(accuracy, tmp_path / "a.tar.gz"), pack(performance, tmp_path / "b.tar.gz")]
    merge_results([merged, *archives], tmp_path / "again")
    assert files(tmp_path / "again") == before
    assert {path.name for path in (merged / "parts").iterdir()} == set(json.loads(before["merge.json"])["parts"])
    assert {path.name for path in merged.glob("parts/*/*")} == {"study.json", "rungs", "records", "documents"}
    pack(merged, tmp_path / "merged.tar.gz")
    merge_results([tmp_path / "merged.tar.gz"], tmp_path / "unpacked")
    assert files(tmp_path / "unpacked") == before


def test_prompts_go_with_the_records(tmp_path: Path) -> None:
    timed = study(tmp_path / "timed", only="performance")
    prompts = Prompts(token_ids=((1, 2),), prompts_hash="9d" * 32, origin="prose")
    Store(timed).write_prompts(prompts)
    merge_results([pack(timed)], tmp_path / "merged")
    part = next((tmp_path / "merged" / "parts").iterdir())
    assert Store(part).read_prompts(prompts.prompts_hash) == prompts


def test_another_machine_makes_another_report(twice: Results) -> None:
    hashes = {source_hash(twice, Limits(), machine) for machine in (None, "T4", CPU)}
    assert len(hashes) == 3
    other_part = replace(twice.parts[1], rungs={})
    assert source_hash(replace(twice, parts=(twice.parts[0], other_part)), Limits(), None) not in hashes


def test_a_measurement_that_ended_well_replaces_one_that_did_not(tmp_path: Path) -> None:
    failed = study(tmp_path / "a", only="accuracy", ends={("nf4", KNOWLEDGE.name): ("failed", "power cut")})
    results = merge_results([failed, study(tmp_path / "b", only="accuracy")], tmp_path / "merged")
    assert [record.status for record in results.records] == ["ok"] * 3


def other_rung(directory: Path, **manifest: Any) -> Path:
    """The study with nf4 under another content hash."""
    store = Store(directory)
    rung = store.read_rung("nf4")
    assert rung and rung.manifest
    changed = rung.manifest.model_copy(update={"content_hash": "ab" * 32, **manifest})
    store.write_rung(rung.model_copy(update={"content_hash": "ab" * 32, "manifest": changed}))
    return directory


def weights(directory: Path, **tensors: float) -> None:
    folder = directory / "checkpoints" / "nf4"
    folder.mkdir(parents=True)
    save_file(
        {name: np.full(4, value, dtype=np.float32) for name, value in tensors.items()}, folder / "model.safetensors"
    )


def test_another_checkpoint_of_one_name_is_refused_with_its_tensors_counted(tmp_path: Path, performance: Path) -> None:
    one, other = study(tmp_path / "a", only="accuracy"), other_rung(study(tmp_path / "b", only="performance"))
    with pytest.raises(
        UserError, match=r"nf4 is not one checkpoint: [0-9a-f]{12} in .*a and abababababab in .*b; their"
    ):
        merge_results([one, other], tmp_path / "merged")
    weights(one, same=1.0, changed=1.0, gone=1.0)
    weights(other, same=1.0, changed=2.0)
    with pytest.raises(UserError, match="; 2 of 3 tensors differ; measure both from one checkpoint"):
        merge_results([one, other], tmp_path / "merged")
    (other / "checkpoints" / "nf4" / "model.safetensors").write_bytes(
        (one / "checkpoints" / "nf4" / "model.safetensors").read_bytes()
    )
    with pytest.raises(UserError, match="none of 3 tensors differ, the quantization settings do"):
        merge_results([one, other], tmp_path / "merged")
    recorded = ManifestFile(sha256="c" * 64, size_bytes=1)
    filed = other_rung(study(tmp_path / "c", only="performance"), files={"model.safetensors": recorded})
    with pytest.raises(UserError, match="1 of 1 weight files differ"):
        merge_results([one, filed], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def other_source(directory: Path, **source: str) -> Path:
    store = Store(directory)
    plan = store.read_study()
    store.write_study(
        plan.model_copy(update={"source": plan.source.model_copy(update={"content_hash": "0" * 64, **source})})
    )
    return directory


def test_a_rung_that_one_machine_refused_is_out_there_alone(tmp_path: Path, accuracy: Path) -> None:
    refused = {"nf4": ("refused", "it is FP4")}
    other = study(tmp_path / "gpu", only="performance", gpu=True, broken_rungs=refused)
    whole = study(tmp_path / "cpu", only="performance")
    results = merge_results([accuracy, other, whole], tmp_path / "merged")
    statuses = {device: summarize(results, machine=device).rung("nf4") for device in ("T4", CPU)}
    assert {device: rung.status for device, rung in statuses.items() if rung} == {"T4": "refused", CPU: "ok"}


def other_documents(directory: Path) -> Path:
    store = Store(directory)
    for record in store.load().records:
        assert record.outcome and record.outcome.kind == "accuracy"
        known = store.read_documents(record.outcome.documents_hash)
        assert known
        store.write_documents(known.model_copy(update={"documents_hash": "1" * 64}))
        outcome = record.outcome.model_copy(update={"documents_hash": "1" * 64})
        store.write_measurement(record.model_copy(update={"outcome": outcome}))
    return directory


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        (
            lambda made: edited(made, item={"limit": 5, "task_hash": "x"}),
            {"gpu": True},
            "asked in another way in .*: limit 5, not None; ",
        ),
        (lambda made: edited(made, item={"harness_version": "0.5"}), {"gpu": True}, "harness_version 0.5, not 0.4.13"),
        (lambda made: edited(made, item={"task_hash": "x"}), {}, "bitladder_knowledge was asked in another way"),
        (
            lambda made: edited(made, item={"batch_size": 1}),
            {},
            "on one machine with other settings.*batch_size 1, not 8",
        ),
        (other_documents, {"gpu": True}, "bitladder_knowledge has other prompts in"),
        (lambda made: other_source(made, kind="hub"), {}, "not the same model"),
        (lambda made: other_source(made, model="builtin:other"), {}, "not the same model"),
        (
            lambda made: made,
            {"groups": (BUILTIN_GROUPS[0].model_copy(update={"in_aggregate": False}),)},
            "bitladder_knowledge is made of other tasks",
        ),
        (
            lambda made: made,
            {"tasks": (TaskReplay("bitladder_knowledge", "choice", 140, 0.81),)},
            "bf16, bitladder_knowledge: measured twice on one machine",
        ),
    ],
)
def test_what_cannot_stand_side_by_side_is_refused(
    change: Callable[[Path], Path], settings: dict[str, Any], says: str, tmp_path: Path, accuracy: Path
) -> None:
    other = change(study(tmp_path / "other", only="accuracy", **settings))
    with pytest.raises(UserError, match=says) as raised:
        merge_results([accuracy, other], tmp_path / "merged")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "merged").exists()


def test_batch_size_and_files_of_a_builtin_model_may_differ_between_machines(tmp_path: Path, accuracy: Path) -> None:
    other = edited(study(tmp_path / "other", only="accuracy", gpu=True), item={"batch_size": 64})
    other = other_source(other)  # as another transformers wrote it
    results = merge_results([accuracy, other], tmp_path / "merged")
    assert {record.item.batch_size for record in results.records if isinstance(record.item, AccuracyTask)} == {8, 64}


def test_out_that_holds_something_else_is_refused(
    tmp_path: Path, accuracy: Path, performance: Path, merged: Path
) -> None:
    before = files(accuracy)
    with pytest.raises(UserError, match="holds another study; name a new folder"):
        merge_results([accuracy, performance], accuracy)
    with pytest.raises(UserError, match="holds another study; name a new folder"):
        merge_results([accuracy], merged)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is there and is no merged study"):
        merge_results([accuracy, performance], tmp_path)
    assert files(accuracy) == before and files(tmp_path) == {"notes.txt": b"mine"}


def test_inputs_without_a_study_are_refused(tmp_path: Path, accuracy: Path) -> None:
    with pytest.raises(UserError, match="absent: no such folder or archive; expected the --out folder"):
        merge_results([accuracy, tmp_path / "absent"], tmp_path / "merged")
    with pytest.raises(UserError, match="nothing to merge"):
        merge_results([], tmp_path / "merged")
    bare = study(tmp_path / "bare", only="accuracy")
    next((bare / "documents").iterdir()).unlink()
    with pytest.raises(UserError, match="bare: no documents/"):
        merge_results([bare], tmp_path / "merged")


def test_a_study_is_not_continued_in_a_merged_folder(merged: Path) -> None:
    with pytest.raises(UserError, match="holds merged studies"):
        prepare(Settings(model="builtin:smollm2-135m"), Store(merged))


def test_commands(tmp_path: Path, accuracy: Path, performance: Path) -> None:
    ran = CliRunner().invoke(app, ["pack", str(accuracy), "--out", str(tmp_path / "a.tar.gz"), "--json"])
    assert json.loads(ran.stdout)["size_bytes"] == (tmp_path / "a.tar.gz").stat().st_size
    arguments = ["merge", str(tmp_path / "a.tar.gz"), str(performance), "--out", str(tmp_path / "merged")]
    ran = CliRunner().invoke(app, arguments)
    assert ran.stdout == f"{tmp_path / 'merged'}: 9 measurements of bf16, int8, nf4 on {CPU}; {GPU}\n"
    assert not ran.stderr
    assert json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["machines"] == [CPU, GPU]
    ran = CliRunner().invoke(app, ["merge", str(accuracy), str(accuracy), "--out", str(tmp_path / "alone")])
    assert ran.stderr == "note: a single study, given once or more: nothing was joined with it\n"


def test_divergence_is_each_machines_own(tmp_path: Path) -> None:
    """Its windows travel with the records, and no table holds another machine's."""
    one = study(tmp_path / "a", divergence=True)
    other = edited(study(tmp_path / "b", divergence=True), machine={"cpu_model": "Other CPU"})
    windows = Prompts(token_ids=((1, 2),), prompts_hash="8c" * 32, origin="text", documents=("d",))
    Store(one).write_prompts(windows)
    results = merge_results([one, other], tmp_path / "merged")
    summary = summarize(results, machine="Other")
    assert all(rung.divergence for rung in summary.rungs)
    report = compose(results, summary, recommend(summary))
    titles = [table.title for table in report.tables if table.name.startswith("divergence")]
    assert titles == ["Divergence from bf16, on Replayed CPU", "Divergence from bf16, on Other CPU"]
    assert [path.stem for path in (tmp_path / "merged").glob("parts/*/prompts/*")] == [windows.prompts_hash]
