"""lm-eval's own ``hf`` backend on a loaded model, counting what it does: requests done, contexts cut off."""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from bitladder.accuracy.passes import Passes, record_scoring
from bitladder.records import BatchPlan, Scoring

Progress = Callable[[int, int], None]


class HuggingFaceModel(HFLM):  # type: ignore[misc]
    """`HFLM` with log-probabilities in FP32: in BF16 a choice's sum of -100 would be rounded to steps of 0.5.

    The model is used as it is, on its device and in its types. Requests of one token that share a context are scored
    in one row (lm-eval's ``logits_cache``).
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, progress: Progress | None = None) -> None:
        super().__init__(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32", logits_cache=True
        )
        self.truncated: set[str] = set()
        """contexts that lm-eval cut off on the left, being longer than the model's"""
        self.batch_plans: tuple[BatchPlan, ...] = ()
        self.passes = Passes()
        self._progress = progress

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the results has to know of how they came about."""
        return self.passes.remarks

    @property
    def scoring(self) -> Scoring:
        """What a record keeps of how the answers were computed."""
        return record_scoring(self.model, self.passes)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._count(len(requests))
        with self.passes.seen(self.model):
            scored: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scored

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        self._count(len(requests))
        with self.passes.seen(self.model):
            scored: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return scored

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        self._count(len(requests))
        with self.passes.seen(self.model, generating=True):
            texts: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return texts

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        for text, context, continuation in requests:
            if text is not None and len(context) + len(continuation) > self.max_length + 1:
                self.truncated.add(text[0])
        scored: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **options)
        return scored

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **options: Any
    ) -> tuple[Any, Any]:
        tokens, mask = super().tok_batch_encode(strings, padding_side, left_truncate_len, **options)
        if left_truncate_len is not None and tokens.shape[1] == left_truncate_len:
            self.truncated.update(text for text in strings if len(self.tok_encode(text)) > left_truncate_len)
        return tokens, mask

    def _count(self, total: int) -> None:
        """Report each request as lm-eval hands over its answer."""
        if self._progress is not None:
            self.set_cache_hook(_RequestCounter(total, self._progress))


class _RequestCounter(CacheHook):  # type: ignore[misc]
    """Sits where lm-eval's cache of answers would."""

    def __init__(self, total: int, progress: Progress) -> None:
        super().__init__(None)
        self._done = 0
        self._total = total
        self._progress = progress

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._done += 1
        self._progress(self._done, self._total)
