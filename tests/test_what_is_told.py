"""Words that a user reads: that they say what was found, once, and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bitladder.auditing import audit
from bitladder.checkpoint.loading import load_tokenizer
from bitladder.cli import dry_run
from bitladder.errors import BrokenFileError, UserError
from bitladder.files import make_folder, parse_json
from bitladder.models.source import resolve_model
from bitladder.quantization import quantize
from bitladder.report.figure import CHARACTER_PX, panel
from bitladder.report.verdict_tables import verdict_tables
from bitladder.results.store import Store
from bitladder.study.estimate import RungEstimate
from bitladder.study.settings import load_command
from bitladder.summary.comparison import Compared
from bitladder.text.words import first_line
from bitladder.units import UNKNOWN
from lm_eval_logs import write_logs
from replay import RUNGS, write_replay
from test_verdict import GROUPS, app
from test_verdict import tasks as logged_tasks


def test_a_study_given_for_a_model_names_its_checkpoints(tmp_path: Path) -> None:
    study = write_replay(tmp_path / "study", rungs={"bf16": RUNGS["bf16"]})
    says = "a study's folder, expected a model or one of its checkpoints "
    asked: tuple[Callable[[], object], ...] = (
        lambda: resolve_model(str(study)),
        lambda: audit(study),
        lambda: quantize(str(study), "nf4"),
    )
    for find in asked:
        with pytest.raises(UserError, match=rf"{says}\(none is made yet\)"):
            find()
    made = study / "checkpoints" / "nf4"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"{says}\({made}\)"):
        resolve_model(str(study))


@pytest.mark.parametrize("tasks", ["''", "arc_easy,''", ["", "arc_easy"]])
def test_an_empty_name_is_called_one(tasks: object) -> None:
    with pytest.raises(UserError, match="--tasks: found an empty name, expected one name or several"):
        load_command(None, {"model": "m", "tasks": tasks})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt-tokens: many", "study.yaml: prompt-tokens: found 'many'"),
        ("time_limit_s: -1", "study.yaml: time-limit-s: found -1"),
        ("prompt-token: 5", "'prompt-token'; nearest: prompt-tokens"),
    ],
)
def test_keys_of_the_file_are_named_as_the_help_names_them(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(f"model: m\n{text}\n")
    with pytest.raises(UserError, match=says):
        load_command(tmp_path / "study.yaml", {})


def test_where_no_checkpoint_can_be_made_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("bitladder.quantization.resolve_model", resolve)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^/proc/x: can't be made; expected a place to read and write in$"):
        quantize("m", "nf4", Path("/proc/x"))
    with pytest.raises(UserError, match="file: a file, expected a folder"):
        quantize("m", "nf4", tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        quantize("m", "nf4", tmp_path / "file" / "x")
    with pytest.raises(AssertionError, match="work has begun"):
        quantize("m", "nf4", tmp_path / "new" / "one")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_told_before_anything_is_quantized(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the checkpoint can't be linked from the cache."""
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bitladder.quantization._make", None)
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system alone")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match=r"/dev/shm: 0\.0 KiB free, .* needed; free some space, or name an --out on"):
        quantize(str(tiny_llama), "bf16", other / "bitladder-test")


def test_a_cache_that_cannot_be_made_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITLADDER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/nonexist")
    with pytest.raises(UserError, match=r"can't be made; .*; put the cache elsewhere with BITLADDER_CACHE"):
        make_folder(Path("/proc/nonexist/.cache/bitladder/models"))
    with pytest.raises(UserError, match=r"can't be made; expected a place to read and write in$"):
        make_folder(Path("/proc/other"))
    (tmp_path / ".cache").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"not a directory; .*; put the cache elsewhere with BITLADDER_CACHE"):
        make_folder(tmp_path / ".cache" / "bitladder" / "models")


def test_an_exception_is_not_cut_where_it_goes_on(tiny_llama: Path, tmp_path: Path) -> None:
    assert first_line(ValueError("one of: \n(1) this,\n(2) that")) == "one of: (1) this,"
    assert first_line(ValueError("only:\n")) == "only"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("x" * 300)) == "x" * 199 + "…"
    copy = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError) as raised:
        load_tokenizer(copy)
    assert "from one of)" not in str(raised.value)


def test_a_missing_quote_is_called_one() -> None:
    with pytest.raises(BrokenFileError, match=r"x: not JSON \(a text that no quote ends in its line, .* at line 2"):
        parse_json('{"model_type": "llama,\n"hidden_size": 64}', "x", "mend it")


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


def test_a_title_is_no_wider_than_its_panel() -> None:
    title = "(score - baseline) / baseline (%), negative is a loss"
    for width in (150, 300, 800):
        found = panel("x", width, 100, title).to_dict(validate=False)["title"]
        lines = [found] if isinstance(found, str) else found
        assert " ".join(lines) == title
        assert max(map(len, lines)) * CHARACTER_PX <= max(width, 32 * CHARACTER_PX)


def test_another_metric_repeats_no_probability_and_says_what_is_counted(tmp_path: Path) -> None:
    for name in ("bf16", "fp16"):
        write_logs(tmp_path / name, logged_tasks(), GROUPS)
    ran = CliRunner().invoke(app, ["verdict", str(tmp_path / "bf16"), str(tmp_path / "fp16"), "--json"])
    by_task = verdict_tables(Compared.model_validate(json.loads(ran.stdout)))[1]
    cells = {(row[0].text, row[1].text): row for row in by_task.rows}
    assert [cells["arc_easy", metric][-2].text for metric in ("acc", "acc_norm")] == ["+0.00", ""]
    changed = cells["arc_easy", "acc_norm"][9]
    reason = "known of tasks scored by acc alone, where an answer is the choice that is likeliest"
    assert (changed.text, changed.reason) == (UNKNOWN, reason)
