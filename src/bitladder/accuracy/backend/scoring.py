"""Forwarding a plan's packs: log-probability of every target, and whether it is the model's first choice.

Requests come in chunks, so that the next chunk is tokenized and planned while the device works.
"""

import hashlib
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from bitladder.accuracy.backend.attention import KeyValueStore, PrefixCache, forward, our_attention
from bitladder.accuracy.backend.compiling import compiled, widened_in
from bitladder.accuracy.backend.plan import Integers, Pack, Plan
from bitladder.accuracy.backend.speedups import NO_SPEEDUPS, Speedups
from bitladder.accuracy.backend.tokens import common_length
from bitladder.accuracy.backend.tree import TreeAttention, to_device
from bitladder.accuracy.samples import Floats, Journal

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from torch import Tensor
    from transformers import PreTrainedModel

Element = TypeVar("Element")

_CHARACTERS_PER_TOKEN = 4
_FIRST = 0.25
"""budgets' worth of the first chunk: nothing happens on the device before it is ready"""
_LARGEST = 2.0
"""budgets' worth at most: a device takes about a thousand kernels in advance, the work of one or two batches"""


def split_requests(pairs: Sequence[tuple[str, str]], token_budget: int) -> list[tuple[int, int]]:
    """Starts and ends of chunks of (context, continuation) strings: a pure function of them and the token budget.

    The first is small and each twice as large as the one before, up to `_LARGEST`.
    What a string shares with the context before it counts once, as it is forwarded once. A context isn't parted from
    the next request's, where that is the same.
    """
    bounds = [0]
    budgets, characters = _FIRST, 0
    before = ""
    for index, (context, continuation) in enumerate(pairs):
        if context != before:
            if characters >= budgets * token_budget * _CHARACTERS_PER_TOKEN:
                bounds.append(index)
                budgets, characters = min(2 * budgets, _LARGEST), 0
            characters += len(context) - common_length(before, context)
            before = context
        characters += len(continuation)
    bounds.append(len(pairs))
    return list(itertools.pairwise(bounds)) if pairs else []


def made_ahead(items: Iterator[Element]) -> Iterator[Element]:
    """The same items, each made by a thread while the one before is used; what making one raises is raised here."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="plans") as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # it isn't the end


OnTexts = Callable[[int], None]
"""is told how many requests are done"""

_SOFTMAX_ELEMENTS = 2**27
"""log-probabilities made at once: 512 MiB in FP32"""


@dataclass(frozen=True)
class Scores:
    loglikelihood: npt.NDArray[np.float64]
    """sum over each request's targets, natural log"""
    greedy: npt.NDArray[np.bool_]
    """whether every target is the most likely token, ties going to the lowest token id as in lm-eval's hf"""


def score(
    model: "PreTrainedModel",
    plans: Iterable[Plan],
    speedups: Speedups = NO_SPEEDUPS,
    progress: OnTexts | None = None,
    journal: Journal | None = None,
) -> Scores:
    """Run the plans, in order, as one. ``progress`` gets the number of requests done as forwards are launched.

    A plan is asked for when the forwards of those before it are launched, and nothing waits for the device before all
    of them are: making a plan costs no time while the device has work. What the ``journal`` has isn't computed again.
    """
    import torch

    prefixes = PrefixCache()
    results = _PackResults(journal)
    owners: list[Integers] = []
    requests = 0
    with torch.inference_mode(), our_attention(model), widened_in(model), compiled(model, speedups.compiled):
        for plan in plans:
            known = results.begin(plan, speedups)
            to_run = _packs_to_run(plan, known)
            for number, (pack, done) in enumerate(zip(plan.packs, plan.requests_done, strict=True)):
                if number in to_run:
                    result = forward_batch(model, pack, prefixes, speedups)
                prefixes.drop(pack.drop)  # of packs that were known too: the next plan counts its nodes anew
                if number in known:
                    results.add_known(known[number])
                else:
                    results.add(number, result)
                owners.append(requests + pack.target_requests)
                if progress is not None:
                    progress(requests + done)
            requests += plan.requests
        merged = results.merged()
    owner = np.concatenate(owners)
    missed = np.bincount(owner, weights=1 - merged[1], minlength=requests)
    sums = np.bincount(owner, weights=merged[0], minlength=requests).astype(np.float64)
    return Scores(sums, missed == 0)


def _packs_to_run(plan: Plan, known: Container[int]) -> set[int]:
    """Those that aren't known, and those whose keys and values they need."""
    found: set[int] = set()
    wanted: set[int] = set()
    for number in range(len(plan.packs) - 1, -1, -1):
        pack = plan.packs[number]
        if number not in known or not wanted.isdisjoint(node for node, _, _ in pack.keep):
            found.add(number)
            wanted.update(node for _, _, chain in pack.chains for node in chain)
    return found


