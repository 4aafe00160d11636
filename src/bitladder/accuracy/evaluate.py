"""One model on one task: lm-eval's prompts and scoring in, every document's answer out."""

import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bitladder.accuracy.samples import Journal, collect_samples
from bitladder.errors import UnknownNameError, UserError
from bitladder.records import AccuracyOutcome, AccuracyTask, TaskDocuments, TaskSources
from bitladder.tasks.library import TaskLibrary, as_we_run_it, task_library
from bitladder.tasks.tasks import chosen_documents, document_keys, prompts_of_the_whole
from bitladder.units import OnProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    item: AccuracyTask,
    sources: TaskSources,
    progress: OnProgress | None = None,
    journal: Journal | None = None,
) -> tuple[AccuracyOutcome, TaskDocuments]:
    """Ask a model the documents of a task. ``progress`` gets (requests done, requests in all).
    ``journal`` is what an earlier run left and gets what this one computes, where the backend has batches to keep.

    The model stays on its device and in its types. Raises UserError where the task or its documents are others than
    those of the plan, where the tokenizer lacks a chat template that is asked for, where the model's context is too
    short to generate, and for log-likelihoods that are no numbers.
    """
    library = task_library(sources)
    task = library.task(item.task)
    require_same_task(library, item)
    require_chat_template(tokenizer, item)
    with as_we_run_it(item.seed, torch_too=True):
        language_model = _make_backend(item, model, tokenizer, progress, journal)
        _require_context(task, language_model)
        results = _run(library, task, language_model, item)
    clusters = library.clusters(item.task, item.limit)
    outcome, documents = collect_samples(task, results, language_model.truncated, clusters)
    about = {
        "remarks": language_model.remarks,
        "plans": language_model.batch_plans,
        "scoring": language_model.scoring,
    }
    return outcome.model_copy(update=about), documents


def build_tasks(items: Iterable[AccuracyTask], sources: TaskSources) -> None:
    """What `evaluate` needs of them without a model, for this process and those forked from it.

    A task that can't be built is left out, with its traceback printed: where it is asked it fails again, and is told.
    """
    library = task_library(sources)
    for item in items:
        try:
            require_same_task(library, item)
            library.clusters(item.task, item.limit)
            if item.order is not None:
                document_keys(library, item.task, item.limit, item.order.seed)
        except Exception:
            traceback.print_exc()


def _run(library: TaskLibrary, task: Any, language_model: Any, item: AccuracyTask) -> dict[str, Any]:
    import lm_eval

    task.set_fewshot_seed(seed=item.seed)
    chosen = None if item.order is None else chosen_documents(library, item.task, item.limit, item.order)
    with prompts_of_the_whole(task, library.documents(item.task, item.limit), chosen):
        results: dict[str, Any] = lm_eval.evaluate(
            lm=language_model,
            task_dict={"tasks": {item.task: task}, "groups": {}, "group_map": {}},
            limit=item.limit if chosen is None else None,
            samples=None if chosen is None else {item.task: chosen},
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=item.chat_template,
            fewshot_as_multiturn=item.chat_template,
        )
    return results


def _make_backend(
    item: AccuracyTask, model: Any, tokenizer: Any, progress: OnProgress | None, journal: Journal | None
) -> Any:
    """An lm-eval ``LM`` with `HuggingFaceModel`'s ``max_length``, ``max_gen_toks``, ``truncated``, ``remarks``,
    ``batch_plans`` and ``scoring``."""
    if item.backend == "hf":
        from bitladder.accuracy.huggingface import HuggingFaceModel

        return HuggingFaceModel(model, tokenizer, item.batch_size, progress)
    if item.backend == "bitladder":
        from bitladder.accuracy.backend.lm import BitladderLM

        return BitladderLM(
            model,
            tokenizer,
            token_budget=item.token_budget,
            seed=item.seed,
            fallback_batch_size=item.batch_size,
            progress=progress,
            journal=journal,
        )
    raise UnknownNameError("accuracy backend", item.backend, ("hf", "bitladder"))


def require_same_task(library: TaskLibrary, item: AccuracyTask) -> None:
    """Raise UserError where the task or its documents are others than those of the plan."""
    found = library.task_hash(item.task, item.limit)
    if found != item.task_hash:
        raise UserError(
            f"task {item.task}: its documents or its definition changed since the plan was made "
            f"(hash {found[:12]}, planned {item.task_hash[:12]}); run the study again to plan anew"
        )


def require_chat_template(tokenizer: Any, item: AccuracyTask) -> None:
    """Raise UserError where the tokenizer lacks one that is asked for."""
    if item.chat_template and not tokenizer.chat_template:
        raise UserError("the model's tokenizer has no chat template (a base model?); leave --chat-template out")


def _require_context(task: Any, language_model: Any) -> None:
    """lm-eval asserts that a context is left beside the tokens to generate."""
    if task.OUTPUT_TYPE != "generate_until":
        return
    from lm_eval.models.utils import normalize_gen_kwargs

    options = normalize_gen_kwargs(task.config.generation_kwargs, language_model.max_gen_toks)
    if options["max_gen_toks"] >= language_model.max_length:
        raise UserError(
            f"task {task.task_name}: generates up to {options['max_gen_toks']} tokens, the model's context is "
            f"{language_model.max_length}; choose a task with shorter answers, or a model with a longer context"
        )
