"""Documents scored again in other batches, at batch 1 and by cached decoding, and what that says of the choices."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from bitladder.accuracy.backend.plan import Request
from bitladder.accuracy.backend.support import require_support
from bitladder.accuracy.evaluate import evaluate
from bitladder.accuracy.forwards import products_seen
from bitladder.accuracy.rescoring import DOCUMENTS, plan_rescorings, rescore, score_cached, score_single
from bitladder.checkpoint.loading import load_model, load_tokenizer
from bitladder.decide import recommend
from bitladder.errors import UserError
from bitladder.records import (
    AccuracyOutcome,
    BatchPlan,
    ChoiceScores,
    MeasurementRecord,
    Rescoring,
    RescoringOutcome,
    Settings,
    Way,
    measurement_id,
)
from bitladder.report.content import compose
from bitladder.report.figure import Figure
from bitladder.results.store import Store, load_results
from bitladder.stats.verdict import floors_p_value
from bitladder.study.resolved import task_request, task_sources
from bitladder.summary.summarize import summarize
from bitladder.summary.table import ChoiceChange, DependenceSummary
from bitladder.tasks.tasks import TaskSet, resolve_tasks
from conftest import MakeTinyLlama
from harness_tasks import write_tasks
from replay import BUILTIN_GROUPS, BUILTIN_TASKS, RUNGS, write_replay
from textbook import midp_mcnemar


@pytest.fixture(scope="module")
def model(make_tiny_llama: MakeTinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(make_tiny_llama(tmp_path_factory.mktemp("fp32") / "llama", dtype="float32"))


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return load_tokenizer(tiny_llama)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = write_tasks(tmp_path_factory.mktemp("tasks") / "own")
    return Settings(
        model="m",
        tasks=(str(folder),),
        backend="bitladder",
        token_budget=256,
        batch_dependence=True,
        trust_remote_code=True,
    )


@pytest.fixture(scope="module")
def tasks(settings: Settings) -> TaskSet:
    return resolve_tasks(task_request(settings, "custom"), "cpu")


def direct(model: Any, request: Request) -> float:
    """The log-likelihood of the targets from one forward over all tokens, in FP64."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([request.inputs.tolist()])).logits[0].double()
    rows = torch.log_softmax(logits, -1)[-len(request.targets) :]
    return sum(float(row[target]) for row, target in zip(rows, request.targets.tolist(), strict=True))


def test_alone_and_step_by_step_give_the_models_own_log_likelihoods(model: Any) -> None:
    random = np.random.default_rng(1)
    context = random.integers(2, 380, 20).astype(np.int32)
    ends = [random.integers(2, 380, count).astype(np.int32) for count in (1, 1, 4, 7)]
    requests = [Request(np.concatenate([context, end])[:-1], end) for end in ends]
    expected = [direct(model, request) for request in requests]
    calls: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda *given: calls.append(given[2]["input_ids"].shape[1]), with_kwargs=True
    )
    assert score_single(model, requests) == pytest.approx(expected, abs=1e-4)
    assert calls == [20, 23, 26], "two choices of one token share a forward"
    calls.clear()
    assert score_cached(model, requests) == pytest.approx(expected, abs=1e-4)
    assert calls == [20, *[1] * 3, *[1] * 6], "one prefill, then a step a token"
    hook.remove()


def test_documents_are_shared_out_among_the_tasks_of_a_row(settings: Settings, tasks: TaskSet) -> None:
    planned = plan_rescorings(task_sources(settings), tasks.groups, tasks.items)
    counts = {(item.task.task, item.way): item.documents for item in planned}
    assert {way for _, way in counts} == set(DOCUMENTS)
    assert {task for task, _ in counts} == {"tiny_choice", "tiny_long", "tiny_two_contexts"}, "where choices are given"
    assert counts["tiny_choice", "second plan"] == 13, "all, where there are fewer"
    assert {item.task.token_budget for item in planned} == {256}
    with pytest.raises(UserError, match="found the backend hf, whose batches are not planned; expected --backend"):
        others = [item.model_copy(update={"backend": "hf"}) for item in tasks.items]
        plan_rescorings(task_sources(settings), tasks.groups, others)


