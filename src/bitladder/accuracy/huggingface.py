"""lm-eval's own ``hf`` backend on a loaded model, counting what it does: requests done, contexts cut off."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

from bitladder.accuracy.forwards import ALONE, UNTRIED, Forwards, record_scoring
from bitladder.checkpoint.skeleton import FORWARD_ERRORS, vocabulary_size
from bitladder.methods import METHODS
from bitladder.records import BatchPlan, Scoring
from bitladder.text.words import first_line
from bitladder.units import OnProgress

_PADS, _TOKENS = 9, 40
_NEW_TOKENS = 2
"""GIT forgets the mask at the second"""
_TOLERANCES = {"float32": 1e-4}
_TOLERANCE = 0.1
"""of the logits' standard deviation. Rounding makes 0.01 to 0.03 (SmolLM2 in BF16, FP16, INT8, FP4, NF4), families that
don't look at the mask 0.15 to 0.3 (RWKV, GIT)."""


class HuggingFaceModel(HFLM):  # type: ignore[misc]
    """`HFLM` with log-probabilities in FP32: in BF16 a choice's sum of -100 would be rounded to steps of 0.5.

    The model is used as it is, on its device and in its types. Requests of one token that share a context are scored
    in one row (lm-eval's ``logits_cache``).
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, progress: OnProgress | None = None) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            softmax_dtype="float32",
            logits_cache=True,
            backend="causal",  # which lm-eval takes from the family's name, of a decoder that was BART's too
        )
        self.batch_size_per_gpu: int = batch_size
        self.truncated: set[str] = set()
        """contexts that lm-eval cut off on the left, being longer than the model's"""
        self.batch_plans: tuple[BatchPlan, ...] = ()
        self.forwards = Forwards()
        self._progress = progress
        self.alone: str | None = None
        """why rows were asked one by one"""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the results has to know of how they came about."""
        return (*self.forwards.remarks, *((self.alone,) if self.alone else ()))

    @property
    def scoring(self) -> Scoring:
        """What a record keeps of how the answers were computed."""
        return record_scoring(self.model, self.forwards)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        with self._watched(requests, padding_behind_shows):
            scored: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scored

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        with self._watched(requests, padding_behind_shows):
            scored: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return scored

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        with self._watched(requests, padding_shows, generating=True):
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

    @contextmanager
    def _watched(
        self, requests: Sequence[Any], trial: Callable[[Any], bool], *, generating: bool = False
    ) -> Iterator[None]:
        """In the block each request is reported as lm-eval hands over its answer, and forwards are counted.

        From here on one row a batch where the trial says that what pads a batch changes its answers.
        """
        if self._progress is not None:
            self.set_cache_hook(_RequestCounter(len(requests), self._progress))
        if self.batch_size_per_gpu != 1 and (why := _reason_to_ask_alone(trial, self.model)):
            self.batch_size_per_gpu, self.alone = 1, why
        with self.forwards.seen(self.model, generating=generating):
            yield


_found: "WeakKeyDictionary[Any, dict[str, str | None]]" = WeakKeyDictionary()
"""of models that were tried: every task of a study asks again"""


def _reason_to_ask_alone(trial: Callable[[Any], bool], model: Any) -> str | None:
    import torch

    known = _found.setdefault(model, {})
    if trial.__name__ not in known:
        try:
            with _weights_alone_rounded(model):
                known[trial.__name__] = ALONE if trial(model) else None
        except torch.OutOfMemoryError:
            raise
        except FORWARD_ERRORS as error:  # ProphetNet takes no mask that hides a beginning
            known[trial.__name__] = f"{UNTRIED} ({type(error).__name__}: {first_line(error)})"
    return known[trial.__name__]


@contextmanager
def _weights_alone_rounded(model: Any) -> Iterator[None]:
    """LLM.int8 rounds inputs too, and takes for outliers the columns where any row of a batch has one: that depends on
    what pads, in every family, and no rung may be asked in other batches than its baseline for it."""
    with ExitStack() as hooks:
        for layer, method in product(model.modules(), METHODS.values()):
            if (multiply := method.product_of_weights(layer)) is not None:
                hooks.enter_context(layer.register_forward_hook(partial(_again, multiply)))
        yield


def _again(multiply: Callable[[Any], Any], _: Any, inputs: tuple[Any], __: Any) -> Any:
    return multiply(inputs[0])


def _text(model: Any) -> Any:
    """(1, tokens): ids that the model has an embedding for, as many as it has positions for beside the padding."""
    import torch

    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokens = max(1, min(_TOKENS, positions - _PADS - _NEW_TOKENS)) if isinstance(positions, int) else _TOKENS
    return (torch.arange(_PADS, _PADS + tokens, device=model.device) % vocabulary_size(model))[None]


def padding_behind_shows(model: Any) -> bool:
    """Whether what follows in a row changes what the model says before, as lm-eval fills rows up behind."""
    import torch

    text = _text(model)
    padded = torch.cat([text, text.new_zeros((1, _PADS))], 1)
    with torch.inference_mode():
        plain, longer = (model(token_ids).logits[0, : text.shape[1]].float() for token_ids in (text, padded))
    return _are_apart(model, plain, longer)


def _are_apart(model: Any, plain: Any, padded: Any) -> bool:
    """Whether logits (tokens, vocabulary) differ by more than rounding; of a model that overflows nothing can be said,
    and no batch helps it."""
    if not plain.isfinite().all():
        return False
    off = (plain - padded).std(-1) / plain.std(-1)
    return not bool((off <= _TOLERANCES.get(str(model.dtype).removeprefix("torch."), _TOLERANCE)).all())


def padding_shows(model: Any) -> bool:
    """Whether tokens in front that the attention mask hides change what the model says next: some recurrent families
    don't look at the mask, and lm-eval puts texts of several lengths into one batch."""
    import torch

    text = _text(model)
    padded = torch.cat([text.new_zeros((1, _PADS)), text], 1)
    answers = []
    for token_ids, hidden in ((text, 0), (padded, _PADS)):
        mask = torch.ones_like(token_ids)
        mask[:, :hidden] = 0
        answer = model.generate(
            input_ids=token_ids,
            attention_mask=mask,
            max_new_tokens=_NEW_TOKENS,
            min_new_tokens=_NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        answers.append((answer.sequences[0, -2], torch.cat(answer.logits).float()))  # (2, vocabulary)
    (token, plain), (same, hiding) = answers
    seen = _NEW_TOKENS if token == same else 1  # after another token the logits are of another text
    return _are_apart(model, plain[:seen], hiding[:seen])


class _RequestCounter(CacheHook):  # type: ignore[misc]
    """Sits where lm-eval's cache of answers would."""

    def __init__(self, total: int, progress: OnProgress) -> None:
        super().__init__(None)
        self._done = 0
        self._total = total
        self._progress = progress

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._done += 1
        self._progress(self._done, self._total)
