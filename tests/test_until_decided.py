"""A study that asks until it is decided: one order, stages, who is asked on, and what is said of it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bitladder.accuracy.harness import quiet, seeded
from bitladder.accuracy.library import task_library
from bitladder.accuracy.order import chosen_documents, prompts_of_the_whole
from bitladder.accuracy.tasks import resolve_tasks
from bitladder.archive import pack
from bitladder.cli.main import app
from bitladder.decide import recommend
from bitladder.merge import merge_results
from bitladder.publish.measured import find_measured, measured_tables
from bitladder.recommendation import Limits
from bitladder.records import Order, Settings, measurement_id, order_key
from bitladder.report.accuracy_tables import accuracy_tables
from bitladder.report.output import write_report
from bitladder.report.text import table_to_markdown
from bitladder.report.verdict_tables import verdict_text
from bitladder.stages import measured_items, row_stops
from bitladder.stats.answered import rungs_to_ask
from bitladder.stats.betting import EARLY_ALPHA, Draws, Side, decided_after
from bitladder.stats.simulation import ChangeRates
from bitladder.stats.staged_simulation import schedule_of, simulate_stages
from bitladder.stats.summarize import summarize
from bitladder.store import Store, load_results
from replay import accuracy_item
from replay_outcomes import TaskReplay, right_answers, task_documents
from staged_replay import RUNGS, SEED, TASKS, answer, write_plan

GOLDEN = Path(__file__).parent / "golden" / "until_decided.md"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks: one with sources, and two that ask the same questions with drawn examples."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, shots in (("hellaswag_like", 0), ("strict", 2), ("reasoned", 2)):
        rows = [
            {"question": f"is {i} even?", "choices": ["yes", "no"], "answer": i % 2, "source_id": f"s{i // 3}"}
            for i in range(300)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {name}.jsonl\n"
            f"    train: {name}.jsonl\ntest_split: test\ntraining_split: train\nfewshot_split: train\n"
            f"num_fewshot: {shots}\noutput_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\n"
            "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n"
        )
    return folder


def settings_of(tasks: Path, **changes: object) -> Settings:
    return Settings.model_validate({"model": "m", "tasks": (str(tasks),), "until_decided": True} | changes)


def chunks(settings: Settings, name: str, stops: tuple[int, ...]) -> list[list[int]]:
    library = task_library(settings)
    order = Order(seed=settings.seed, stops=stops)
    return [chosen_documents(library, name, None, Order(seed=settings.seed, chunk=chunk)) for chunk in order.chunks]


def test_the_order_is_the_seeds_alone_and_keeps_clusters_and_questions_together(tasks: Path) -> None:
    settings = settings_of(tasks)
    planned = resolve_tasks(settings, suite="custom", device="cpu")
    orders = {item.task: item.order for item in planned.items}
    assert not planned.remarks and None not in orders.values()
    stops = {name: order.stops for name, order in orders.items() if order}
    assert stops["strict"] == stops["reasoned"] == (128, 300)
    parts = {name: chunks(settings, name, stops[name]) for name in orders}
    assert parts["strict"] == parts["reasoned"]
    first, second = parts["hellaswag_like"]
    assert sorted(first + second) == list(range(300))
    assert {number // 3 for number in first}.isdisjoint(number // 3 for number in second)
    # another cut of the same order
    small, rest = chunks(settings, "strict", (10, 128))
    assert sorted(small + rest) == parts["strict"][0]
    assert chunks(settings_of(tasks, seed=7), "strict", (128, 300)) != parts["strict"]


def test_examples_before_a_question_are_those_of_a_run_that_asks_all(tasks: Path) -> None:
    settings = settings_of(tasks)
    task, chosen = task_library(settings).task("strict"), [3, 17, 250]

    def prompts(samples: list[int] | None) -> list[str]:
        task.set_fewshot_seed(seed=settings.seed)
        with quiet(), seeded(settings.seed):
            if samples is None:
                task.build_all_requests()
            else:
                with prompts_of_the_whole(task, task.eval_docs, samples):
                    task.build_all_requests(samples=samples)
        return [instance.args[0] for instance in task.instances if instance.idx == 0]

    everything = prompts(None)
    assert prompts(chosen) == [everything[number] for number in chosen]
    assert len({prompt.rpartition("is ")[0] for prompt in everything}) > 100


def test_what_is_not_asked_in_stages_keeps_its_identity() -> None:
    item = accuracy_item(TaskReplay("arc_easy", "choice", 10))
    assert measurement_id("aa" * 32, item) == "4c3eafcc56f37273833907d71024222e"
    assert measured_items(item) == (item,)
    assert not {"until_decided", "max_drop"} & Settings(model="m").model_dump().keys()


def test_every_question_is_asked_where_no_rung_is_held_against_the_baseline(tasks: Path) -> None:
    planned = resolve_tasks(settings_of(tasks, rungs=("bf16",)), suite="custom", device="cpu")
    assert {item.order for item in planned.items} == {None}
    assert "every question is asked" in planned.remarks[0]


def test_rows_grow_by_a_factor_of_their_own_and_end_together() -> None:
    assert row_stops(10_042, 7)[0] == row_stops(1172, 7)[0] == 128
    assert (row_stops(10_042, 7)[-1], row_stops(1172, 7)[-1], row_stops(50, 2)) == (10_042, 1172, [25, 50])
    assert all(later > earlier for earlier, later in zip(row_stops(1172, 7), row_stops(1172, 7)[1:], strict=False))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = write_plan(tmp_path_factory.mktemp("until") / "study")
    asked = answer(store)
    assert asked == [frozenset(RUNGS), {"bf16", "int8"}, {"bf16", "int8"}]
    return store.directory


def test_a_damaged_and_an_equal_rung_are_decided_early_and_one_on_the_margin_is_not(stopped: Path) -> None:
    summary = summarize(load_results(stopped))
    found = {rung.rung: rung.aggregate for rung in summary.rungs}
    stopping = {name: one.stopping for name, one in found.items()}
    assert [(name, one.state, one.documents) for name, one in stopping.items() if one] == [
        ("fp16", "early", 384),
        ("int8", "undecided", 1500),
        ("fp4", "early", 384),
    ]
    assert found["fp16"].verdict == "within the margin" and found["fp4"].verdict == "beyond the margin"
    assert summary.unfinished == "" and not any(rung.failures for rung in summary.rungs)
    fp4 = next(rung for rung in summary.rungs if rung.rung == "fp4")
    assert fp4.tasks[0].questions == 128 and fp4.tasks[0].planned_questions == 500
    # against the baseline on the same questions
    score, difference = fp4.tasks[0].score.value, fp4.tasks[0].difference_points.value
    assert score is not None and difference is not None and fp4.tasks[0].baseline_percent is not None
    assert score - difference == pytest.approx(fp4.tasks[0].baseline_percent)
    assert summary.rungs[0].tasks[0].questions == 500


def test_who_is_asked_follows_from_the_records_before_whatever_else_there_is(tmp_path: Path, stopped: Path) -> None:
    store = write_plan(tmp_path / "study")
    answer(store, stages=1)
    killed = store.load()
    assert rungs_to_ask(killed, 1) == rungs_to_ask(load_results(stopped), 1) == {"bf16", "int8"}
    assert summarize(killed).unfinished == "Unfinished, 10 of 16 measurements so far"
    answer(store)
    ids = [sorted(path.name for path in (one / "records").iterdir()) for one in (store.directory, stopped)]
    assert ids[0] == ids[1]
    # a baseline that is gone further than a rung decides nothing by itself
    half = next(store.directory.glob("records/*"))
    half.unlink()
    assert rungs_to_ask(store.load(), 0) == frozenset(RUNGS)


def test_another_margin_than_the_studys_says_where_asking_stopped(stopped: Path) -> None:
    summary = summarize(load_results(stopped), margin_points=2.0)
    fp16 = next(rung for rung in summary.rungs if rung.rung == "fp16").aggregate
    assert fp16.verdict == "undecided" and fp16.stopping and fp16.stopping.state == "stopped"
    assert not summary.unfinished
    outcomes = {verdict.rung: verdict.outcome for verdict in recommend(summary, Limits(max_drop_points=2.0)).verdicts}
    assert outcomes["fp16"] == "undecided"


def test_a_stricter_margin_asks_on(tmp_path: Path) -> None:
    store = write_plan(tmp_path / "study", max_drop="2pt")
    asked = answer(store)
    assert "fp16" in asked[1] and "fp4" not in asked[1]


def test_a_rung_that_the_rest_can_hardly_decide_is_not_asked_on(tmp_path: Path) -> None:
    store = write_plan(tmp_path / "study", stops=(128, 470, 500))
    assert [set(names) for names in answer(store)] == [set(RUNGS), {"bf16", "int8"}]
    summary = summarize(store.load())
    int8 = next(rung for rung in summary.rungs if rung.rung == "int8")
    assert verdict_text(int8.aggregate) == (
        "undecided, cannot be decided with the questions that exist, stopped after 1,410 of 1,500 questions"
    )
    one_more = int8.aggregate.model_copy(update={"stopping": None, "more_questions": 1})
    assert verdict_text(one_more) == "undecided (about 1 more document)"
    assert not summary.unfinished
    reasons = {verdict.rung: verdict.reasons for verdict in recommend(summary).verdicts}
    assert "the questions that exist can't decide it" in reasons["int8"][0]


def test_the_report_says_after_how_many_questions(stopped: Path) -> None:
    tables = accuracy_tables(summarize(load_results(stopped)))
    chosen = [table for table in tables if table.name in ("table1-questions", "verdicts")]
    text = "\n".join(f"{table.title}\n\n{table_to_markdown(table)}\n" for table in chosen)
    if os.environ.get("BITLADDER_UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@pytest.mark.slow
def test_commands_read_it(stopped: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        ran = CliRunner().invoke(app, list(arguments))
        assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
        return ran.stdout

    verdict = run("verdict", f"{stopped}:bf16", f"{stopped}:fp16", f"{stopped}:fp4")
    assert verdict.count("decided after 384 of 1,500 questions") == 2
    assert "bf16, 384 documents" in run("diff", str(stopped), "fp4")  # of prose nothing is answered
    assert "decided after 384 of 1,500 questions" in run("recommend", str(stopped), "--json")
    record = Store(stopped).read_rung("fp4")
    assert record is not None and record.manifest is not None
    notes = " ".join(note for table in measured_tables(find_measured(stopped, record.manifest)) for note in table.notes)
    assert "fp4 is beyond the margin; it was decided after 384 of 1,500 questions" in notes
    assert any(path.name == "table1-questions.csv" for path in write_report(stopped, tmp_path / "report"))


def test_packed_and_merged_it_is_the_same(stopped: Path, tmp_path: Path) -> None:
    merged = merge_results([pack(stopped, tmp_path / "packed.tar.gz")], tmp_path / "merged")
    assert summarize(merged).rungs == summarize(load_results(stopped)).rungs
    assert len(merged.measured) == len(load_results(stopped).measured)


def test_peeking_after_every_stage_keeps_wrong_verdicts_rare_and_costs_few_right_ones() -> None:
    on_margin = tuple(ChangeRates(0.01, 0.06, n) for n in (250, 300))
    wrong = simulate_stages((on_margin, on_margin), 0.05, 250, seed=1)
    assert wrong.wrong <= 0.08  # 5% and two errors' luck
    equal = tuple(ChangeRates(0.02, 0.02, n) for n in (250, 300))
    right = simulate_stages((equal, equal), 0.05, 100, seed=2)
    # equal, and called lower
    assert right.wrong <= 0.05 and right.decided >= right.fixed - 0.03 and right.documents < 0.8


def test_a_study_stops_where_its_simulation_does(stopped: Path) -> None:
    """What is read from records is bet on as the simulation bets on what it draws."""
    schedule = schedule_of([ChangeRates(0, 0, task.documents) for task in TASKS])
    for rung in summarize(load_results(stopped)).rungs[1:]:
        draws = []
        for task, starts in zip(TASKS, schedule.starts, strict=True):
            documents = task_documents(task).documents
            ours, baseline = (right_answers(task, RUNGS[name]) for name in (rung.rung, "bf16"))
            scores = {
                order_key(SEED, document.doc_hash): float(one) - float(other)
                for document, one, other in zip(documents, ours, baseline, strict=True)
            }
            draws.append(Draws(np.array([scores[key] for key in sorted(scores)]), starts))
        sides: tuple[Side, Side] = ("within", "beyond")
        after = min(decided_after(draws, 0.05, side, EARLY_ALPHA / 3) for side in sides)
        stage = int(np.searchsorted(schedule.ends, after)) + 1
        assert rung.aggregate.stopping is not None
        assert rung.aggregate.stopping.stages == min(stage, 3)
        assert (rung.aggregate.stopping.state == "early") == (stage <= 3)
