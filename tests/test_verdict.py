"""`bitladder verdict` and `diff` on lm-eval's logs: what they say, what they refuse, and that they need no torch."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bitladder.accuracy.answers import Answers, read_all, read_answers, require_comparable, study_answers, take_tasks
from bitladder.cli.logs import diff_command, verdict_command
from bitladder.errors import UserError
from bitladder.records import Status
from bitladder.report.verdict_tables import verdict_tables
from bitladder.results.store import Store
from bitladder.stats.paired import tango_interval
from bitladder.study.resolved import task_sources
from bitladder.summary.comparison import Compared, Flip, compared_rungs
from bitladder.summary.summarize import summarize
from lm_eval_logs import DATE, LoggedTask, write_logs
from replay import RUNGS, write_replay
from replay_outcomes import TaskReplay

GOLDEN = Path(__file__).parent / "golden"
HEAVY = ("torch", "transformers", "lm_eval", "bitsandbytes", "datasets", "accelerate")

app = typer.Typer()
app.command("verdict")(verdict_command)
app.command("diff")(diff_command)


def right(count: int, of: int) -> list[float]:
    return [1.0] * count + [0.0] * (of - count)


def changed(scores: Sequence[float], lost: int, gained: int) -> list[float]:
    """The first right ones lost, the last wrong ones gained."""
    found = list(scores)
    found[:lost] = [0.0] * lost
    return found[: len(found) - gained] + [1.0] * gained


def sources(count: int) -> list[dict[str, Any]]:
    return [{"ctx": f"Someone does {index}", "source_id": f"film {index // 2}"} for index in range(count)]


def tasks(lost: float = 0.0, gained: float = 0.0) -> list[LoggedTask]:
    """Five tasks of known answers: a rung loses and gains these shares of 200 documents of each, of GSM8K's 60."""

    def scores(count: int, of: int) -> list[float]:
        return changed(right(count, of), round(lost * of), round(gained * of))

    math = [{"question": f"How much is {index} and {index}?", "answer": f"#### {2 * index}"} for index in range(60)]
    solved = {("exact_match", "strict-match"): scores(30, 60), ("exact_match", "flexible-extract"): scores(40, 60)}
    return [
        LoggedTask("arc_easy", {("acc", "none"): scores(120, 200), ("acc_norm", "none"): scores(110, 200)}),
        LoggedTask("hellaswag", {("acc", "none"): scores(90, 200)}, docs=sources(200)),
        LoggedTask("mmlu_anatomy", {("acc", "none"): scores(120, 200)}),
        LoggedTask("mmlu_law", {("acc", "none"): scores(100, 200)}),
        LoggedTask("gsm8k", solved, choices=None, docs=math, num_fewshot=5),
        LoggedTask("gsm8k_cot", solved, choices=None, docs=math, num_fewshot=8),
    ]


