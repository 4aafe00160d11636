"""lm-eval's samples as records, and the journal that an evaluation which is killed goes on from."""

import base64
import json
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from bitladder.errors import UserError
from bitladder.records import (
    AccuracyOutcome,
    Document,
    DocumentOutcome,
    JournalEntry,
    MetricInfo,
    TaskDocuments,
    hash_json,
)

Sample = Mapping[str, Any]


def collect_samples(
    task: Any, results: Mapping[str, Any], truncated: Collection[str], clusters: Mapping[str, str]
) -> tuple[AccuracyOutcome, TaskDocuments]:
    """The outcome and the documents of one evaluated task, in lm-eval's order, repeated documents included.

    ``results``: what ``lm_eval.evaluate`` returned with ``log_samples``. ``truncated``: contexts that were cut off.
    ``clusters``: document hash -> what it shares with those that resemble it.
    Raises UserError for log-likelihoods that are no numbers, and for a task without a score of its own by document.
    """
    name = task.task_name
    by_document: dict[int, list[Sample]] = {}
    for sample in results["samples"][name]:
        by_document.setdefault(sample["doc_id"], []).append(sample)
    samples = list(by_document.values())
    outcomes = tuple(
        document_outcome(
            task.OUTPUT_TYPE, filtered, _target_of(task, filtered[0]), clusters.get(filtered[0]["doc_hash"])
        )
        for filtered in samples
    )
    require_numbers(f"task {name}", outcomes)
    metrics = _metrics(task, samples, outcomes)
    documents = tuple(
        make_document(task.OUTPUT_TYPE, {**sample, "doc": _plain(sample["doc"])}, _target_of(task, sample))
        for sample, *_ in samples
    )
    documents_hash = hash_json([name, [document.model_dump(mode="json") for document in documents]])
    outcome = AccuracyOutcome(
        documents_hash=documents_hash,
        output_type=task.OUTPUT_TYPE,
        metrics=metrics,
        harness_results=harness_results(results["results"][name]),
        documents=outcomes,
        truncated_documents=sum(
            any(arguments[0] in truncated for arguments in filtered[0]["arguments"]) for filtered in samples
        ),
    )
    return outcome, TaskDocuments(task=name, documents_hash=documents_hash, documents=documents)


def document_outcome(output_type: str, filtered: Sequence[Sample], target: Any, cluster: str | None) -> DocumentOutcome:
    """One document's answer; ``filtered`` holds the same answer once a filter of the task.

    ``target``: as of `make_document`.
    """
    first = filtered[0]
    responses = [repeats[0] for repeats in first["resps"]]
    loglikelihoods: tuple[float, ...] | None = None
    greedy: tuple[bool, ...] | None = None
    text = None
    if output_type == "generate_until":
        text = str(responses[0])
    elif output_type == "loglikelihood_rolling":
        loglikelihoods = tuple(float(response) for response in responses)
    else:
        scored = responses[: _choice_count(first)]
        loglikelihoods = tuple(float(loglikelihood) for loglikelihood, _ in scored)
        greedy = tuple(str(is_greedy) == "True" for _, is_greedy in scored)  # lm-eval's logs have it as text
    metrics: dict[str, float | tuple[float, float]] = {}
    for sample in filtered:
        for metric in sample["metrics"]:
            value = _metric_value(sample[metric])
            if value is not None:
                metrics[f"{metric},{sample['filter']}"] = value
    return DocumentOutcome(
        doc_hash=first["doc_hash"],
        prompt_hash=first["prompt_hash"],
        loglikelihoods=loglikelihoods,
        greedy=greedy,
        text=text,
        target=target if output_type == "multiple_choice" and _is_index(target, loglikelihoods) else None,
        cluster=cluster,
        true_share=_true_share(first["doc"], len(loglikelihoods)) if greedy and loglikelihoods else None,
        metrics=metrics,
    )