class _PackResults:
    """What packs gave, left on the device until it is due in the journal or all are done."""

    def __init__(self, journal: Journal | None) -> None:
        self.journal = journal
        self.plan = ""
        self.parts: list[Floats] = []
        self.waiting: list[tuple[str, int, Tensor]] = []

    def begin(self, plan: Plan, speedups: Speedups) -> dict[int, Floats]:
        """What is known of the plan's packs."""
        if self.journal is None:
            return {}
        self.plan = hashlib.sha256(f"{plan.digest}{speedups}".encode()).hexdigest()
        found = (self.journal.find(self.plan, number, len(pack.target_rows)) for number, pack in enumerate(plan.packs))
        return {number: values for number, values in enumerate(found) if values is not None}

    def add(self, number: int, result: "Tensor") -> None:
        self.waiting.append((self.plan, number, result))
        if self.journal is not None and self.journal.is_due:
            self._fetch()

    def add_known(self, values: Floats) -> None:
        self._fetch()
        self.parts.append(values)

    def _fetch(self) -> None:
        import torch

        if not self.waiting:
            return
        fetched = torch.cat([result for _, _, result in self.waiting], 1).cpu().numpy()
        values = np.split(fetched, np.cumsum([result.shape[1] for _, _, result in self.waiting])[:-1], axis=1)
        self.parts += values
        if self.journal is not None:
            self.journal.add((plan, number, one) for (plan, number, _), one in zip(self.waiting, values, strict=True))
        self.waiting = []

    def merged(self) -> npt.NDArray[np.float64]:
        """(2, targets) of all packs in order."""
        self._fetch()
        return np.concatenate(self.parts, axis=1).astype(np.float64)


def forward_pack(
    model: "PreTrainedModel", pack: Pack, kept: KeyValueStore, speedups: Speedups
) -> "tuple[Tensor, TreeAttention, list[Tensor]]":
    """Logits of the pack's rows (rows, vocabulary), of its first token where it has none; how they were attended; and
    on the device its targets' rows and tokens."""
    # A pack of kept tokens may score none of them; the model's head wants a row all the same.
    rows = pack.rows if len(pack.rows) else np.zeros(1, np.int64)
    arrays = [pack.tokens, pack.positions, rows, pack.target_rows, pack.target_tokens]
    tokens, positions, rows_there, *targets = to_device(arrays, model.device)
    block_rows = None
    if speedups.tree_kernel:
        from bitladder.accuracy.backend import triton_kernels

        block_rows = triton_kernels.block_rows(model.dtype)
    attention = TreeAttention(pack, kept, model.device, positions, block_rows)
    return forward(model, tokens, positions, rows_there, attention), attention, targets


def forward_batch(model: "PreTrainedModel", pack: Pack, prefixes: PrefixCache, speedups: Speedups) -> "Tensor":
    """Returns (2, targets), FP32: log-probability, and 1 where the target is the first choice."""
    import torch

    logits, _, (target_rows, target_tokens) = forward_pack(model, pack, prefixes, speedups)
    if speedups.row_kernel:
        from bitladder.accuracy.backend.triton_kernels import row_statistics

        largest, log_sum, choice = (part[target_rows] for part in row_statistics(logits))
        chosen = logits[target_rows, target_tokens].float()
        return torch.stack([chosen - largest - log_sum, (choice == target_tokens).float()])
    result = torch.empty((2, len(pack.target_rows)), dtype=torch.float32, device=logits.device)
    step = max(1, _SOFTMAX_ELEMENTS // logits.shape[1])
    starts = range(0, len(pack.rows), step)
    bounds = np.searchsorted(pack.target_rows, [*starts, len(pack.rows)]).tolist()
    for start, first, end in zip(starts, bounds, bounds[1:], strict=False):
        log_probabilities = torch.log_softmax(logits[start : start + step], -1, dtype=torch.float32)
        # On the log-probabilities, not the logits: rounding makes ties there that hf has too.
        first_choice = log_probabilities.argmax(-1)
        local, targets = target_rows[first:end] - start, target_tokens[first:end]
        result[0, first:end] = log_probabilities[local, targets]
        result[1, first:end] = first_choice[local] == targets
    return result


def remembered(plans: Iterable[Plan], made: list[Plan]) -> Iterator[Plan]:
    for plan in plans:
        made.append(plan)
        yield plan


def by_task(requests: "Sequence[Instance]") -> list[list[int]]:
    """Indices of each task's requests: they begin alike."""
    groups: dict[str | None, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.task_name, []).append(index)
    return list(groups.values())