GROUPS = {"mmlu": ["mmlu_stem", "mmlu_law"], "mmlu_stem": ["mmlu_anatomy"]}


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs of a baseline and of three rungs, in a folder each."""
    folder = tmp_path_factory.mktemp("logs")
    shares = {"bf16": (0.0, 0.0), "fp16": (0.0, 0.0), "int8": (0.015, 0.015), "fp4": (0.15, 0.01)}
    for name, (lost, gained) in shares.items():
        write_logs(folder / name, tasks(lost, gained), GROUPS)
    return folder


def run(*arguments: str, code: int = 0) -> str:
    ran = CliRunner().invoke(app, arguments)
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    assert ran.exit_code == code
    return ran.stdout


def compared(*arguments: str, code: int = 0) -> Compared:
    return Compared.model_validate_json(run("verdict", *arguments, "--json", code=code))


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("BITLADDER_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_verdict_is_golden(logs: Path) -> None:
    rungs = [str(logs / name) for name in ("bf16", "fp16", "int8", "fp4")]
    check_golden("verdict.txt", run("verdict", *rungs, "--max-drop", "2pt", code=1))


def test_diff_is_golden(logs: Path) -> None:
    check_golden("diff.txt", run("diff", str(logs / "bf16"), str(logs / "int8"), "--task", "arc_easy,gsm8k"))


def test_a_rung_within_the_margin_is_exit_0(logs: Path) -> None:
    found = compared(str(logs / "bf16"), str(logs / "fp16"), "--max-drop", "2pt")
    (rung,) = found.others
    assert (rung.rung, rung.aggregate.verdict) == ("fp16", "within the margin")
    assert (found.baseline, found.margin_points) == ("bf16", 2.0)


def test_any_rung_that_is_open_or_beyond_is_exit_1(logs: Path) -> None:
    found = compared(str(logs / "bf16"), str(logs / "fp16"), str(logs / "int8"), "--max-drop", "0.5pt", code=1)
    assert [rung.aggregate.verdict for rung in found.others] == ["undecided", "undecided"]
    beyond = compared(str(logs / "bf16"), str(logs / "fp4"), code=1)
    assert beyond.others[0].aggregate.verdict == "beyond the margin"


def test_one_task_is_tangos_interval(logs: Path) -> None:
    found = compared(str(logs / "bf16"), str(logs / "int8"), "--tasks", "arc_easy", code=1).others[0]
    task, interval = found.tasks[0], tango_interval(3, 3, 200)
    assert (task.metric, task.gained, task.lost, task.changed) == ("acc", 3, 3, 6)
    assert task.difference_points.low == pytest.approx(100 * interval.low)
    assert found.aggregate.difference_points == task.difference_points


def test_groups_are_lm_evals_and_each_question_counts_once(logs: Path) -> None:
    found = read_answers(str(logs / "bf16"))
    assert {group.name: (len(group.tasks), group.in_aggregate) for group in found.groups} == {
        "mmlu": (2, True),
        "mmlu_stem": (1, False),
        "arc_easy": (1, True),
        "hellaswag": (1, True),
        "gsm8k + gsm8k_cot": (2, True),
        "gsm8k": (1, False),
        "gsm8k_cot": (1, False),
    }
    summary = compared(str(logs / "bf16"), str(logs / "fp16"), "--max-drop", "5pt").others[0].aggregate
    assert summary.tasks == ("mmlu", "gsm8k + gsm8k_cot", "arc_easy", "hellaswag")


def test_answers_to_one_question_in_two_ways_count_by_question(logs: Path) -> None:
    """Both parts of GSM8K flip alike here, so that together they say what one of them says."""
    found = compared(str(logs / "bf16"), str(logs / "fp4"), code=1).others[0]
    both, one = (
        next(task for task in found.tasks if (task.name, task.metric) == (name, "exact_match (strict-match)"))
        for name in ("gsm8k + gsm8k_cot", "gsm8k")
    )
    assert (both.questions, both.lost, one.lost) == (60, 18, 9)
    assert both.difference_points.low == pytest.approx(one.difference_points.low, abs=1.0)


def test_sources_are_clusters(logs: Path) -> None:
    documents = read_answers(str(logs / "bf16")).outcomes["hellaswag"].documents
    assert [document.cluster for document in documents[:3]] == ["film 0", "film 0", "film 1"]
    found = compared(str(logs / "bf16"), str(logs / "fp4"), "--tasks", "hellaswag", code=1).others[0].tasks[0]
    alone = tango_interval(2, 30, 200)
    width = (found.difference_points.high or 0) - (found.difference_points.low or 0)
    assert width > 110 * (alone.high - alone.low)  # the 30 lost ones are of 15 sources


def test_questions_on_one_passage_are_not_independent(tmp_path: Path) -> None:
    """60 passages of 16 questions each, of which a rung loses most of three."""
    texts = [
        f"{number} ".join(["once", "upon", "a", "time", "there", "was", "a", "passage"]) * 12 for number in range(60)
    ]
    docs = [
        {"passage": texts[index // 16], "question": f"Number {index}?", "book": index // 32} for index in range(960)
    ]
    base = right(700, 960)
    lost = [0.0 if index < 40 else value for index, value in enumerate(base)]
    for name, values in (("bf16", base), ("nf4", lost)):
        write_logs(tmp_path / name, [LoggedTask("boolq", {("acc", "none"): values}, choices=2, docs=docs)])
    paths = [str(tmp_path / name) for name in ("bf16", "nf4")]
    found = compared(*paths, "--max-drop", "5pt", code=1).others[0]
    assert found.aggregate.difference_points.value == pytest.approx(-100 * 40 / 960)
    assert found.aggregate.verdict == "undecided"
    by_book = compared(*paths, "--max-drop", "5pt", "--cluster", "book", code=1).others[0].aggregate.difference_points
    low = found.aggregate.difference_points.low
    assert by_book.low is not None and low is not None and by_book.low < low
    with pytest.raises(UserError, match=r"no document in .* has that field; found book, passage, question"):
        run("verdict", *paths, "--cluster", "bok", code=2)


def test_a_passage_that_two_tasks_quote_makes_both_depend_on_each_other(tmp_path: Path) -> None:
    """The same answers as one task of 320 questions and as two of 160 each, on the same 40 passages."""
    texts = [f"{number} ".join(["once", "upon", "a", "time", "there", "was", "a", "text"]) * 12 for number in range(40)]
    docs = [{"passage": texts[index // 4 % 40], "question": f"Number {index}?"} for index in range(320)]
    base = right(240, 320)
    lost = [0.0 if index // 4 % 40 in (3, 17) else value for index, value in enumerate(base)]
    limits = {}
    for count, parts in (("one", [slice(0, 320)]), ("two", [slice(0, 160), slice(160, 320)])):
        for name, values in (("bf16", base), ("nf4", lost)):
            logged = [
                LoggedTask(f"task{number}", {("acc", "none"): values[part]}, choices=2, docs=docs[part])
                for number, part in enumerate(parts)
            ]
            write_logs(tmp_path / count / name, logged)
        paths = [str(tmp_path / count / name) for name in ("bf16", "nf4")]
        limits[count] = compared(*paths, code=1).others[0].aggregate.difference_points
    width = {count: one.high - one.low for count, one in limits.items() if one.high is not None and one.low is not None}
    assert limits["one"].value == pytest.approx(limits["two"].value)
    assert width["two"] >= 0.99 * width["one"]


def test_other_metrics_are_rows_of_their_own_and_in_no_aggregate(logs: Path) -> None:
    found = compared(str(logs / "bf16"), str(logs / "fp16"), "--tasks", "arc_easy,gsm8k", code=1).others[0]
    assert [(task.name, task.metric, task.weight) for task in found.tasks] == [
        ("arc_easy", "acc", 1.0),
        ("arc_easy", "acc_norm", None),
        ("gsm8k", "exact_match (strict-match)", 1.0),
        ("gsm8k", "exact_match (flexible-extract)", None),
    ]


def test_scores_on_a_scale_take_t(tmp_path: Path) -> None:
    graded = [0.25 * (index % 5) for index in range(60)]
    for name, shift in (("bf16", 0.0), ("nf4", -0.1)):
        values = [max(0.0, value + shift * (index % 3)) for index, value in enumerate(graded)]
        write_logs(tmp_path / name, [LoggedTask("squad", {("f1", "none"): values}, choices=None)])
    task = compared(str(tmp_path / "bf16"), str(tmp_path / "nf4"), code=1).others[0].tasks[0]
    assert (task.metric, task.gained, task.lost) == ("f1", None, None)
    assert task.difference_points.value == pytest.approx(-100 * 5.55 / 60, abs=2)
    assert task.difference_points.low is not None


def test_a_baseline_that_guesses_has_no_signal(tmp_path: Path) -> None:
    for name in ("bf16", "nf4"):
        write_logs(tmp_path / name, [LoggedTask("arc_easy", {("acc", "none"): right(25, 100)})])
    shown = run("verdict", str(tmp_path / "bf16"), str(tmp_path / "nf4"), code=1)
    assert "no signal" in shown and "is less than 5 points above chance, 25.0%" in shown


@pytest.mark.slow
@pytest.mark.parametrize("known", [0, 19, 20, 24, 65])
def test_a_task_that_the_model_cannot_do_changes_no_verdict(known: int, tmp_path: Path) -> None:
    """2 points lost of ARC-Easy are beyond a margin of 1.5, whatever a few lucky answers in GSM8K do."""
    easy, n = right(1600, 2376), 2376
    lost = [value if index >= 48 else 0.0 for index, value in enumerate(easy)]
    verdicts = {}
    for tasks in (("arc_easy",), ("arc_easy", "gsm8k")):
        for name, answers, half in (("bf16", easy, 0), ("nf4", lost, known // 2)):
            logged = [
                LoggedTask("arc_easy", {("acc", "none"): answers}),
                LoggedTask("gsm8k", {("exact_match", "strict-match"): right(known - half, 1319)}, choices=None),
            ]
            write_logs(tmp_path / f"{name}{len(tasks)}", [one for one in logged if one.name in tasks])
        paths = [str(tmp_path / f"{name}{len(tasks)}") for name in ("bf16", "nf4")]
        verdicts[tasks] = compared(*paths, "--max-drop", "1.5pt", code=1).others[0].aggregate
    alone, both = verdicts.values()
    assert alone.verdict == both.verdict == "beyond the margin"
    assert alone.difference_points == both.difference_points
    assert alone.difference_points.value == pytest.approx(-100 * 48 / n)
    shown = run("verdict", *(str(tmp_path / f"{name}2") for name in ("bf16", "nf4")), code=1)
    assert "gsm8k is in no aggregate: the better score" in shown


def test_a_task_counts_by_the_better_of_two_scores_and_no_third_changes_that(tmp_path: Path) -> None:
    """The baseline at 32% of four choices has a weight of 0.4; beside a rung with 33.5%, it is 0.7."""
    for name, known in (("bf16", 640), ("nf4", 640), ("int8", 670)):
        write_logs(tmp_path / name, [LoggedTask("arc_easy", {("acc", "none"): right(known, 2000)})])
    paths = [str(tmp_path / name) for name in ("bf16", "nf4", "int8")]
    assert [rung.tasks[0].weight for rung in compared(*paths[:2]).rungs] == pytest.approx([0.4] * 2)
    assert [rung.tasks[0].weight for rung in compared(*paths).rungs] == pytest.approx([0.7, 0.4, 0.7])
    assert "mean of arc_easy (weight 0.40 to 0.70)" in run("verdict", *paths)


def test_a_third_model_that_can_do_a_task_hides_no_loss_of_another(tmp_path: Path) -> None:
    """Both compared can't do gsm8k, so that only arc_easy decides; a tuned model beside them can."""
    for name, easy, hard in (("bf16", 1600, 26), ("nf4", 1530, 26), ("tuned", 1600, 400)):
        logged = [
            LoggedTask("arc_easy", {("acc", "none"): right(easy, 2376)}),
            LoggedTask("gsm8k", {("exact_match", "strict-match"): right(hard, 1319)}, choices=None),
        ]
        write_logs(tmp_path / name, logged)
    paths = [str(tmp_path / name) for name in ("bf16", "nf4", "tuned")]
    for others in (paths[1:2], paths[1:]):
        found = compared(paths[0], *others, "--max-drop", "1.5pt", code=1)
        assert found.aggregate("nf4").difference_points.value == pytest.approx(-100 * 70 / 2376)
        assert found.aggregate("nf4").verdict == "beyond the margin"


