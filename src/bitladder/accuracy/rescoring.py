"""Some of a task's documents scored again: in other batches, at batch 1, or by cached decoding.

At batch 1 a log-likelihood takes one forward of one request. By cached decoding it takes a step for each token.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bitladder.accuracy.backend.compiling import widened_in
from bitladder.accuracy.backend.plan import Request
from bitladder.accuracy.evaluate import require_chat_template, require_same_task
from bitladder.accuracy.forwards import products_seen
from bitladder.accuracy.samples import require_finite
from bitladder.errors import DoesNotFitError, UserError
from bitladder.records import AccuracyTask, ChoiceScores, Rescoring, RescoringOutcome, TaskGroup, TaskSources, Way
from bitladder.tasks.documents import document_hash
from bitladder.tasks.library import TaskLibrary, as_we_run_it, task_library
from bitladder.tasks.tasks import chosen_documents
from bitladder.units import OnProgress

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bitladder.accuracy.backend.lm import BitladderLM


def score_single(model: "PreTrainedModel", requests: Sequence[Request]) -> list[float]:
    """Each request in a forward of its own, context and continuation at once; equal inputs share it."""
    import torch

    forwards: dict[bytes, Tensor] = {}
    scores = []
    with torch.inference_mode():
        for request in requests:
            count = len(request.targets)
            key = request.inputs.tobytes() + count.to_bytes(4, "little")
            if key not in forwards:
                output = model(input_ids=_ids(model, request.inputs), use_cache=False, logits_to_keep=count)
                forwards[key] = output.logits[0]
            scores.append(_sum(forwards[key], request))
    return scores


def score_cached(model: "PreTrainedModel", requests: Sequence[Request]) -> list[float]:
    """Prefill of the context, then the continuation one token a step, as it is generated.

    Requests of one context share its prefill. A continuation of one token takes no step.
    """
    import torch
    from transformers import DynamicCache

    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    prefills: dict[bytes, tuple[Tensor, Any]] = {}
    scores = []
    with torch.inference_mode():
        for request in requests:
            start = len(request.inputs) - len(request.targets) + 1
            context, rest = request.inputs[:start], request.inputs[start:]
            if context.tobytes() not in prefills:
                cache: Any = DynamicCache(config=model.config)
                options = {name: cache, "use_cache": True, "logits_to_keep": 1}
                prefills[context.tobytes()] = model(input_ids=_ids(model, context), **options).logits[0], cache
            logits, kept = prefills[context.tobytes()]
            rows = [logits]
            cache = copy.deepcopy(kept) if len(rest) else None
            for token in rest:
                rows.append(model(input_ids=_ids(model, [token]), use_cache=True, **{name: cache}).logits[0])
            scores.append(_sum(torch.cat(rows), request))
    return scores


def _ids(model: "PreTrainedModel", tokens: Any) -> "Tensor":
    """(1, tokens)"""
    import torch

    return torch.tensor([[int(token) for token in tokens]], device=model.device)


def _sum(logits: "Tensor", request: Request) -> float:
    """From (targets, vocabulary) the log-likelihood of the targets, whose log-probabilities are made in FP32."""
    import torch

    targets = torch.tensor([int(token) for token in request.targets], device=logits.device)
    chosen = torch.log_softmax(logits, -1, dtype=torch.float32).gather(-1, targets[:, None])
    return float(chosen.double().sum())


DOCUMENTS: Mapping[Way, int] = {"second plan": 500, "batch 1": 200, "cached decoding": 200}
"""of a row of the accuracy table; the second plan's make a floor to test flips against, the others take longer"""
_ALONE: Mapping[Way, Callable[["PreTrainedModel", Sequence[Request]], list[float]]] = {
    "batch 1": score_single,
    "cached decoding": score_cached,
}


def require_planned_batches(backend: str) -> None:
    """Raise UserError where another backend's answers would be held against others."""
    if backend != "bitladder":
        raise UserError(
            f"--batch-dependence: found the backend {backend}, whose batches are not planned; "
            "expected --backend bitladder"
        )