def _true_share(doc: Any, choices: int) -> float | None:
    """Of TruthfulQA's mc2, in any language, which scores the probability of all true choices."""
    labels = (doc.get("mc2_targets") or {}).get("labels") if isinstance(doc, Mapping) else None
    return sum(label == 1 for label in labels) / choices if labels and len(labels) == choices else None


def _choice_count(sample: Sample) -> int:
    """Scored continuations; those that ``acc_mutual_info`` scores again without their context come after them."""
    count = len(sample["arguments"])
    return count // 2 if "acc_mutual_info" in sample["metrics"] else count


def _metric_value(value: Any) -> float | tuple[float, float] | None:
    """A number or a pair of numbers; None for what only means something over all documents, such as BLEU's texts."""
    if isinstance(value, tuple | list):
        numbers = [_number(part) for part in value]
        return (numbers[0], numbers[1]) if len(numbers) == 2 and None not in numbers else None  # type: ignore[return-value]
    return _number(value)


def _number(value: Any) -> float | None:
    import numpy

    return float(value) if isinstance(value, int | float | numpy.bool_ | numpy.number) else None


def require_numbers(name: str, outcomes: Iterable[DocumentOutcome]) -> None:
    """`require_finite` of all that these outcomes hold."""
    require_finite(name, [tuple(_numbers(outcome)) for outcome in outcomes])


def require_finite(name: str, documents: Sequence[Sequence[float]]) -> None:
    """A model that overflows its type, or is damaged, answers NaN, which no table may turn into a score.

    ``name``: what the documents are of, for the message. Some may only have been beside one that overflowed.
    """
    broken = sum(not all(map(math.isfinite, numbers)) for numbers in documents)
    if broken:
        raise UserError(
            f"{name}: log-likelihoods or scores that are not numbers in {broken:,} of {len(documents):,} documents; "
            "the model overflows its type (take a rung of wider range, such as bf16) or is damaged (audit it)"
        )


def _numbers(outcome: DocumentOutcome) -> Iterator[float]:
    yield from outcome.loglikelihoods or ()
    for value in outcome.metrics.values():
        yield from value if isinstance(value, tuple) else (value,)


def _metrics(
    task: Any, samples: Sequence[Sequence[Sample]], outcomes: Sequence[DocumentOutcome]
) -> tuple[MetricInfo, ...]:
    """`paired_metrics` of a task. Raises UserError where there is none."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    names: dict[Any, str] = {function: name for name, function in AGGREGATION_REGISTRY.items()}
    aggregations = {
        name: names.get(aggregation, getattr(aggregation, "__name__", "custom"))
        for name, aggregation in task.aggregation().items()
    }
    found = paired_metrics(samples[0], outcomes, task.higher_is_better(), aggregations)
    if not found:
        asked = ", ".join(str(metric["metric"]) for metric in task.config.metric_list or ())
        raise UserError(
            f"task {task.task_name}: found the metrics {asked or 'of its own code'}, expected one that lm-eval knows "
            f"for a {task.OUTPUT_TYPE} task and scores each document by, since rungs are compared document by "
            "document; choose one such as acc or exact_match"
        )
    return found


def paired_metrics(
    filtered: Sequence[Sample],
    outcomes: Sequence[DocumentOutcome],
    higher_is_better: Mapping[str, Any],
    aggregations: Mapping[Any, Any],
) -> tuple[MetricInfo, ...]:
    """The metrics that have a value in every document and a known direction, in lm-eval's order.

    ``filtered``: of any document, whose metrics are all documents'. ``aggregations``: by metric, else the mean.
    """
    metrics = [
        MetricInfo(
            name=name,
            filter=sample["filter"],
            aggregation=str(aggregations.get(name, "mean")),
            higher_is_better=bool(higher_is_better[name]),
        )
        for sample in filtered
        for name in sample["metrics"]
        if higher_is_better.get(name) is not None
    ]
    return tuple(metric for metric in metrics if all(metric.key in outcome.metrics for outcome in outcomes))


def harness_results(results: Mapping[str, Any]) -> dict[str, float]:
    """lm-eval's aggregates by ``metric,filter``; its standard errors are not asked for."""
    return {
        key: float(value)
        for key, value in results.items()
        if "," in key and not isinstance(value, str) and math.isfinite(value)
    }