def test_a_task_that_loses_more_by_itself_is_named_and_may_be_refused(tmp_path: Path) -> None:
    for name, lost in (("bf16", 0), ("nf4", 60)):
        logged = [
            LoggedTask("arc_easy", {("acc", "none"): right(1600, 2376)}),
            LoggedTask("gsm8k", {("exact_match", "strict-match"): right(400 - lost, 1319)}, choices=None),
        ]
        write_logs(tmp_path / name, logged)
    paths = [str(tmp_path / name) for name in ("bf16", "nf4")]
    shown = run("verdict", *paths, "--max-drop", "3.1pt")
    assert "nf4 by itself loses more than 3.1 points on gsm8k, whatever the aggregate says." in shown
    run("verdict", *paths, "--max-drop", "3.1pt", "--per-task", code=1)


@pytest.mark.parametrize(
    ("acc", "acc_norm", "told"),
    [
        (60, 60, ["arc_easy by acc_norm (in no aggregate)"]),
        (0, 60, ["arc_easy by acc_norm (in no aggregate)"]),
        (60, 0, []),
    ],
)
def test_what_is_no_task_of_the_aggregate_is_named_with_its_metric_and_fails_nothing(
    tmp_path: Path, acc: int, acc_norm: int, told: list[str]
) -> None:
    """Nor is the one task that the aggregate is of named beside it."""
    for name, lost, lost_norm in (("bf16", 0, 0), ("nf4", acc, acc_norm)):
        scores = {("acc", "none"): right(1600 - lost, 2376), ("acc_norm", "none"): right(1600 - lost_norm, 2376)}
        write_logs(tmp_path / name, [LoggedTask("arc_easy", scores)])
    paths = [str(tmp_path / name) for name in ("bf16", "nf4")]
    shown = run("verdict", *paths, "--max-drop", "1.5pt", "--per-task", code=1 if acc else 0)
    lines = [line for line in shown.splitlines() if " by itself loses more" in line]
    assert [line.split(" on ")[1].split(", whatever")[0] for line in lines] == told


