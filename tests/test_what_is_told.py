"""Words that a user reads: that they say what was found, once, and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bitladder.checkpoint.audit import audit
from bitladder.checkpoint.loading import load_tokenizer
from bitladder.checkpoint.quantize import quantize
from bitladder.cli import dry_run
from bitladder.errors import BrokenFileError, UserError
from bitladder.files import make_folder
from bitladder.json_files import parse_json
from bitladder.models.source import resolve_model
from bitladder.report.figure import CHARACTER_PX, panel
from bitladder.report.verdict_tables import verdict_tables
from bitladder.stats.compare import Compared
from bitladder.store import Store
from bitladder.study.estimate import RungEstimate
from bitladder.study.settings import load_command, load_settings
from bitladder.units import UNKNOWN
from bitladder.wording import first_line
from lm_eval_logs import write_logs
from replay import RUNGS, write_replay
from test_verdict import GROUPS, app
from test_verdict import tasks as logged_tasks


def estimate(rung: str, accuracy_s: float | None = 60.0) -> RungEstimate:
    times: dict[str, Any] = {"quantize_s": 1.0, "accuracy_s": accuracy_s, "performance_s": 0.0, "item_s": ()}
    return RungEstimate(rung=rung, disk_bytes=1, peak_memory_bytes=1, **times)


def test_what_is_not_planned_takes_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Store(write_replay(tmp_path, rungs={"bf16": RUNGS["bf16"]}, only="accuracy")).read_study()
    dry_run.show_plan(study, [estimate("bf16")], {"plain": 1000})
    shown = capsys.readouterr().out
    assert "none" in shown and "0.00 ms" not in shown


def test_the_advice_names_what_its_time_has_more_of(tmp_path: Path) -> None:
    study = Store(write_replay(tmp_path, rungs={"bf16": RUNGS["bf16"]})).read_study()
    untimed = [estimate("bf16"), estimate("i8", accuracy_s=None)]
    assert dry_run._counted_as(study, untimed, {}) == "; i8, not timed, counts there as bf16 does"
    assert dry_run._counted_as(study, untimed, {"i8": "bf16"}) == ""
