"""A study's folder and another model: nothing that was measured of one is ever shown as the other's."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bitladder.accuracy.answers import study_answers
from bitladder.cli.dry_run import print_plan
from bitladder.cli.main import app
from bitladder.decide import recommend
from bitladder.errors import UserError
from bitladder.executors.forkserver import ForkServer
from bitladder.publish.card import find_measured
from bitladder.records import RungRecord, Settings, Source
from bitladder.results import join, study_of
from bitladder.results.merge import merge_results, pack
from bitladder.results.store import Store, load_results
from bitladder.study.messages import RungMade, StudyProgress
from bitladder.study.prepare import prepare
from bitladder.study.run import StudyRun, run_study
from bitladder.summary.summarize import summarize
from replay import RUNGS, write_replay

LADDER = {name: RUNGS[name] for name in ("bf16", "nf4")}
pytest_plugins = ("audit_fixtures",)
ADDED = Source(model="./w4", kind="directory", revision=None, content_hash="a4" * 32)


def settings_for(model: object, **changes: object) -> Settings:
    values = {"model": str(model), "rungs": ("bf16",), "only": "performance", "prompt_tokens": 8, "new_tokens": 4}
    return Settings.model_validate({**values, "scenarios": ("batch1",), "device": "cpu", **changes})


def with_source(directory: Path, **source: object) -> Path:
    """The folder as it would be left by a study of another model that was interrupted at its first checkpoint."""
    store = Store(directory)
    study = store.read_study()
    store.write_study(study.model_copy(update={"source": study.source.model_copy(update=source)}))
    return directory


def with_added(directory: Path, *, audited: Source | None, planned: Source = ADDED) -> Path:
    """The folder with its nf4 as a ready checkpoint w4."""
    store = Store(directory)
    study, record = store.read_study(), store.read_rung("nf4")
    assert record
    store.write_study(study_of(study, ["bf16"], {"w4": planned}))
    store.write_rung(record.model_copy(update={"rung": "w4", "manifest": None, "source": audited}))
    return directory


def flip_signs(directory: Path) -> None:
    weights = directory / "model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})


def fit_to_greet(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize("change", [flip_signs, fit_to_greet])
def test_a_folder_takes_no_second_model(change: Callable[[Path], None], tiny_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = settings_for(tiny_copy)
    store = Store(out)
    store.write_study(prepare(settings, store).study)
    before = (out / "study.json").read_bytes()
    moved = Path(shutil.copytree(tiny_copy, tmp_path / "moved"))
    assert prepare(settings_for(moved), store).study.source.model == str(moved), "equal files, wherever they lie"
    change(tiny_copy)
    named = rf"{tiny_copy} \(files .{{12}}\)"
    says = f"^{out}: holds a study of {named}, found {named}; name another --out$"
    with pytest.raises(UserError, match=says):
        run_study(settings, out)
    with pytest.raises(UserError, match=says):
        print_plan(settings, out, json_output=False)
    assert (out / "study.json").read_bytes() == before
    assert not (out / "checkpoints").exists()


def test_another_revision_of_a_hub_model_is_another_model(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = with_source(write_replay(tmp_path / "out", suite="paper", rungs=LADDER), revision="f" * 40)
    for name in ("1" * 40, "2" * 40):
        shutil.copytree(tiny_llama, tmp_path / name)
    now = tmp_path / ("1" * 40)
    monkeypatch.setattr("bitladder.models.source._fetch_from_hub", lambda *_: (now, {}))
    settings = settings_for("meta-llama/Llama-3.2-1B")
    says = f"Llama-3.2-1B at {'f' * 40} .* found meta-llama/Llama-3.2-1B at {'1' * 40} .* or go on with --revision ffff"
    with pytest.raises(UserError, match=says):
        prepare(settings, Store(out))
    store = Store(tmp_path / "equal")
    store.write_study(prepare(settings, store).study)
    now = tmp_path / ("2" * 40)
    assert prepare(settings, store).study.source.revision == "2" * 40, "a commit that touches no file of the model"


def test_a_builtin_model_stays_one_under_another_transformers(tmp_path: Path) -> None:
    """Which writes its configuration in other words: of equal tensors what was measured counts."""
    out = write_replay(tmp_path / "out", rungs=LADDER)
    before = Store(out).load()
    assert Store(with_source(out, content_hash="0" * 64)).load().records == before.records


def test_no_reader_shows_what_was_measured_of_another_model(tmp_path: Path) -> None:
    ours = write_replay(tmp_path / "ours", suite="paper", rungs=LADDER, divergence=True)
    nf4 = Store(ours).load().rungs["nf4"]
    assert nf4.manifest
    mixed = with_source(Path(shutil.copytree(ours, tmp_path / "mixed")), model="./other", content_hash="0" * 64)

    results = load_results(mixed)
    assert (results.rungs, results.records, results.measured) == ({}, (), ())
    assert find_measured(ours, nf4.manifest).rung.rung == "nf4"
    with pytest.raises(UserError, match="its results are for bf16 n/a, nf4 n/a, and this is nf4"):
        find_measured(mixed, nf4.manifest)
    with pytest.raises(UserError):
        study_answers(results, "nf4")
    summary = summarize(results)
    assert {(rung.status, rung.content_hash) for rung in summary.rungs} == {("missing", None)}
    assert {task.score.value for rung in summary.rungs for task in rung.tasks} == {None}
    assert not recommend(summary).picks
    assert load_results(merge_results([pack(mixed)], tmp_path / "merged").directory).records == ()
    for command in (["verdict", f"{mixed}:bf16", f"{mixed}:nf4"], ["diff", str(mixed), "nf4"]):
        assert isinstance(CliRunner().invoke(app, command).exception, UserError), command


@pytest.mark.parametrize("audited", [None, ADDED.model_copy(update={"content_hash": "b4" * 32})])
def test_a_ready_checkpoint_that_changed_shows_nothing_of_what_it_was(audited: Source | None, tmp_path: Path) -> None:
    known = write_replay(tmp_path / "out", rungs=LADDER)
    assert set(Store(with_added(known, audited=ADDED)).load().rungs) == {"bf16", "w4"}
    results = Store(with_added(known, audited=audited)).load()
    assert set(results.rungs) == {"bf16"}
    assert {record.rung for record in results.records} == {"bf16"}


def test_merged_folders_name_the_files_of_a_ready_checkpoint_that_were_measured(tmp_path: Path) -> None:
    """Where one has changed and was not measured since, or could not be."""
    before = ADDED.model_copy(update={"content_hash": "b4" * 32})
    changed = with_added(write_replay(tmp_path / "changed", rungs=LADDER, only="performance"), audited=before)
    measured = with_added(
        write_replay(tmp_path / "measured", rungs=LADDER, only="accuracy"), audited=before, planned=before
    )
    for parts in ((changed, measured), (measured, changed)):
        joined = join(tmp_path, [load_results(part) for part in parts])
        assert joined.rungs["w4"].source == joined.study.added["w4"] == before
    assert join(tmp_path, [load_results(changed)]).study.added["w4"] == ADDED, "nothing else is known of it"


class Warnings(StudyProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, what: str) -> None:
        self.lines.append(what)


class OtherFiles:
    """A worker that quantized what the model's files have become, or audited a ready checkpoint."""

    ended = None
    record: RungRecord

    def __init__(self, *_: object) -> None:
        pass

    def messages(self) -> list[RungMade]:
        return [RungMade(record=self.record)]