def test_a_task_without_weight_fails_nothing(tmp_path: Path) -> None:
    for name, lost in (("bf16", 0), ("nf4", 60)):
        solved = {
            ("exact_match", "strict-match"): right(20, 1319),
            ("exact_match", "flexible-extract"): right(528 - lost, 1319),
        }
        logged = [LoggedTask("arc_easy", {("acc", "none"): right(1600, 2376)})]
        write_logs(tmp_path / name, [*logged, LoggedTask("gsm8k", solved, choices=None)])
    shown = run("verdict", *(str(tmp_path / name) for name in ("bf16", "nf4")), "--per-task", "--max-drop", "1.5pt")
    assert "nf4 by itself loses more than 1.5 points on gsm8k by exact_match" in shown


def test_a_recovery_is_of_the_baselines_own_score(tmp_path: Path) -> None:
    for name, lost in (("bf16", 0), ("nf4", 12)):
        write_logs(tmp_path / name, [LoggedTask("arc_easy", {("acc", "none"): right(1600 - lost, 2000)})])
    paths = [str(tmp_path / name) for name in ("bf16", "nf4")]
    found = compared(*paths, "--min-recovery", "98%")
    assert found.margin_points == 1.6, "2% of 80%"
    nf4 = found.others[0].tasks[0]
    assert nf4.recovery_percent.value == pytest.approx(100 * 1588 / 1600)
    assert nf4.recovery_above_chance_percent.value == pytest.approx(100 * (1588 - 500) / (1600 - 500))
    assert compared(*paths, "--min-recovery", "99.5", code=1).margin_points == 0.4
    shown = run("verdict", *paths, "--min-recovery", "98%")
    assert "Verdicts against bf16, margin 1.6 points, 98% of its score kept" in shown
    assert " Recovery (%) " in shown and re.search(r"99\.\d \[", shown)
    assert "Recovery" not in run("verdict", *paths, "--max-drop", "1.6pt")
    for flags, said in (
        (["--min-recovery", "98%", "--max-drop", "1pt"], "give one of them"),
        (["--min-recovery", "100%"], "leaves nothing to lose"),
        (["--min-recovery", "101%"], "expected no more than 100%"),
        (["--min-recovery", "0.99"], "which may mean 99% or 0.99%"),
        (["--min-recovery", "most"], "expected per cent such as 99%"),
    ):
        with pytest.raises(UserError, match=said):
            run("verdict", *paths, *flags, code=2)