def make_document(output_type: str, sample: Sample, target: Any) -> Document:
    """What was asked; ``target`` is the right choice's index, or a text.

    Where each choice has a context of its own, the prompt is what these have in common.
    """
    if output_type in ("multiple_choice", "loglikelihood"):
        scored = sample["arguments"][: _choice_count(sample)]
        contexts = {context for context, _ in scored}
        prompt = scored[0][0] if len(contexts) == 1 else os.path.commonprefix(list(contexts))  # noqa: RUF071 - texts
        choices = tuple(f"{context[len(prompt) :]}{continuation}" for context, continuation in scored)
    else:
        prompt, choices = sample["arguments"][0][0], None
    doc = sample["doc"] if isinstance(sample["doc"], Mapping) else {"text": sample["doc"]}
    return Document(
        doc_hash=sample["doc_hash"],
        prompt_hash=sample["prompt_hash"],
        prompt=prompt,
        choices=choices,
        target=_target(target, choices),
        doc=dict(doc),
    )


def _plain(doc: Any) -> Any:
    """A data set's document as JSON has it."""
    from lm_eval.utils import handle_non_serializable

    return json.loads(json.dumps(doc, default=handle_non_serializable))


def _target_of(task: Any, sample: Sample) -> Any:
    return task.doc_to_text(sample["doc"]) if getattr(task, "multiple_input", 0) else sample["target"]


def _target(target: Any, choices: tuple[str, ...] | None) -> str:
    """The right choice's text where its index is known, else the target as text."""
    return choices[target] if choices is not None and _is_index(target, choices) else str(target)


def _is_index(target: Any, choices: Sequence[Any] | None) -> bool:
    return isinstance(target, int) and 0 <= target < len(choices or ())


INTERVAL_S = 10.0
"""between entries' being written: until then what the device has computed stays there, so that nothing waits for it"""

Floats = npt.NDArray[np.float32]


class Journal:
    """Entries of one measurement: those of an earlier run, and new ones, handed to ``write``.

    ``key`` says with what batches are computed; entries of another are not used.
    """

    def __init__(
        self,
        entries: Iterable[JournalEntry],
        key: str,
        write: Callable[[JournalEntry], None],
    ) -> None:
        self._known = {(one.plan, one.batch): one for one in entries if one.key == key}
        self._key = key
        self._write = write
        self._started_s = self._written_s = time.monotonic()
        self.earlier_s = 0.0
        """that earlier runs took for what was found"""

    def find(self, plan: str, batch: int, targets: int) -> Floats | None:
        """What the batch gave, (2, targets), or None where it has to be computed, as of an entry that is damaged."""
        entry = self._known.get((plan, batch))
        if entry is None:
            return None
        try:
            data = base64.b64decode(entry.values, validate=True)
        except ValueError:
            return None
        if len(data) != 2 * targets * 4:
            return None
        self.earlier_s = max(self.earlier_s, entry.elapsed_s)
        return np.frombuffer(data, np.float32).reshape(2, targets)

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._written_s >= INTERVAL_S

    def add(self, batches: Iterable[tuple[str, int, Floats]]) -> None:
        """Write what (plan, batch) gave."""
        elapsed_s = self.earlier_s + time.monotonic() - self._started_s
        for plan, batch, values in batches:
            text = base64.b64encode(values.astype(np.float32).tobytes()).decode()
            self._write(JournalEntry(key=self._key, plan=plan, batch=batch, values=text, elapsed_s=elapsed_s))
        self._written_s = time.monotonic()


def read_entries(path: Path) -> Iterator[JournalEntry]:
    """Entries of a file, one a line; the last one may be cut off where its writer was killed. None without a file."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            yield JournalEntry.model_validate_json(line)
        except ValidationError:
            continue