def test_a_model_that_changes_while_its_study_runs_ends_it(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Store(write_replay(tmp_path / "replay", rungs=LADDER)).load().rungs["nf4"]
    monkeypatch.setattr(OtherFiles, "record", made, raising=False)
    monkeypatch.setattr("bitladder.study.workers.Worker", OtherFiles)
    store = Store(tmp_path / "out")
    progress = Warnings()
    prepared = prepare(settings_for(tiny_llama, rungs=("bf16", "nf4")), store)
    run = StudyRun(prepared, store, progress, ForkServer("", None, with_gpu=False))
    with pytest.raises(UserError, match="tiny-llama: its files have changed since the study began; run it again with"):
        run.workers.make("nf4")
    assert store.read_rung("nf4") is None

    monkeypatch.setattr(OtherFiles, "record", made.model_copy(update={"rung": "w4"}))
    run.missing.study = run.missing.study.model_copy(update={"added": {"w4": ADDED}})
    assert run.workers.make("w4").source == ADDED
    run.telling.changed()
    assert not progress.lines
    run.missing.study = run.missing.study.model_copy(
        update={"added": {"w4": ADDED.model_copy(update={"content_hash": "b4" * 32})}}
    )
    run.telling.changed()
    assert [line.split(";")[0] for line in progress.lines] == [
        "w4: its files have changed since its audit, which is made anew"
    ]