def test_a_rung_of_a_study_stands_beside_another(tmp_path: Path) -> None:
    study = write_replay(tmp_path / "study", only="accuracy")
    found = compared(f"{study}:bf16", f"{study}:nf4", f"{study}:fp4", "--max-drop", "5pt", code=1)
    assert [rung.aggregate.verdict for rung in found.others] == ["within the margin", "beyond the margin"]
    shown = run("diff", str(study), "nf4", "--task", "bitladder_language")
    assert shown.startswith("nf4 against bf16, 140 documents: 4 lost, 2 gained, 0 with another choice")


def test_answers_to_an_earlier_plan_are_said_to_be_there(tmp_path: Path) -> None:
    store = Store(write_replay(tmp_path, only="accuracy", rungs={name: RUNGS[name] for name in ("bf16", "nf4")}))
    study = store.read_study()
    with pytest.raises(UserError, match=r"nf4 has no answers to its present plan, only to an earlier one, in records/"):
        changed = tuple(item.model_copy(update={"seed": 7}) for item in study.items)
        store.write_study(study.model_copy(update={"items": changed}))
        study_answers(store.load(), "nf4")
    shutil.rmtree(tmp_path / "records")
    with pytest.raises(UserError, match="nf4 has no answers; run the study with accuracy first"):
        study_answers(store.load(), "nf4")


def test_prose_is_no_question_and_thousands_are_set_apart(tmp_path: Path) -> None:
    asked = TaskReplay("bitladder_language", "choice", 1400, 0.70), TaskReplay("bitladder_prose", "rolling", 12)
    study = write_replay(tmp_path, only="accuracy", tasks=asked, rungs={name: RUNGS[name] for name in ("bf16", "nf4")})
    assert run("diff", str(study), "nf4").startswith("nf4 against bf16, 1,400 documents: 42 lost, 21 gained")


Change = Callable[[list[LoggedTask]], list[LoggedTask]]


def only(change: Callable[[LoggedTask], LoggedTask]) -> Change:
    return lambda logged: [change(logged[0]), *logged[1:]]


def replaced(**fields: Any) -> Change:
    return only(lambda task: replace(task, **fields))


