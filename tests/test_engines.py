"""Engines: one more is a row, a setting, and a part of what a measurement is known by."""

import os
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from audit_checkpoints import CopyRung
from bitladder.cli import main
from bitladder.errors import UserError
from bitladder.executors.executor import PRELOADED
from bitladder.package import FOLDER
from bitladder.perf import engines as table
from bitladder.perf.engines import find_engine
from bitladder.records import (
    AccuracyOutcome,
    AccuracyTask,
    MeasurementRecord,
    PerformanceOutcome,
    Scenario,
    Settings,
    measurement_id,
)
from bitladder.results.store import Store
from bitladder.study.prepare import prepare
from bitladder.study.run import run_study
from perf_fakes import make_prompts, make_scenario
from replay import accuracy_item
from replay_outcomes import TaskReplay
from test_study_run import QUESTIONS, settings_for, write_tasks

pytest_plugins = ("audit_fixtures",)

FAKE = """\
import time
from dataclasses import replace

from bitladder.perf.engines import eager
from bitladder.perf.engines.engine import EngineRow, StepTimes
from bitladder.perf.engines import ENGINES


class Halting:
    def __init__(self, directory, policy):
        self.launch = {"engine": "halting", "from": directory.name, "device": policy.device}
        self.loaded_bytes = sum(file.stat().st_size for file in directory.iterdir())

    def run(self, token_ids, new_tokens):
        started_s, ends_s = time.perf_counter(), []
        for _ in range(new_tokens):
            time.sleep(0.001)
            ends_s.append(time.perf_counter())
        return StepTimes(started_s, tuple(ends_s), 0.0, ((0,) * new_tokens,) * len(token_ids))

    def run_unstamped(self, token_ids, new_tokens):
        return 0.001 * new_tokens


ROW = EngineRow(
    name="halting",
    title="sleeps",
    start=Halting,
    settings=(("pause_ms", 1),),
    refusal=lambda scheme: "it has no INT8" if scheme.stored_type == "I8" else None,
)
ASKED = replace(eager.EAGER, name="asked", settings=(("chunk", 8),), refusal=lambda scheme: None)
UNTRIED = replace(ASKED, name="untried", refusal=None)
ENGINES |= {row.name: row for row in (ROW, ASKED, UNTRIED)}
"""
"""All that more engines are: one of a file of its own, and such as answer questions, too."""


@pytest.fixture(autouse=True)
def more_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, and in every worker."""
    (tmp_path / "halting.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("bitladder.executors.executor.PRELOADED", (*PRELOADED, "halting"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(table, "ENGINES", dict(table.ENGINES))
    monkeypatch.delitem(sys.modules, "halting", raising=False)
    import_module("halting")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.mark.slow
def test_another_engine_is_measured_from_its_flag_to_the_report(
    tiny_llama: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = "--rungs bf16 --only performance --scenarios batch1 --requests 3 --prompt-tokens 8 --new-tokens 4 "
    flags += f"--device cpu --datasets {tasks}"
    out = tmp_path / "out"

    def study(*more: str) -> MeasurementRecord:
        ran = CliRunner().invoke(main.app, ["study", str(tiny_llama), *flags.split(), "--out", str(out), *more])
        assert ran.exit_code == 0, ran.output
        (record,) = Store(out).load().measured
        return record

    record = study("--engine", "halting")
    assert isinstance(record.item, Scenario) and isinstance(record.outcome, PerformanceOutcome)
    assert record.item.engine == record.outcome.engine == "halting"
    assert record.item.engine_settings == (("pause_ms", 1),)
    assert record.outcome.launch["from"] == "bf16" and record.outcome.memory.loaded_bytes > 0
    assert "halting, pause_ms 1" in (out / "report" / "report.md").read_text()

    of_the_default = study()
    assert isinstance(of_the_default.item, Scenario) and of_the_default.item.engine == find_engine(None).name
    assert of_the_default.measurement_id != record.measurement_id
    assert "halting" not in (out / "report" / "report.md").read_text()


@pytest.mark.slow
def test_another_engine_answers_under_its_name(tiny_llama: Path, tasks: Path, tmp_path: Path) -> None:
    """The same model under another name gives the same answers, known by another identity."""
    found = []
    for engine in (None, "asked"):
        settings = settings_for(tiny_llama, tasks / "left.yaml", engine=engine, only="accuracy", datasets=str(tasks))
        (record,) = run_study(settings, tmp_path / "out").records
        assert isinstance(record.item, AccuracyTask) and isinstance(record.outcome, AccuracyOutcome)
        assert len(record.outcome.documents) == QUESTIONS
        found.append((record.item.engine, record.item.engine_settings, record.outcome.documents, record.measurement_id))
    (plain, none, answers, identity), (name, settings_of, same, other) = found
    assert (plain, none, name, settings_of) == (None, (), "asked", (("chunk", 8),))
    assert answers == same and identity != other


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rungs": ("bf16", "int8"), "only": "performance"}, "--engine halting can't run int8: it has no INT8; leave"),
        (
            {"engine": "untried"},
            "--engine untried can't run bf16: it has not been tried with its layout; leave bf16",
        ),
        ({}, "--engine halting answers no questions; add --only performance, or take another engine"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_any_work(
    changes: dict[str, object], says: str, tiny_llama: Path, tasks: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        prepare(settings_for(tiny_llama, tasks, **{"engine": "halting"} | changes), Store(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_ready_checkpoint_that_an_engine_cannot_run_is_refused(
    tiny_llama: Path, made_rungs: CopyRung, tasks: Path, tmp_path: Path
) -> None:
    settings = settings_for(
        tiny_llama, tasks, engine="halting", only="performance", add={"theirs": str(made_rungs("int8"))}
    )
    with pytest.raises(UserError, match="--engine halting can't run theirs: it has no INT8"):
        prepare(settings, Store(tmp_path / "out"))


def test_an_unknown_engine_is_one_line_that_lists_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bitladder", "study", "none", "--engine", "x", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main.run()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    assert said.startswith("error: unknown engine 'x'; expected one of ") and len(said.splitlines()) == 1
    assert all(f"{row.name} ({row.title})" in said for row in table.ENGINES.values())


def test_the_default_engine_leaves_identities_as_they_were() -> None:
    """Those of before there was a choice: no field of it is hashed, and none is written."""
    scenario = make_scenario(make_prompts())
    task = accuracy_item(TaskReplay("arc_easy", "choice", 10))
    assert measurement_id("c", scenario) == "f928a0388ca665396477e42f8895f892"
    assert measurement_id("c", task) == "b94948193451aa0701abcdfa59c9cd30"
    for item in (scenario, task):
        other = item.model_copy(update={"engine_settings": (("chunk", 8),)})
        assert measurement_id("c", other) != measurement_id("c", item)
        assert type(item).model_validate_json(other.model_dump_json()) == other and len({item, other}) == 2
    assert "engine" not in Settings(model="m").model_dump()


def test_nothing_outside_the_engines_names_one() -> None:
    for path in FOLDER.rglob("*.py"):
        if path.parent.name not in ("engines", "methods"):  # a method says which engines run it
            source = path.read_text(encoding="utf-8")
            named = [row.name for row in table.ENGINES.values() if f'"{row.name}"' in source]
            assert not named and ".engines.eager" not in source, path
