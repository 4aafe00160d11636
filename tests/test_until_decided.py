"""A study that asks until it is decided: one order, stages, who is asked on, and what is said of it."""

import json
import os
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bitladder.cli.main import app
from bitladder.decide import recommend
from bitladder.decide.recommendation import Limits
from bitladder.publish.card import find_measured, measured_tables
from bitladder.records import Order, Settings, measurement_id, order_key
from bitladder.report.accuracy_tables import accuracy_tables
from bitladder.report.output import write_report
from bitladder.report.table import table_to_markdown
from bitladder.report.verdict_tables import verdict_text
from bitladder.results.merge import merge_results, pack
from bitladder.results.stages import measured_items, row_stops, shares_for
from bitladder.results.store import Store, load_results
from bitladder.stats.aggregate import MeanOfTasks
from bitladder.stats.paired import PairedCounts
from bitladder.stats.verdict import judge_looks, look_confidence
from bitladder.study.resolved import task_request, task_sources
from bitladder.summary.coverage import rungs_to_ask
from bitladder.summary.summarize import summarize
from bitladder.tasks.library import quiet, seeded, task_library
from bitladder.tasks.tasks import chosen_documents, prompts_of_the_whole, resolve_tasks
from replay import accuracy_item
from replay_outcomes import TaskReplay, right_answers, task_documents
from simulation import ChangeRates
from staged_replay import RUNGS, SEED, STOPS, TASKS, answer, write_plan
from staged_simulation import simulate_stages

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
    library = task_library(task_sources(settings))
    order = Order(seed=settings.seed, stops=stops)
    return [chosen_documents(library, name, None, Order(seed=settings.seed, chunk=chunk)) for chunk in order.chunks]


