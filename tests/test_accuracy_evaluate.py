"""Documents, answers and scores of a model against lm-eval's own on the same tasks."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from bitladder.accuracy.evaluate import evaluate
from bitladder.checkpoint.loading import load_model, load_tokenizer
from bitladder.errors import UnknownNameError, UserError
from bitladder.records import AccuracyOutcome, AccuracyTask, Settings, TaskDocuments
from bitladder.study.resolved import task_request, task_sources
from bitladder.tasks.library import quiet
from bitladder.tasks.tasks import resolve_tasks
from conftest import MakeTinyLlama
from harness_tasks import SHARED_DATA, TASKS, write_mirror, write_mirror_task, write_tasks


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf")))
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("evaluate") / "tasks")


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Any:
    return load_model(tiny_llama)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return load_tokenizer(tiny_llama)


Run = Callable[..., tuple[AccuracyOutcome, TaskDocuments]]


@pytest.fixture(scope="module")
def run(model: Any, tokenizer: Any, tasks: Path) -> Run:
    def evaluate_task(name: str, progress: Any = None, use: Any = None, **settings: Any) -> Any:
        chosen, item = plan(tasks / f"{name}.yaml", **settings)
        return evaluate(use or model, tokenizer, item, task_sources(chosen), progress)

    return evaluate_task


def plan(task: Path, **settings: Any) -> tuple[Settings, AccuracyTask]:
    chosen = Settings(model="any", tasks=(str(task),), **({"backend": "hf"} | settings), trust_remote_code=True)
    (item,) = resolve_tasks(task_request(chosen, "paper"), "cpu").items
    return chosen, item


@pytest.fixture(scope="module")
def harness(model: Any, tokenizer: Any, tasks: Path) -> dict[str, Any]:
    """What lm-eval alone says, by task: its own task index, its own backend, its own few-shot and seed defaults.

    One task a call: in BF16 an answer depends on the padding of its batch.
    """
    manager = TaskManager(include_defaults=False, include_path=str(tasks))
    found = {}
    with pytest.MonkeyPatch.context() as patch, quiet():
        patch.chdir(tasks)
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        for name in TASKS:
            found[name] = lm_eval.simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, softmax_dtype="float32"),
                tasks=[name],
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=True,
            )
    return found


@pytest.mark.parametrize("name", TASKS)
def test_results_are_lm_evals(name: str, run: Run, harness: dict[str, Any]) -> None:
    outcome, documents = run(name)
    results = harness[name]["results"][name]
    expected = {key: value for key, value in results.items() if "," in key and "stderr" not in key}
    assert outcome.harness_results == expected
    assert outcome.scoring is not None and outcome.scoring.attention == ("the model's own, sdpa",)
    assert not outcome.scoring.shared and outcome.scoring.forwards > 0
    assert {metric.key for metric in outcome.metrics} == set(expected)
    for metric in outcome.metrics:
        values = [document.metrics[metric.key] for document in outcome.documents]
        assert aggregated(metric.aggregation, values) == pytest.approx(expected[metric.key], rel=1e-12)
    every = harness[name]["samples"][name]
    samples = [sample for sample in every if sample["filter"] == every[0]["filter"]]
    assert [document.doc_hash for document in outcome.documents] == [sample["doc_hash"] for sample in samples]
    assert [document.prompt_hash for document in documents.documents] == [sample["prompt_hash"] for sample in samples]
    assert len(samples) == len(TASKS[name][1])
    for document, sample in zip(outcome.documents, samples, strict=True):
        first = [repeats[0] for repeats in sample["resps"]]
        if outcome.output_type == "generate_until":
            assert [document.text] == first
            assert document.loglikelihoods is None
            assert document.greedy is None
        elif outcome.output_type == "loglikelihood_rolling":
            assert [*(document.loglikelihoods or ())] == first
            assert document.greedy is None
            assert document.text is None
        else:
            assert document.loglikelihoods is not None
            assert document.greedy is not None
            assert [*zip(document.loglikelihoods, document.greedy, strict=True)] == first


def aggregated(aggregation: str, values: list[Any]) -> float:
    if aggregation == "mean":
        return math.fsum(values) / len(values)
    if aggregation == "perplexity":
        return math.exp(-math.fsum(values) / len(values))
    nats = -math.fsum(total for total, _ in values) / math.fsum(weight for _, weight in values)
    return {"bits_per_byte": nats / math.log(2), "weighted_perplexity": math.exp(nats)}[aggregation]


def test_records_survive_json(run: Run) -> None:
    for name in TASKS:
        outcome, documents = run(name)
        assert AccuracyOutcome.model_validate_json(outcome.model_dump_json()) == outcome
        assert TaskDocuments.model_validate_json(documents.model_dump_json()) == documents
        assert documents.documents_hash == outcome.documents_hash
        assert json.loads(json.dumps(documents.documents[0].doc)) == documents.documents[0].doc


def test_documents_say_what_was_asked(run: Run) -> None:
    (_, choice), (_, contexts), (_, generate) = run("tiny_choice"), run("tiny_two_contexts"), run("tiny_generate")
    first = choice.documents[1]
    assert (first.prompt, first.choices, first.target) == (
        "Question: 0 + 1 =\nAnswer:",
        (" A", " B", " C", " D"),
        " B",
    )
    assert first.doc == {"a": 0, "b": 1, "query": "Question: 0 + 1 =", "gold": 1}
    assert choice.documents[0] == choice.documents[12]
    second = contexts.documents[1]
    assert second.prompt == "The fox sees the "
    assert second.choices == ("dog as it is lazy", "cat as it is lazy")
    assert second.target == "cat as it is lazy"
    assert (generate.documents[3].prompt, generate.documents[3].choices) == ("Count: 3", None)


def test_filters_of_generated_text_are_kept_apart(run: Run) -> None:
    outcome, _ = run("tiny_generate")
    assert [metric.key for metric in outcome.metrics] == ["exact_match,strict-match", "exact_match,flexible-extract"]
    assert set(outcome.documents[0].metrics) == {metric.key for metric in outcome.metrics}


def test_answers_and_hashes_repeat_on_the_same_built_task(run: Run) -> None:
    assert run("tiny_long") == run("tiny_long")


def test_one_token_choices_take_one_row_a_question(run: Run, model: Any) -> None:
    """Four choices after one context are read off the same position; the built-in suite's speed rests on it."""
    run("tiny_choice")  # a model's first task tries out whether padding shows
    rows: list[int] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[0]))
    try:
        run("tiny_choice")
        assert sum(rows) == 12  # of 13 documents, two are the same
        rows.clear()
        run("tiny_choice", batch_size=5)
        assert rows == [5, 5, 2]
        rows.clear()
        run("tiny_long")
        assert sum(rows) == 5 * 4
    finally:
        hook.remove()


