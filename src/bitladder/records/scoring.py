"""A task's questions and a model's answers: in which order they were asked, and by what they were computed."""

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

from bitladder.records.base import SCHEMA_VERSION, Record


class Order(Record):
    """One random order of a task's documents for all rungs, cut into stages.

    Documents of one cluster come together, and a question that several tasks ask comes at the same place in each.
    """

    seed: int
    stops: tuple[int, ...] = ()
    """of a plan: documents asked by the end of each stage, the last of all; not of a measurement, whose identity
    depends on its own documents alone"""
    chunk: tuple[int, int] | None = None
    """of a measurement: its documents' places in the order, from the first to before the second"""

    @property
    def chunks(self) -> tuple[tuple[int, int], ...]:
        """The places of each stage's documents; a stage may have none."""
        return tuple(zip((0, *self.stops), self.stops, strict=False))


PASSAGE = "passage "
"""begins the label of a cluster that is known by a text, which is the same in every task that quotes it"""


def order_key(seed: int, label: str) -> str:
    """What documents are sorted by; ``label`` is that of their cluster, else their hash."""
    return hashlib.sha256(f"{seed} {label}".encode()).hexdigest()


class ProductKernel(Record):
    """One way in which products of quantized layers were computed."""

    kernel: str
    least_rows: int
    most_rows: int
    products: int
    """how many: a layer's in one forward is one"""


class Scoring(Record):
    attention: tuple[str, ...]
    """how the forwards attended, by name; empty where a journal had the answers of all"""
    shared: bool
    """whether what requests begin with in common was forwarded once"""
    compiled: bool
    """whether norms, MLPs and rotary embeddings were compiled"""
    widened: bool
    """whether products of 16-bit values were computed in FP32 and rounded once"""
    row_kernel: bool
    """whether log-probabilities came from our own kernel"""
    forwards: int
    least_rows: int | None
    """tokens of a forward; None where there was none"""
    most_rows: int | None
    kernels: tuple[ProductKernel, ...] | None
    """of quantized layers, by their libraries' rule for so many rows; empty where nothing is quantized"""
    no_kernels_reason: str | None = None
    side_by_side: int | None = None
    """texts that generated at once, at most; None where none did, or lm-eval's backend generated them"""


def join_scorings(parts: Iterable[Scoring | None]) -> Scoring | None:
    """Of several measurements as of one; None where one wasn't recorded."""
    parts = tuple(parts)
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    least = [part.least_rows for part in known if part.least_rows is not None]
    most = [part.most_rows for part in known if part.most_rows is not None]
    kernels = [one for part in known for one in part.kernels or ()]
    texts = [part.side_by_side for part in known if part.side_by_side is not None]
    reason = next((part.no_kernels_reason for part in known if part.kernels is None), None)
    return Scoring(
        attention=tuple(dict.fromkeys(name for part in known for name in part.attention)),
        shared=any(part.shared for part in known),
        compiled=any(part.compiled for part in known),
        widened=any(part.widened for part in known),
        row_kernel=any(part.row_kernel for part in known),
        forwards=sum(part.forwards for part in known),
        least_rows=min(least, default=None),
        most_rows=max(most, default=None),
        kernels=join_kernels(kernels) if all(part.kernels is not None for part in known) else None,
        no_kernels_reason=reason,
        side_by_side=max(texts, default=None),
    )


def join_kernels(found: Iterable[ProductKernel]) -> tuple[ProductKernel, ...]:
    """Each kernel once, the one with the fewest rows first."""
    by_name: dict[str, list[ProductKernel]] = {}
    for one in found:
        by_name.setdefault(one.kernel, []).append(one)
    joined = [
        ProductKernel(
            kernel=name,
            least_rows=min(one.least_rows for one in same),
            most_rows=max(one.most_rows for one in same),
            products=sum(one.products for one in same),
        )
        for name, same in by_name.items()
    ]
    return tuple(sorted(joined, key=lambda one: (one.least_rows, one.kernel)))


class Document(Record):
    """One question as the model got it. Stored once a task, not once a rung."""

    doc_hash: str
    prompt_hash: str
    prompt: str
    choices: tuple[str, ...] | None
    """continuations that were scored; None for generation"""
    target: str
    doc: dict[str, Any]


class TaskDocuments(Record):
    schema_version: int = SCHEMA_VERSION
    task: str
    documents_hash: str
    documents: tuple[Document, ...]


class MetricInfo(Record):
    """How lm-eval names, filters and orients one metric of a task."""

    name: str
    filter: str
    aggregation: str
    higher_is_better: bool

    @property
    def key(self) -> str:
        """The key in ``DocumentOutcome.metrics``: lm-eval's own ``name,filter``."""
        return f"{self.name},{self.filter}"

    @property
    def title(self) -> str:
        """For people: the name, and the filter where the task has one of its own."""
        return self.name if self.filter == "none" else f"{self.name} ({self.filter})"


class DocumentOutcome(Record):
    """What one model answered to one document."""

    doc_hash: str
    prompt_hash: str
    loglikelihoods: tuple[float, ...] | None = None
    """one a choice, natural log; for rolling log-likelihood one for the document"""
    greedy: tuple[bool, ...] | None = None
    """whether the choice is the greedy continuation"""
    text: str | None = None
    """what was generated"""
    target: int | None = None
    """index of the right choice; None where nothing is chosen, or it is not one of them alone"""
    cluster: str | None = None
    """shared by documents that resemble each other, such as those of one source; None: like no other"""
    true_share: float | None = None
    """of the choices, where the document labels each as true or false; None: it does not"""
    metrics: dict[str, float | tuple[float, float]]
    """lm-eval's per-document values; a pair is (sum, weight) of a weighted mean such as bits per byte"""


class BatchPlan(Record):
    """Which tokens were forwarded together: a pure function of the requests, the seed and the budget.

    On a GPU the requests of a task are planned in chunks, each a plan of its own.
    """

    seed: int
    token_budget: int
    batches: int
    tokens: int
    """forwarded"""
    digest: str
    """SHA-256 of the whole plan, by which one made anew is known to be the same"""
    compositions: tuple[str, ...] = ()
    """a hash of each batch's tokens, whatever their order; empty in records of before they were kept"""


class AccuracyOutcome(Record):
    kind: Literal["accuracy"] = "accuracy"
    documents_hash: str
    output_type: str
    metrics: tuple[MetricInfo, ...]
    """those with a value in every document, in lm-eval's order"""
    harness_results: dict[str, float]
    """lm-eval's own aggregates, to check ours against"""
    documents: tuple[DocumentOutcome, ...]
    remarks: tuple[str, ...] = ()
    """how the backend departed from what was asked or expected, such as a smaller budget after running out of memory"""
    truncated_documents: int = 0
    """documents whose prompt was longer than the model's context and lost its beginning"""
    plans: tuple[BatchPlan, ...] = ()
    """of the backend ``bitladder``: what log-likelihoods were scored by"""
    scoring: Scoring | None = None
    """None: not recorded, as before it was"""