def test_the_order_is_the_seeds_alone_and_keeps_clusters_and_questions_together(tasks: Path) -> None:
    settings = settings_of(tasks)
    planned = resolve_tasks(task_request(settings, "custom"), "cpu")
    orders = {item.task: item.order for item in planned.items}
    assert not planned.remarks and None not in orders.values()
    stops = {name: order.stops for name, order in orders.items() if order}
    assert stops["strict"] == stops["reasoned"] == (45, 135, 300)
    parts = {name: chunks(settings, name, stops[name]) for name in orders}
    assert parts["strict"] == parts["reasoned"]
    first, second, third = parts["hellaswag_like"]
    assert sorted(first + second + third) == list(range(300))
    assert {number // 3 for number in first}.isdisjoint(number // 3 for number in second + third)
    # another cut of the same order
    small, rest = chunks(settings, "strict", (10, 45))
    assert sorted(small + rest) == parts["strict"][0]
    assert chunks(settings_of(tasks, seed=7), "strict", stops["strict"]) != parts["strict"]


def test_examples_before_a_question_are_those_of_a_run_that_asks_all(tasks: Path) -> None:
    settings = settings_of(tasks)
    task, chosen = task_library(task_sources(settings)).task("strict"), [3, 17, 250]

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
    planned = resolve_tasks(task_request(settings_of(tasks, rungs=("bf16",)), "custom"), "cpu")
    assert {item.order for item in planned.items} == {None}
    assert "every question is asked" in planned.remarks[0]


def test_each_stage_asks_the_same_share_of_every_row() -> None:
    assert row_stops(10_042) == [1506, 4519, 10_042] and row_stops(1172) == [176, 527, 1172]
    assert row_stops(2) == [1, 1, 2] and row_stops(1) == [1, 1, 1]
    # a small study is asked as a whole, and spends nothing on looks that could decide nothing
    assert shares_for(199) == (1.0,) and len(shares_for(200)) == 3


def test_all_looks_together_spend_the_error_of_one() -> None:
    for looks in (1, 2, 3, 7):
        spent = sum(1 - look_confidence(look, looks) for look in range(1, looks + 1))
        assert spent == pytest.approx(0.05)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = write_plan(tmp_path_factory.mktemp("until") / "study")
    asked = answer(store)
    assert asked == [frozenset(RUNGS), {"bf16", "fp16", "int8"}, {"bf16", "int8"}]
    return store.directory


def test_a_damaged_and_an_equal_rung_are_decided_early_and_one_on_the_margin_is_not(stopped: Path) -> None:
    summary = summarize(load_results(stopped))
    found = {rung.rung: rung.aggregate for rung in summary.rungs}
    stopping = {name: one.stopping for name, one in found.items()}
    assert [(name, one.state, one.documents) for name, one in stopping.items() if one] == [
        ("fp16", "early", 675),
        ("int8", "undecided", 1500),
        ("fp4", "early", 225),
    ]
    assert found["fp16"].verdict == "within the margin" and found["fp4"].verdict == "beyond the margin"
    assert summary.unfinished == "" and not any(rung.failures for rung in summary.rungs)
    fp4 = next(rung for rung in summary.rungs if rung.rung == "fp4")
    assert fp4.tasks[0].questions == 75 and fp4.tasks[0].planned_questions == 500
    # against the baseline on the same questions
    score, difference = fp4.tasks[0].score.value, fp4.tasks[0].difference_points.value
    assert score is not None and difference is not None and fp4.tasks[0].baseline_percent is not None
    assert score - difference == pytest.approx(fp4.tasks[0].baseline_percent)
    assert summary.rungs[0].tasks[0].questions == 500


def test_who_is_asked_follows_from_the_records_before_whatever_else_there_is(tmp_path: Path, stopped: Path) -> None:
    store = write_plan(tmp_path / "study")
    answer(store, stages=1)
    killed = store.load()
    assert rungs_to_ask(killed, 1) == rungs_to_ask(load_results(stopped), 1) == {"bf16", "fp16", "int8"}
    assert summarize(killed).unfinished == "Unfinished, 7 of 16 measurements so far"
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
    assert verdict.count("decided after 675 of 1,500 questions") == 1
    assert "bf16, 225 documents" in run("diff", str(stopped), "fp4")  # of prose nothing is answered
    assert "decided after 225 of 1,500 questions" in run("recommend", str(stopped), "--json")
    record = Store(stopped).read_rung("fp4")
    assert record is not None and record.manifest is not None
    notes = " ".join(note for table in measured_tables(find_measured(stopped, record.manifest)) for note in table.notes)
    assert "fp4 is beyond the margin; it was decided after 225 of 1,500 questions" in notes
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


def test_a_study_stops_where_its_looks_say(stopped: Path) -> None:
    """What is read from records is judged as the simulation judges what it draws, and drawn at the look's own level."""
    looks: dict[str, list[MeanOfTasks]] = {name: [] for name in RUNGS if name != "bf16"}
    for name, stop in product(looks, STOPS):
        parts = []
        for task in TASKS:
            documents = task_documents(task).documents
            ours, baseline = (right_answers(task, RUNGS[rung]) for rung in (name, "bf16"))
            order = sorted(range(task.documents), key=lambda number: order_key(SEED, documents[number].doc_hash))[:stop]
            gained = sum(ours[number] and not baseline[number] for number in order)
            lost = sum(baseline[number] and not ours[number] for number in order)
            parts.append(PairedCounts(gained=int(gained), lost=int(lost), n=stop))
        looks[name].append(MeanOfTasks(parts=tuple(parts)))
    summary = summarize(load_results(stopped))
    found = {rung.rung: rung.aggregate for rung in summary.rungs[1:]}
    stages = {name: one.stopping.stages for name, one in found.items() if one.stopping}
    compared = {name: looks[name][stage - 1] for name, stage in stages.items()}
    judged = judge_looks(compared, stages, 3, 3, 0.05)
    for name, one in found.items():
        drawn = one.difference_points
        assert drawn.low == pytest.approx(100 * judged[name].low) and drawn.high == pytest.approx(
            100 * judged[name].high
        )
        assert one.verdict == judged[name].verdict
        before = [
            judge_looks({name: looks[name][stage - 1]}, {name: stage}, 3, 3, 0.05) for stage in range(1, stages[name])
        ]
        assert all(earlier[name].verdict == "undecided" for earlier in before), "nothing stopped it before"
        assert one.recovery_percent.low is not None, "a ratio's limits hold at the look too"


def test_rungs_share_the_error_of_a_look_whatever_became_of_them() -> None:
    """An equal rung that three others are still open beside is held to a quarter of what the look may spend."""
    one = MeanOfTasks(parts=(PairedCounts(gained=3, lost=3, n=400),))
    alone = judge_looks({"a": one}, {"a": 1}, 3, 1, 0.02)["a"]
    beside_missing = judge_looks({"a": one}, {"a": 1}, 3, 4, 0.02)["a"]
    assert 1 - alone.levels.low == pytest.approx(0.01) and 1 - beside_missing.levels.low == pytest.approx(0.0025)
    assert beside_missing.low < alone.low
    # what was shown to be within leaves the others' count on that side and stays in it on the other
    clear = MeanOfTasks(parts=(PairedCounts(gained=0, lost=0, n=4000),))
    both = judge_looks({"a": one, "b": clear}, {"a": 2, "b": 1}, 3, 2, 0.02)
    assert both["b"].verdict == "within the margin"
    assert 1 - both["a"].levels.low == pytest.approx(0.01) and 1 - both["a"].levels.high == pytest.approx(0.005)