def test_progress_counts_requests(run: Run) -> None:
    steps: list[tuple[int, int]] = []
    run("tiny_choice", progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 13 * 4) for done in range(1, 13 * 4 + 1)]
    steps.clear()
    run("tiny_generate", progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (6, 6)
    steps.clear()
    run("tiny_prose", progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (3, 3)


def test_the_model_stays_as_it_is_and_nothing_is_printed(
    run: Run, model: Any, tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: (value.dtype, value.device, value.data_ptr()) for name, value in model.state_dict().items()}
    padding = tokenizer.padding_side
    for name in TASKS:
        run(name)
    assert {name: (v.dtype, v.device, v.data_ptr()) for name, v in model.state_dict().items()} == before
    assert tokenizer.padding_side == padding == "left"
    assert capfd.readouterr() == ("", "")


def test_few_shot_examples_are_pinned_by_the_seed(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    mirror = write_mirror(tmp_path / "mirror")
    task = write_mirror_task(tmp_path / "mine", fewshot_split="validation")

    def prompts(**settings: Any) -> list[str]:
        chosen, item = plan(task, datasets=str(mirror), num_fewshot=2, **settings)
        _, documents = evaluate(model, tokenizer, item, task_sources(chosen))
        return [document.prompt for document in documents.documents]

    assert all(prompt.count("Answer:") == 3 for prompt in prompts())
    assert prompts() == prompts()
    assert prompts(seed=5) != prompts()


def test_chat_template(run: Run, model: Any, tokenizer: Any, tasks: Path) -> None:
    outcome, documents = run("tiny_choice", chat_template=True)
    assert documents.documents[0].prompt == "<|user|>Question: 0 + 0 =\nAnswer:<|end|><|assistant|>"
    assert documents.documents[0].choices == ("A", "B", "C", "D")
    assert outcome.documents_hash != run("tiny_choice")[0].documents_hash
    chosen, item = plan(tasks / "tiny_choice.yaml", chat_template=True)
    base = copy.copy(tokenizer)
    base.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        evaluate(model, base, item, task_sources(chosen))


def test_prompts_that_lose_their_beginning_are_counted(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path, tasks: Path
) -> None:
    """lm-eval cuts off on the left what is longer than the model's context, and only logs it."""
    limit = 12
    directory = make_tiny_llama(tmp_path / "short", max_position_embeddings=limit)
    short, tokenizer = load_model(directory), load_tokenizer(directory)

    def truncated(name: str) -> int:
        chosen, item = plan(tasks / f"{name}.yaml")
        return evaluate(short, tokenizer, item, task_sources(chosen))[0].truncated_documents

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text))

    prompts = [f"Question: {row['a']} + {row['b']} =\nAnswer:" for row in TASKS["tiny_long"][1]]
    too_long = sum(tokens(f"{prompt} three hundred") > limit + 1 for prompt in prompts)
    assert truncated("tiny_long") == too_long == 5
    assert max(tokens(f"{prompt} A") for prompt in prompts) <= limit + 1
    assert truncated("tiny_choice") == 0
    assert truncated("tiny_prose") == 0  # read in windows: nothing is lost
    too_long = sum(tokens(f"Count: {row['start']}") > limit - 6 for row in TASKS["tiny_generate"][1])
    assert truncated("tiny_generate") == too_long == 6


def test_too_short_a_context_to_generate(make_tiny_llama: MakeTinyLlama, tmp_path: Path, tasks: Path) -> None:
    directory = make_tiny_llama(tmp_path / "short", max_position_embeddings=6)
    chosen, item = plan(tasks / "tiny_generate.yaml")
    with pytest.raises(UserError, match="generates up to 6 tokens, the model's context is 6"):
        evaluate(load_model(directory), load_tokenizer(directory), item, task_sources(chosen))


def test_answers_that_are_no_numbers_fail(run: Run, model: Any) -> None:
    broken = copy.deepcopy(model)
    broken.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(UserError, match="not numbers in 13 of 13 documents"):
        run("tiny_choice", use=broken)


def test_a_task_that_changed_since_the_plan(model: Any, tokenizer: Any, tasks: Path) -> None:
    chosen, item = plan(tasks / "tiny_choice.yaml")
    with pytest.raises(UserError, match="changed since the plan"):
        evaluate(model, tokenizer, item.model_copy(update={"task_hash": "0" * 64}), task_sources(chosen))


def test_unknown_backend(model: Any, tokenizer: Any, tasks: Path) -> None:
    chosen, item = plan(tasks / "tiny_choice.yaml")
    with pytest.raises(UnknownNameError, match="unknown accuracy backend 'hff'; nearest: hf"):
        evaluate(model, tokenizer, item.model_copy(update={"backend": "hff"}), task_sources(chosen))


def test_a_metric_that_lm_eval_does_not_know_is_named(tmp_path: Path) -> None:
    changes = {"metric_list": [{"metric": "nope", "aggregation": "mean", "higher_is_better": True}]}
    mirror, task = write_mirror(tmp_path / "mirror"), write_mirror_task(tmp_path / "mine", **changes)
    with pytest.raises(UserError, match="unknown metric of task sums: 'nope'"):
        plan(task, datasets=str(mirror), limit=2)


def test_a_score_over_all_documents_alone_is_refused(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    changes = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "{{query}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
        "metric_list": [{"metric": "bleu", "aggregation": "bleu", "higher_is_better": True}],
    }
    mirror, task = write_mirror(tmp_path / "mirror"), write_mirror_task(tmp_path / "mine", **changes)
    chosen, item = plan(task, datasets=str(mirror), limit=2)
    with pytest.raises(UserError, match=r"task sums: found the metrics bleu, expected .* scores each document by"):
        evaluate(model, tokenizer, item, task_sources(chosen))


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no mirror in ../shared/data")
def test_real_tasks_score_and_pair_by_document(model: Any, tokenizer: Any) -> None:
    chosen = Settings(model="any", tasks=("arc_easy", "hellaswag", "mmlu_anatomy"), datasets=str(SHARED_DATA), limit=2)
    for item in resolve_tasks(task_request(chosen, "paper"), "cpu").items:
        outcome, documents = evaluate(model, tokenizer, item, task_sources(chosen))
        assert [document.doc_hash for document in outcome.documents] == [d.doc_hash for d in documents.documents]
        assert [len(document.loglikelihoods or ()) for document in outcome.documents] == [4, 4]
        assert outcome.metrics[0].key == "acc,none"
        assert all(document.target in (document.choices or ()) for document in documents.documents)
