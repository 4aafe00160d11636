"""lm-eval's logs as people have them: edited, compressed, broken, with tasks that can't be paired, in groups."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bitladder.accuracy.answers import Answers, read_answers, take_tasks
from bitladder.cli.logs import diff_command, verdict_command
from bitladder.errors import UserError
from bitladder.tasks import registry
from lm_eval_logs import DATE, LoggedTask, sample, write_logs

app = typer.Typer()
app.command("verdict")(verdict_command)
app.command("diff")(diff_command)

CHOICE = LoggedTask("choice", {("acc", "none"): [1.0] * 30 + [0.0] * 10})
SOLVED = LoggedTask(
    "solved", {("exact_match", "strict"): [1.0] * 20, ("exact_match", "flexible"): [1.0] * 20}, choices=None
)
BLEU = LoggedTask("translated", {("bleu", "none"): [0.0] * 5}, choices=None)


def logs(folder: Path, *tasks: LoggedTask, groups: dict[str, list[str]] | None = None) -> Path:
    """As `write_logs`; what a corpus metric logs of a document is its two texts."""
    place = write_logs(folder, tasks or (CHOICE, SOLVED), groups) / "some__model"
    for task in tasks:
        filters = dict.fromkeys(name for _, name in task.scores)
        if any(metric == "bleu" for metric, _ in task.scores):
            lines = [sample(task, index, name) for name in filters for index in range(task.count)]
            lines = [line | ({"bleu": ["a", "b"]} if "bleu" in line else {}) for line in lines]
            (place / f"samples_{task.name}_{DATE}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return place


def refused(folder: Path, *names: str) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, *names)
    message = str(caught.value)
    assert "\n" not in message
    return message


def read(folder: Path, *names: str) -> Answers:
    answers = read_answers(str(folder), names or None)
    return take_tasks(answers, names) if names else answers


def compress(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def edited(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: write(path, change(path.read_bytes()))


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


HARMLESS: dict[str, Callable[[Path], None]] = {
    "a byte-order mark": edited(lambda data: b"\xef\xbb\xbf" + data),
    "an empty last line": edited(lambda data: data + b"\n"),
    "blank lines": edited(lambda data: b"\n \n" + data.replace(b"\n", b"\n\n") + b"\t\n\n"),
    "ends of Windows": edited(lambda data: data.replace(b"\n", b"\r\n") + b"\r\n"),
    "no last end": edited(lambda data: data.rstrip(b"\n")),
    "compressed": compress,
    "beside one that is compressed": lambda path: write(path.with_name(f"{path.name}.gz"), b"another"),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_changes_nothing_is_read_as_what_it_is(tmp_path: Path, kind: str) -> None:
    plain, other = (logs(tmp_path / name) for name in ("plain", "other"))
    for path in list(other.iterdir()):
        HARMLESS[kind](path)
    expected, found = read(plain), read(other)
    assert found.outcomes == expected.outcomes and found.groups == expected.groups
    assert found.read_documents("choice") == expected.read_documents("choice")
    assert not found.notes


BROKEN: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "cut off": ("samples", lambda data: data[:-100], "line 40: not JSON (EOF while parsing"),
    "twice": ("samples", lambda data: data * 2, "document 0 is in it twice: two logs in one; take one away"),
    "another encoding": ("samples", lambda data: data.decode().encode("utf-16"), "byte-order mark; save it as UTF-8"),
    "nested": ("samples", lambda data: b"[" * 100_000, "line 1: not JSON (nested too deep"),
    "a list": ("samples", lambda data: b"[]\n", "line 1: a list, expected a JSON object"),
    "another type": ("samples", lambda data: data.replace(b'"resps": [', b'"resps": [5, '), "not as lm-eval 0.4.13"),
    "results nested": ("results", lambda data: b'{"a":' * 100_000, "not JSON (nested too deep"),
    "results of another type": (
        "results",
        lambda data: data.replace(b'"multiple_choice"', b"[]"),
        "output_type: found []",
    ),
    "no number": (
        "samples",
        lambda data: data.replace(b'"acc": 1.0', b'"acc": NaN'),
        "that are not numbers in 30 of 40",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_broken_is_named_and_left_out_by_tasks(tmp_path: Path, kind: str) -> None:
    which, change, message = BROKEN[kind]
    place = logs(tmp_path / "x")
    path = place / (f"samples_choice_{DATE}.jsonl" if which == "samples" else f"results_{DATE}.json")
    path.write_bytes(change(path.read_bytes()))
    found = refused(place)
    assert message in found
    if which == "samples":
        assert found.endswith("or choose others with --tasks") or kind == "no number"
        assert list(read(place, "solved").outcomes) == ["solved"]


def test_a_filter_that_some_documents_lack_is_a_log_cut_off(tmp_path: Path) -> None:
    path = logs(tmp_path / "x") / f"samples_solved_{DATE}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "20 of 20 documents: the log is cut off" in refused(path.parent)


def test_compressed_and_cut_off(tmp_path: Path) -> None:
    path = logs(tmp_path / "x") / f"samples_solved_{DATE}.jsonl"
    compress(path)
    path = path.with_name(f"{path.name}.gz")
    path.write_bytes(path.read_bytes()[:100])
    assert "cut off, or not compressed by gzip" in refused(path.parent)


def test_a_task_that_cannot_be_paired_is_left_out_aloud(tmp_path: Path) -> None:
    mixed = replace(SOLVED, name="mixed", scores={**SOLVED.scores, ("bleu", "strict"): [0.0] * 20})
    places = [str(logs(tmp_path / name, CHOICE, BLEU)) for name in ("base", "other")]
    note = "note: translated: bleu: no score of each document that could be paired, left out\n"
    for command in ("verdict", "diff"):
        ran = CliRunner().invoke(app, [command, *places])
        assert ran.exit_code in (0, 1), ran.exception
        assert ran.stderr.count(note) == 1
    assert list(read(Path(places[0])).outcomes) == ["choice"]
    assert refused(Path(places[0]), "translated").endswith(
        "translated: bleu: no score of each document that could be paired; choose others with --tasks"
    )
    assert not read(Path(places[0]), "choice").notes
    alone = logs(tmp_path / "alone", BLEU)
    assert refused(alone).endswith("that could be paired; choose others with --tasks")
    path = logs(tmp_path / "mixed", mixed) / f"samples_mixed_{DATE}.jsonl"
    found = read(path.parent)
    assert found.outcomes["mixed"].metrics[0].name == "exact_match"


def test_groups_of_what_is_left(tmp_path: Path) -> None:
    groups = {"all": ["choice", "inner"], "inner": ["translated", "solved"], "loop": ["loop", "choice"]}
    place = logs(tmp_path / "x", CHOICE, SOLVED, BLEU, groups=groups)
    rows = {group.name: group.tasks for group in read(place).groups}
    assert rows == {"all": ("choice", "solved"), "inner": ("solved",), "loop": ("choice",)}
    assert {group.name: group.tasks for group in read(place, "inner").groups} == {"inner": ("solved",)}
    assert {group.name for group in read(place, "choice").groups} == {"loop"}
    assert "unknown task 'chose'; nearest: choice" in refused(place, "chose")


def test_arguments_as_an_older_lm_eval_logs_them(tmp_path: Path) -> None:
    plain, old = (logs(tmp_path / name, CHOICE) for name in ("plain", "old"))
    path = old / f"samples_choice_{DATE}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["arguments"] = [list(each.values()) for each in line["arguments"].values()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read(old).read_documents("choice") == read(plain).read_documents("choice")


def test_results_without_samples_say_which_flag_is_missing(tmp_path: Path) -> None:
    place = logs(tmp_path / "x")
    for path in place.glob("samples_*"):
        path.unlink()
    assert f"results_{DATE}.json and no samples_TASK_DATE.jsonl; run lm_eval again with --log_samples" in refused(place)


def test_a_folder_that_holds_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MOST_ENTRIES", 3)
    logs(tmp_path / "x")
    assert "more than 3 files and folders in it" in refused(tmp_path)


VALUES: tuple[Any, ...] = (None, 5, -1.5, True, "", "x", [], [1], [["x"]], {}, {"x": 1}, 10**400, float("nan"))


def mutate(value: Any, draw: random.Random) -> Any:
    """One value somewhere inside is another."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        return (
            {**value, key: mutate(value[key], draw)}
            if draw.random() < 0.9
            else {k: value[k] for k in value if k != key}
        )
    if isinstance(value, list) and value and draw.random() < 0.8:
        index = draw.randrange(len(value))
        return [*value[:index], mutate(value[index], draw), *value[index + 1 :]]
    return draw.choice(VALUES)


@pytest.mark.parametrize("seed", range(3))
def test_mutated_logs_are_read_or_refused_in_one_line(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    small = (replace(CHOICE, scores={("acc", "none"): [1.0, 0.0]}), replace(SOLVED, scores={("f1", "none"): [1.0] * 2}))
    place = logs(tmp_path / "x", *small, groups={"both": ["choice", "solved"]})
    kept = {path: path.read_text() for path in place.iterdir()}
    for _ in range(40):
        path = draw.choice(sorted(kept))
        lines = [kept[path]] if path.suffix == ".json" else kept[path].splitlines()
        index = draw.randrange(len(lines))
        lines[index] = json.dumps(mutate(json.loads(lines[index]), draw))
        path.write_text("\n".join(lines))
        try:
            found = read(place)
            for task in found.outcomes:
                found.read_documents(task)
        except UserError as error:
            assert "\n" not in str(error)
        path.write_text(kept[path])