CANNOT_COMPARE: Mapping[str, tuple[Change, str]] = {
    "few-shot": (replaced(num_fewshot=5), "arc_easy: not the same few-shot: 0 in bf16, 5 in other"),
    "version": (replaced(version=2.0), "arc_easy: not the same task version: 1.0 in bf16, 2.0 in other"),
    "prompts": (
        replaced(prompt="Q{index} {task}"),
        "arc_easy: not the same prompts: 200 of 200 documents were put in other words in other than in bf16",
    ),
    "documents": (
        replaced(docs=[{"question": f"other {index}"} for index in range(200)]),
        "arc_easy: not the same documents: 200 of 200 are bf16's alone, 200 of 200 other's alone",
    ),
    "limit": (
        replaced(scores={("acc", "none"): right(60, 100), ("acc_norm", "none"): right(60, 100)}),
        "arc_easy: not the same documents: 100 of 200 are bf16's alone, 0 of 100 other's alone",
    ),
    "tasks": (lambda logged: logged[1:], "other has no arc_easy, which bf16 has; log the same tasks, or choose some"),
}


@pytest.mark.parametrize("name", CANNOT_COMPARE)
def test_what_cannot_be_compared_is_named(logs: Path, tmp_path: Path, name: str) -> None:
    change, message = CANNOT_COMPARE[name]
    write_logs(tmp_path / "other", change(tasks()), GROUPS)
    with pytest.raises(UserError) as refused:
        run("verdict", str(logs / "bf16"), str(tmp_path / "other"))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_folders_of_one_name_are_told_apart_by_their_paths(logs: Path, tmp_path: Path) -> None:
    for name in ("bf16", "fp4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "logs").symlink_to(logs / name)
    found = read_all([str(tmp_path / "bf16" / "logs"), str(logs / "fp4")])
    assert [one.name for one in found] == ["bf16", "fp4"]
    for name in ("bf16", "fp4"):
        (tmp_path / name / "logs").unlink()
        shutil.copytree(logs / name, tmp_path / name / "logs")
    found = read_all([str(tmp_path / "bf16" / "logs"), str(tmp_path / "fp4" / "logs"), str(logs / "fp4")])
    assert [one.name for one in found] == ["bf16/logs", "fp4/logs", "fp4"]


def test_two_sets_of_one_name(logs: Path) -> None:
    with pytest.raises(UserError, match="'bf16' stands 2 times"):
        run("verdict", str(logs / "bf16"), str(logs / "bf16"))


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def without(key: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        lines = [json.loads(line) for line in text.splitlines()]
        return "".join(
            json.dumps({name: value for name, value in line.items() if name != key}) + "\n" for line in lines
        )

    return change


BROKEN: Mapping[str, tuple[str, Callable[[str], str], str]] = {
    "a line cut off": (
        "samples",
        lambda text: text[:-100],
        "line 200: not JSON (EOF while parsing a string at line 1 column 835); is it cut off? run the task",
    ),
    "lines missing": ("samples", lambda text: text[: text.index("\n") + 1], "1 of 200 documents: the log is cut off"),
    "nothing": ("samples", lambda text: "", "no samples in it; run the task again"),
    "no doc_hash": ("samples", without("doc_hash"), "no doc_hash in line 1: written by lm-eval 0.4.13, and pairing"),
    "no prompt_hash": ("samples", without("prompt_hash"), "no prompt_hash in line 1"),
    "no score": ("samples", without("acc"), "no acc in line 1"),
    "results cut off": ("results", lambda text: text[:50], "not JSON"),
    "results of an old version": (
        "results",
        lambda text: text.replace("n-samples", "samples"),
        "no 'n-samples' in it, which lm-eval 0.4.13 writes",
    ),
    "results of another task": ("results", lambda text: text.replace("hellaswag", "hella"), "no hellaswag in it"),
    "an infinite answer": (
        "samples",
        lambda text: text.replace('"-0.5"', '"nan"'),
        "log-likelihoods or scores that are not numbers",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_logs_are_one_line(tmp_path: Path, name: str) -> None:
    kind, change, message = BROKEN[name]
    folder = write_logs(tmp_path / "bf16", [tasks()[1]]) / "some__model"
    edit(folder / (f"samples_hellaswag_{DATE}.jsonl" if kind == "samples" else f"results_{DATE}.json"), change)
    with pytest.raises(UserError) as refused:
        run("verdict", str(tmp_path / "bf16"), str(tmp_path / "bf16"))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_folders_that_are_no_logs(logs: Path, tmp_path: Path) -> None:
    def refused(source: Path | str) -> str:
        with pytest.raises(UserError) as error:
            read_answers(str(source))
        return str(error.value)

    assert "no samples_TASK_DATE.jsonl in it; expected the --output_path of lm_eval" in refused(tmp_path)
    assert "no such folder" in refused(tmp_path / "absent")
    assert "logs of several models, name one" in refused(logs)
    (write_logs(tmp_path / "x", [tasks()[1]]) / "some__model" / f"results_{DATE}.json").unlink()
    assert f"no results_{DATE}.json beside samples_hellaswag" in refused(tmp_path / "x")
    study = write_replay(tmp_path / "study", only="accuracy")
    assert f"name one as {study}:RUNG" in refused(study)
    assert "unknown rung 'nf5'; nearest: nf4" in refused(f"{study}:nf5")


def test_the_newest_of_several_logs_is_read_and_said(tmp_path: Path) -> None:
    task = tasks()[1]
    write_logs(tmp_path / "bf16", [task])
    newer = replace(task, scores={("acc", "none"): right(100, 200)})
    write_logs(tmp_path / "bf16", [newer], date=DATE.replace("2026", "2027"))
    found = read_answers(str(tmp_path / "bf16"))
    assert sum(document.metrics["acc,none"] == 1 for document in found.outcomes["hellaswag"].documents) == 100
    (note,) = found.notes
    assert "2 logs of hellaswag, of which the newest is read" in note


def test_a_part_of_a_group_is_a_row_where_the_whole_is_not_asked_for(logs: Path) -> None:
    found = take_tasks(read_answers(str(logs / "bf16")), ["mmlu_stem", "mmlu_law"])
    assert {group.name: group.in_aggregate for group in found.groups} == {"mmlu": True, "mmlu_stem": False}
    found = take_tasks(read_answers(str(logs / "bf16")), ["mmlu_stem"])
    assert {group.name: group.in_aggregate for group in found.groups} == {"mmlu_stem": True}
    with pytest.raises(UserError, match="unknown task 'arc_eazy'; nearest: arc_easy"):
        take_tasks(read_answers(str(logs / "bf16")), ["arc_eazy"])


def test_flips_have_both_ways_and_their_probabilities(logs: Path) -> None:
    shown = json.loads(run("diff", str(logs / "bf16"), str(logs / "int8"), "--json"))
    flips = [Flip.model_validate(one) for one in shown]
    arc = [flip for flip in flips if flip.task == "arc_easy"]
    assert [flip.kind for flip in arc] == ["lost"] * 3 + ["gained"] * 3
    first = arc[0]
    assert first.choices is not None and first.baseline.choice is not None and first.rung.choice is not None
    assert first.target == first.choices[first.baseline.choice] != first.choices[first.rung.choice]
    assert first.baseline.probabilities is not None
    assert sum(first.baseline.probabilities) == pytest.approx(1)
    assert max(first.baseline.probabilities) == first.baseline.probabilities[first.baseline.choice]
    solved = next(flip for flip in flips if flip.task == "gsm8k")
    assert solved.choices is None and solved.baseline.text != solved.rung.text


@pytest.mark.slow
def test_what_lm_evals_own_tracker_writes_is_what_a_study_records(tmp_path: Path, tiny_llama: Path) -> None:
    """A model that answers, lm-eval's evaluation and its log, read back: the records are those of a study."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM

    from bitladder.accuracy.samples import collect_samples
    from bitladder.records import Settings
    from bitladder.tasks.library import task_library

    task = task_library(task_sources(Settings(model="x", tasks=("bitladder_language",)))).task("bitladder_language")
    task.set_fewshot_seed(seed=1)
    model = HFLM(pretrained=str(tiny_llama), dtype="float32", device="cpu")
    asked = {"tasks": {"bitladder_language": task}, "groups": {}, "group_map": {}}
    results = lm_eval.evaluate(lm=model, task_dict=asked, limit=6, bootstrap_iters=0, log_samples=True)
    outcome, documents = collect_samples(task, results, (), {})
    tracker = EvaluationTracker(output_path=str(tmp_path / "logs"))
    tracker.general_config_tracker.model_name_sanitized = "tiny"
    samples = results.pop("samples")
    tracker.save_results_aggregated(results, samples)
    tracker.save_results_samples("bitladder_language", samples["bitladder_language"])
    found = read_answers(str(tmp_path / "logs"))
    assert found.outcomes["bitladder_language"].documents == outcome.documents
    assert found.outcomes["bitladder_language"].metrics == outcome.metrics
    assert found.read_documents("bitladder_language").documents == documents.documents


@pytest.mark.slow
def test_needs_no_torch(logs: Path) -> None:
    code = (
        "import sys; sys.argv = ['bitladder', *sys.argv[1:]]\n"
        "from bitladder.cli.main import run\n"
        f"try: run()\nfinally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    for arguments in (
        ["verdict", str(logs / "bf16"), str(logs / "fp16")],
        ["diff", str(logs / "bf16"), str(logs / "fp4")],
    ):
        ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
        assert ran.returncode in (0, 1)
        assert ran.stderr.strip().endswith("[]")


def test_comparable_answers_pass(logs: Path) -> None:
    sets: list[Answers] = [read_answers(str(logs / name)) for name in ("bf16", "fp4")]
    require_comparable(sets[0], sets[1:])


MODEL = {
    "model": "hf",
    "model_args": {"pretrained": "some/model", "dtype": "bfloat16"},
    "model_dtype": "torch.bfloat16",
}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model_args": {"pretrained": "some/model", "dtype": "float16"}}, "dtype is bfloat16 in results_"),
        ({"model_args": MODEL["model_args"] | {"load_in_4bit": True}}, "load_in_4bit is not given in results_"),  # type: ignore[operator]
        ({"model": "vllm"}, "model is hf in results_"),
    ],
)
def test_logs_of_two_models_in_one_folder_are_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    """lm-eval names the folder by `pretrained`, whatever else the model was made with."""
    dates = (DATE, DATE.replace("2026", "2027"))
    for task, date, config in zip(tasks()[1:3], dates, (MODEL, MODEL | other), strict=True):
        results = write_logs(tmp_path / "bf16", [task], date=date) / "some__model" / f"results_{date}.json"
        results.write_text(json.dumps(json.loads(results.read_text()) | {"config": config}))
    with pytest.raises(UserError) as refused:
        read_answers(str(tmp_path / "bf16"))
    assert "logs of several models" in str(refused.value) and message in str(refused.value)


def test_arguments_as_an_older_lm_eval_writes_them_are_the_same_model(tmp_path: Path) -> None:
    dates = (DATE, DATE.replace("2026", "2027"))
    typed = MODEL | {"model_args": "pretrained=some/model,dtype=bfloat16"}
    for task, date, config in zip(tasks()[1:3], dates, (MODEL, typed), strict=True):
        results = write_logs(tmp_path / "bf16", [task], date=date) / "some__model" / f"results_{date}.json"
        results.write_text(json.dumps(json.loads(results.read_text()) | {"config": config}))
    assert len(read_answers(str(tmp_path / "bf16")).outcomes) == 2


def test_a_log_of_mc2_says_what_guessing_scores(tmp_path: Path) -> None:
    docs = [{"question": f"{index}?", "mc2_targets": {"labels": [1, 0, 0, 0]}} for index in range(50)]
    values = [0.2 + 0.01 * index for index in range(50)]
    for name in ("bf16", "fp16"):
        write_logs(tmp_path / name, [LoggedTask("truthfulqa_mc2", {("acc", "none"): values}, docs=docs)])
    found = compared(str(tmp_path / "bf16"), str(tmp_path / "fp16"), "--max-drop", "10pt").others[0].tasks[0]
    assert (found.chance_percent, found.chance_reason) == (25.0, None)
    assert found.verdict == "within the margin"  # all equal, of 50


def test_the_limits_hold_for_those_that_are_judged(tmp_path: Path) -> None:
    """Not for a rung that could not be made, or has another's content."""
    ended: dict[str, tuple[Status, str]] = {"int8": ("refused", "it is FP4"), "fp4": ("failed", "no room")}
    one = {"int8": ended["int8"]}
    for broken, says in ((None, "the 4 verdicts hold"), (one, "the 3 verdicts hold")):
        summary = summarize(Store(write_replay(tmp_path / says, broken_rungs=broken)).load())
        assert says in verdict_tables(compared_rungs(summary))[0].notes[-1]
    ended["fp16"] = ended["fp4"]
    summary = summarize(Store(write_replay(tmp_path / "one", broken_rungs=ended)).load())
    assert verdict_tables(compared_rungs(summary))[0].notes[-1].startswith("Limits: 95%, of one precision by itself")
    ended["nf4"] = ended["fp4"]
    summary = summarize(Store(write_replay(tmp_path / "none", broken_rungs=ended)).load())
    assert verdict_tables(compared_rungs(summary))[0].notes[-1] == "Limits: none, since no precision could be judged."