def test_a_large_row_gives_no_more_than_its_documents(
    settings: Settings, tasks: TaskSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitladder.accuracy.rescoring.DOCUMENTS", {"batch 1": 9})
    counts = {
        item.task.task: item.documents for item in plan_rescorings(task_sources(settings), tasks.groups, tasks.items)
    }
    assert (counts["tiny_choice"], counts["tiny_long"]) == (7, 3), "13 and 5 of 18"
    assert counts["tiny_two_contexts"] == 2


@pytest.mark.parametrize("way", list(DOCUMENTS))
@pytest.mark.parametrize("name", ["tiny_choice", "tiny_long", "tiny_two_contexts"])
def test_scored_again_in_fp32_nothing_changes(
    model: Any, tokenizer: Any, settings: Settings, tasks: TaskSet, way: Way, name: str
) -> None:
    """The same documents under the same prompts, with the log-likelihoods that the study's own batches gave."""
    task = next(item for item in tasks.items if item.task == name)
    first, _ = evaluate(model, tokenizer, task, task_sources(settings))
    known = {(one.doc_hash, one.prompt_hash): one.loglikelihoods for one in first.documents}
    item = Rescoring(task=task, way=way, documents=2)
    again = rescore(model, tokenizer, item, task_sources(settings))
    assert len(again.documents) == 2
    for document in again.documents:
        assert document.loglikelihoods == pytest.approx(known[document.doc_hash, document.prompt_hash], abs=1e-4)
    more = rescore(model, tokenizer, item.model_copy(update={"documents": 5}), task_sources(settings))
    hashes = [[one.doc_hash for one in found.documents] for found in (again, more)]
    assert set(hashes[0]) <= set(hashes[1]), "fewer are among more"
    assert (again.plan is None) == (way != "second plan")
    if again.plan is not None:
        assert (again.plan.seed, again.plan.token_budget) == (task.seed + 1, 256)
        (own,) = first.plans
        assert own.seed == task.seed
        assert rescore(model, tokenizer, item, task_sources(settings)).plan == again.plan, (
            "a pure function of what is asked"
        )


def test_an_overflow_is_refused(
    model: Any, tokenizer: Any, settings: Settings, tasks: TaskSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of NaN could not be read again."""
    require_support(model)  # whose trial comes first, and once
    monkeypatch.setattr(model.model.norm.weight, "data", model.model.norm.weight.data * float("inf"))
    task = next(item for item in tasks.items if item.task == "tiny_choice")
    with pytest.raises(UserError, match=r"^tiny_choice, batch 1: .* not numbers in 2 of 2 documents; the model over"):
        rescore(model, tokenizer, Rescoring(task=task, way="batch 1", documents=2), task_sources(settings))


def test_what_lm_evals_way_answered_is_no_second_plan(
    model: Any, tokenizer: Any, settings: Settings, tasks: TaskSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise NotImplementedError("no such forward")

    monkeypatch.setattr("bitladder.accuracy.backend.lm.BitladderLM._loglikelihood", fail)
    task = next(item for item in tasks.items if item.task == "tiny_choice")
    with pytest.raises(UserError, match=r"^its batches can't be planned, because NotImplementedError in a for"):
        rescore(model, tokenizer, Rescoring(task=task, way="second plan", documents=2), task_sources(settings))


def test_few_shot_prompts_are_those_of_the_first_time(model: Any, tokenizer: Any, settings: Settings) -> None:
    """Examples are drawn for one document after the other, so that some documents alone would get others."""
    shots = settings.model_copy(update={"num_fewshot": 2})
    task = next(
        item for item in resolve_tasks(task_request(shots, "custom"), "cpu").items if item.task == "tiny_choice"
    )
    first, _ = evaluate(model, tokenizer, task, task_sources(shots))
    again = rescore(model, tokenizer, Rescoring(task=task, way="batch 1", documents=3), task_sources(shots))
    assert {one.prompt_hash for one in again.documents} < {one.prompt_hash for one in first.documents}


def test_products_are_named_with_their_rows(model: Any) -> None:
    import torch

    with torch.inference_mode(), products_seen(model, 1) as products:
        model(input_ids=torch.arange(2, 34)[None])
        model(input_ids=torch.arange(2, 3)[None])
    (text,) = products
    assert text.startswith("32 rows: ")
    assert "aten::mm" in text


def test_products_are_named_of_forwards_that_ended(model: Any) -> None:
    """One that ran out of memory is tried again with fewer rows."""
    import torch

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("first try")

    with torch.inference_mode(), products_seen(model, 1) as products:
        hook = model.model.register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            model(input_ids=torch.arange(2, 34)[None])
        hook.remove()
        model(input_ids=torch.arange(2, 18)[None])
    (text,) = products
    assert text.startswith("16 rows: ")


def second_choice(loglikelihoods: tuple[float, ...]) -> tuple[float, ...]:
    """Another choice becomes the likeliest."""
    best = loglikelihoods.index(max(loglikelihoods))
    return tuple(0.0 if index == (best + 1) % len(loglikelihoods) else one for index, one in enumerate(loglikelihoods))


CHANGED: dict[str, dict[Way, range]] = {
    "bf16": {"second plan": range(1), "batch 1": range(2), "cached decoding": range(2)},
    "int8": {"second plan": range(20), "batch 1": range(15), "cached decoding": range(10, 30)},
    "fp4": {"second plan": range(2), "batch 1": range(0), "cached decoding": range(0)},
}
"""of the first 40 documents, those whose choice is another"""


def write_scored_again(directory: Path, *, same_plan: bool = False) -> Path:
    """A study of one task, with each rung's documents scored again."""
    rungs = {name: RUNGS[name] for name in CHANGED}
    write_replay(directory, rungs=rungs, tasks=BUILTIN_TASKS[:1], groups=BUILTIN_GROUPS[:1], only="accuracy")
    store = Store(directory)
    results = store.load()
    (task,) = results.study.items
    speedups = {way: Rescoring(task=cast(Any, task), way=way, documents=40) for way in DOCUMENTS}
    store.write_study(results.study.model_copy(update={"items": (task, *speedups.values())}))
    for record in results.records:
        assert isinstance(record.outcome, AccuracyOutcome)
        first = BatchPlan(seed=1, token_budget=8, batches=2, tokens=9, digest="first", compositions=("a", "b"))
        store.write_measurement(
            record.model_copy(update={"outcome": record.outcome.model_copy(update={"plans": (first,)})})
        )
        for way, item in speedups.items():
            store.write_measurement(_scored_again(record, item, CHANGED[record.rung][way], same_plan))
    return directory


def _scored_again(record: MeasurementRecord, item: Rescoring, changed: range, same_plan: bool) -> MeasurementRecord:
    assert isinstance(record.outcome, AccuracyOutcome)
    documents = tuple(
        ChoiceScores(
            doc_hash=one.doc_hash,
            prompt_hash=one.prompt_hash,
            loglikelihoods=second_choice(one.loglikelihoods or ()) if index in changed else one.loglikelihoods or (),
        )
        for index, one in enumerate(record.outcome.documents[: item.documents])
    )
    batches = ("b",) if same_plan else ("b", "c")
    second = BatchPlan(seed=2, token_budget=8, batches=2, tokens=9, digest="second", compositions=batches)
    plan = second if item.way == "second plan" else None
    outcome = RescoringOutcome(documents=documents, plan=plan, products=("8 rows: 2 aten::mm",))
    identity = measurement_id(record.content_hash, item)
    return record.model_copy(update={"measurement_id": identity, "item": item, "outcome": outcome})


def counts(change: ChoiceChange | None) -> tuple[int, int] | None:
    return None if change is None else (change.changed, change.documents)


def test_changed_choices_and_the_floor_under_flips(tmp_path: Path) -> None:
    summary = summarize(load_results(write_scored_again(tmp_path)))
    found: dict[str, DependenceSummary] = {rung.rung: rung.dependence for rung in summary.rungs if rung.dependence}
    assert {name: counts(one.second_plan) for name, one in found.items()} == {
        "bf16": (1, 40),
        "int8": (20, 40),
        "fp4": (2, 40),
    }
    int8 = found["int8"]
    assert (counts(int8.batch1), counts(int8.cached)) == ((15, 40), (20, 40))
    assert counts(int8.steps) == (25, 40), "those that only one of both ways changed: 0 to 9 and 15 to 29"
    assert int8.second_plan is not None
    assert int8.second_plan.percent.low < 50 < int8.second_plan.percent.high  # type: ignore[operator]
    assert int8.second_plan.largest_nats == pytest.approx(2.3)
    assert found["bf16"].flips is None, "nothing to hold the baseline against"
    assert int8.flips == "indistinguishable", "it flips less than by itself"
    # fp4 lost the first 17 of 140, of which two flip by themselves, and one does on the baseline
    assert counts(found["fp4"].against_baseline) == (17, 40)
    assert found["fp4"].p_value == pytest.approx(midp_mcnemar(15, 0) / 2)
    assert found["fp4"].flips == "above the floor"


def test_the_larger_of_both_floors_counts() -> None:
    flips, quiet, loud = [True] * 8 + [False] * 8, [False] * 16, [True] * 7 + [False] * 9
    assert floors_p_value(flips, quiet, loud) == floors_p_value(flips, loud, quiet) == pytest.approx(0.25)
    assert floors_p_value(flips, quiet, quiet) < 0.01


def test_a_second_plan_that_is_the_first_says_nothing(tmp_path: Path) -> None:
    summary = summarize(load_results(write_scored_again(tmp_path, same_plan=True)))
    for rung in summary.rungs:
        assert rung.dependence is not None
        assert (rung.dependence.second_plan, rung.dependence.p_value) == (None, None)
        assert rung.dependence.batch1 is not None


def test_report_says_how_many_choices_depend_on_the_batch(tmp_path: Path) -> None:
    results = load_results(write_scored_again(tmp_path))
    summary = summarize(results)
    report = compose(results, summary, recommend(summary))
    section = next(one for one in report.sections if one.anchor == "dependence")
    assert any(
        point.startswith("int8: 50.00% of choices depend on what else is in the batch (20 of 40)")
        for point in section.points
    )
    (figure,) = section.figures
    assert isinstance(figure, Figure)
    bars = {(row["rung"], row["way"]): row["value"] for row in figure.spec["datasets"]["rows"]}
    assert bars["int8", "cached against batch 1"] == pytest.approx(62.5)
    assert ("bf16", "flips against the baseline") not in bars
    main, by_task, products = section.tables
    assert [row[-1].text for row in main.rows] == ["n/a", "indistinguishable", "above the floor"]
    assert [row[1].text for row in by_task.rows] == ["Knowledge"] * 3
    assert ("int8", "batch 1", "8 rows: 2 aten::mm") in [tuple(cell.text for cell in row) for row in products.rows]
