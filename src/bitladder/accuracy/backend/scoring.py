"""Forwarding a plan's packs: log-probability of every target, and whether it is the model's first choice."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bitladder.accuracy.backend.attention import forward, our_attention
from bitladder.accuracy.backend.packing import Pack, Plan
from bitladder.accuracy.backend.prefix import PrefixCache
from bitladder.accuracy.backend.products import widened_products
from bitladder.accuracy.backend.tree import TreeAttention

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]

_AHEAD = 4
"""packs prepared while the device works"""
_SOFTMAX_ELEMENTS = 2**27
"""log-probabilities made at once: 512 MiB in FP32"""


@dataclass(frozen=True)
class Scores:
    loglikelihood: npt.NDArray[np.float64]
    """sum over each request's targets, natural log"""
    greedy: npt.NDArray[np.bool_]
    """whether every target is the most likely token, ties going to the lowest token id as in lm-eval's hf"""


def score(model: "PreTrainedModel", plan: Plan, progress: Progress | None = None) -> Scores:
    """Run the plan. ``progress`` gets (requests done, requests in all) as forwards are launched."""
    import torch

    prefixes = PrefixCache()
    results: list[Tensor] = []
    preparation = _Preparation(plan.packs, model.device, prefixes)
    with torch.inference_mode(), our_attention(model), widened_products(model.device), preparation as prepared:
        for batch, done in zip(prepared, plan.requests_done, strict=True):
            results.append(forward_batch(model, batch))
            prefixes.drop(batch.pack.drop)
            if progress is not None:
                progress(done, plan.requests)
        merged = torch.cat(results, 1).double().cpu().numpy()  # (2, targets)
    owners = np.concatenate([pack.target_requests for pack in plan.packs])
    missed = np.bincount(owners, weights=1 - merged[1], minlength=plan.requests)
    sums = np.bincount(owners, weights=merged[0], minlength=plan.requests).astype(np.float64)
    return Scores(sums, missed == 0)


@dataclass(frozen=True)
class Batch:
    """A pack on the device."""

    pack: Pack
    attention: TreeAttention
    tokens: "Tensor"
    positions: "Tensor"
    rows: "Tensor"
    target_rows: "Tensor"
    target_tokens: "Tensor"


def prepare_batch(pack: Pack, device: Any, prefixes: PrefixCache) -> Batch:
    """Everything about the pack that doesn't depend on the model's answers, on the device."""
    import torch

    # A pack of kept tokens may score none of them; the model's head wants a row all the same.
    rows = pack.rows if len(pack.rows) else np.zeros(1, np.int64)
    parts = [pack.tokens, pack.positions, rows, pack.target_rows, pack.target_tokens]
    together: Tensor = torch.from_numpy(np.concatenate(parts))
    if device.type == "cuda":
        together = together.pin_memory()
    tensors = torch.split(together.to(device, non_blocking=True), [len(part) for part in parts])
    attention = TreeAttention(pack, prefixes, device, tensors[1])
    attention.prepare()
    return Batch(pack, attention, *tensors)


def forward_batch(model: "PreTrainedModel", batch: Batch) -> "Tensor":
    """Returns (2, targets), FP32: log-probability, and 1 where the target is the first choice."""
    import torch

    pack = batch.pack
    logits = forward(model, batch.tokens, batch.positions, batch.rows, batch.attention)
    result = torch.empty((2, len(pack.target_rows)), dtype=torch.float32, device=logits.device)
    step = max(1, _SOFTMAX_ELEMENTS // logits.shape[1])
    starts = range(0, len(pack.rows), step)
    bounds = np.searchsorted(pack.target_rows, [*starts, len(pack.rows)]).tolist()
    for start, first, end in zip(starts, bounds, bounds[1:], strict=False):
        log_probabilities = torch.log_softmax(logits[start : start + step], -1, dtype=torch.float32)
        # On the log-probabilities, not the logits: rounding makes ties there that hf has too.
        first_choice = log_probabilities.argmax(-1)
        local, tokens = batch.target_rows[first:end] - start, batch.target_tokens[first:end]
        result[0, first:end] = log_probabilities[local, tokens]
        result[1, first:end] = first_choice[local] == tokens
    return result


class _Preparation:
    """Batches, made by a thread of its own while the device works on those before."""

    def __init__(self, packs: list[Pack], device: Any, prefixes: PrefixCache) -> None:
        self.packs = packs
        self.device = device
        self.prefixes = prefixes
        self.ready: queue.Queue[Batch | Exception | None] = queue.Queue(_AHEAD)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._prepare, daemon=True)

    def __enter__(self) -> Iterator[Batch]:
        self.thread.start()
        return self._take()

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        while self.thread.is_alive():
            try:
                self.ready.get(timeout=0.05)
            except queue.Empty:
                continue
        self.thread.join()

    def _prepare(self) -> None:
        try:
            for pack in self.packs:
                if self.stopped.is_set():
                    return
                self.ready.put(prepare_batch(pack, self.device, self.prefixes))
        except Exception as error:  # handed to the thread that waits, which raises it
            self.ready.put(error)
            return
        self.ready.put(None)

    def _take(self) -> Iterator[Batch]:
        while (item := self.ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