def plan_rescorings(
    sources: TaskSources, groups: Sequence[TaskGroup], tasks: Sequence[AccuracyTask]
) -> tuple[Rescoring, ...]:
    """Every way for each task of given choices. The documents of a row are shared out among its tasks by their size.

    Raises UserError where the answers to hold against are another backend's.
    """
    for item in tasks:
        require_planned_batches(item.backend)
    library = task_library(sources)
    counts = {item.task: library.count(item.task, item.limit) for item in tasks}
    sizes = {
        task: max(
            (sum(counts[one] for one in group.tasks) for group in groups if _pools(group, task)), default=counts[task]
        )
        for task in counts
    }
    return tuple(
        Rescoring(
            task=item, way=way, documents=min(counts[item.task], -(-most * counts[item.task] // sizes[item.task]))
        )
        for item in tasks
        if library.task(item.task).OUTPUT_TYPE == "multiple_choice"
        for way, most in DOCUMENTS.items()
    )


def _pools(group: TaskGroup, task: str) -> bool:
    return group.pooling == "documents" and task in group.tasks


def rescore(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    item: Rescoring,
    sources: TaskSources,
    progress: OnProgress | None = None,
) -> RescoringOutcome:
    """Score the documents of ``item`` again. ``progress`` gets (requests or documents done, in all).

    Raises UserError as `evaluate` does, and for a model that can't be scored by planned batches.
    """
    from bitladder.accuracy.backend.lm import BitladderLM

    library = task_library(sources)
    require_same_task(library, item.task)
    require_chat_template(tokenizer, item.task)
    with as_we_run_it(item.task.seed, torch_too=True):
        language_model = BitladderLM(
            model, tokenizer, token_budget=item.task.token_budget, seed=item.task.seed + 1, progress=progress
        )
        # One plan of all: another seed changes nothing about which documents are in which chunk.
        language_model.speedups = replace(language_model.speedups, overlapped=False)
        _require_planned(language_model)
        documents = _build(library, item, language_model)
        # of cached decoding the prefill and a step
        with products_seen(model, 2 if item.way == "cached decoding" else 1) as products:
            scored = _score(language_model, item.way, documents, progress)
        _require_planned(language_model)  # a forward may have shown that the model needs lm-eval's way
    require_finite(f"{item.task.task}, {item.way}", scored)
    return RescoringOutcome(
        documents=tuple(
            ChoiceScores(doc_hash=doc_hash, prompt_hash=prompt_hash, loglikelihoods=tuple(scores))
            for (doc_hash, prompt_hash, _), scores in zip(documents, scored, strict=True)
        ),
        plan=next(iter(language_model.batch_plans), None),
        products=tuple(products),
        remarks=language_model.remarks,
    )


def _require_planned(language_model: "BitladderLM") -> None:
    if language_model.unsupported is not None:
        raise UserError(f"its batches can't be planned, because {language_model.unsupported}")


_AskedDocument = tuple[str, str, list[Any]]
"""hashes of document and prompt as lm-eval logs them, and one ``Instance`` a choice"""


def _build(library: TaskLibrary, item: Rescoring, language_model: "BitladderLM") -> list[_AskedDocument]:
    """The chosen documents in the task's order; all are built, since few-shot examples are drawn for one by one."""
    task, chat = library.task(item.task.task), item.task.chat_template
    task.set_fewshot_seed(seed=item.task.seed)
    task.build_all_requests(
        limit=item.task.limit,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        chat_template=language_model.apply_chat_template if chat else None,
    )
    by_document: dict[int, list[Any]] = {}
    for instance in task.instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    if item.task.order is not None:  # those that a rung answers first, so that all have answered them
        order = item.task.order.model_copy(update={"chunk": (0, item.documents)})
        numbers = chosen_documents(library, item.task.task, item.task.limit, order)
    else:
        drawn = np.random.default_rng(item.task.seed).permutation(len(by_document))
        numbers = sorted(drawn[: item.documents].tolist())
    return [_hashed(task, by_document[number]) for number in numbers]


def _hashed(task: Any, instances: list[Any]) -> _AskedDocument:
    from lm_eval.utils import hash_string

    instances = sorted(instances, key=lambda one: one.idx)
    document = instances[0].doc
    # those that acc_mutual_info scores without their context come after the choices
    choices = instances[: len(task.doc_to_choice(document))]
    return document_hash(document), hash_string(instances[0].arguments[0]), choices


def _score(
    language_model: "BitladderLM", way: Way, documents: list[_AskedDocument], progress: OnProgress | None
) -> list[list[float]]:
    """Log-likelihoods of each document's choices."""
    import torch

    if way == "second plan":
        instances = [one for *_, choices in documents for one in choices]
        scores = iter(language_model.loglikelihood(instances, disable_tqdm=True))
        return [[next(scores)[0] for _ in choices] for *_, choices in documents]
    found = []
    try:
        with widened_in(language_model.model):
            for number, (*_, choices) in enumerate(documents, 1):
                requests = language_model.encoder.pairs([one.args for one in choices])
                found.append(_ALONE[way](language_model.model, requests))
                if progress is not None:
                    progress(number, len(documents))
    except torch.OutOfMemoryError as error:
        raise DoesNotFitError(f"out of memory with a single request ({error})") from None
    return found
