"""Whether a model can be scored our way: by what its configuration says, then by trying it on a few tokens."""

import dataclasses
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from bitladder.accuracy.backend.attention import UnsupportedModelError
from bitladder.accuracy.backend.generation import StopStrings
from bitladder.accuracy.backend.plan import Request, attention_heads, plan_packs
from bitladder.accuracy.backend.speedups import NO_SPEEDUPS, Speedups, kernel_errors
from bitladder.checkpoint.skeleton import FORWARD_ERRORS, vocabulary_size
from bitladder.machine.cards import model_devices
from bitladder.text.words import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STATIC_ROPE = ("default", "linear", "llama3", "yarn", "proportional")
"""rotary embeddings whose frequencies don't depend on how long a batch is"""
_TOLERANCE_FP32 = 2e-3
_TOLERANCE = 0.25
"""In standard deviations of the log-probabilities. Rounding of 16-bit and the batch dependence of LLM.int8 stay well
below it, attention to wrong tokens does not."""

_SHARED, _END, _ANSWER = 20, 6, 4
"""tokens of the trial's common beginning, of what follows it, and of what is generated"""
_tried: "WeakSet[PreTrainedModel]" = WeakSet()
"""models that passed their trial: every task of a study asks again"""


def require_support(model: "PreTrainedModel", speedups: Speedups = NO_SPEEDUPS) -> None:
    """Raise UnsupportedModelError, saying why, for a model that must be scored lm-eval's way.

    What the model itself raises in a plain forward is raised as it is.
    """
    require_known(model)
    if model not in _tried:
        _try_out(model, dataclasses.replace(speedups, compiled=False))
        _tried.add(model)


def require_known(model: "PreTrainedModel") -> None:
    """The part of `require_support` that takes no forward."""
    config = model.config.get_text_config()
    if len(model_devices(model)) > 1:
        raise UnsupportedModelError("it is spread over several devices")
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError("it has an encoder")
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModelError("its attention can't be replaced through transformers' attention interface")
    if getattr(config, "attention_chunk_size", None) is not None:
        raise UnsupportedModelError("its attention is chunked")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise UnsupportedModelError(f"it has layers of kind {', '.join(sorted(kinds))}")
    unknown = _rope_types(config) - set(_STATIC_ROPE)
    if unknown:
        raise UnsupportedModelError(
            f"its rotary embedding ({', '.join(sorted(unknown))}) depends on the batch's length"
        )
    try:
        attention_heads(model)
    except ValueError as error:
        raise UnsupportedModelError(str(error)) from None
    if len({module.head_dim for module in model.modules() if isinstance(getattr(module, "head_dim", None), int)}) > 1:
        raise UnsupportedModelError("its heads are of several sizes")


def _rope_types(config: Any) -> set[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    return {str(one["rope_type"]) for one in each if one.get("rope_type")}


def _try_out(model: "PreTrainedModel", speedups: Speedups) -> None:
    """Two texts with a common beginning, scored as one tree and gone on with side by side, then each by the model's own
    forward: the same answers, or unsupported."""
    import torch

    from bitladder.accuracy.backend.scoring import score

    random = np.random.default_rng(0)
    tokens = random.integers(0, vocabulary_size(model), _SHARED + 2 * _END).astype(np.int32)
    shared, *ends = np.split(tokens, [_SHARED, _SHARED + _END])
    texts = [np.concatenate([shared, end]) for end in ends]
    requests = [Request(text[:-1], text[-1:]) for text in texts]
    try:
        together = score(model, [plan_packs(requests, seed=0, token_budget=_SHARED + 2)], speedups).loglikelihood
        answers = _generated(model, texts, speedups)
    except torch.OutOfMemoryError:
        raise
    except (*FORWARD_ERRORS, *kernel_errors(speedups)) as error:
        raise UnsupportedModelError(f"its forward can't be run as a packed batch ({first_line(error)})") from None
    tolerance = _TOLERANCE_FP32 if model.dtype == torch.float32 else _TOLERANCE
    for text, loglikelihood, answer in zip(texts, together.tolist(), answers, strict=True):
        _require_same(model, text, loglikelihood, answer, tolerance)


def _generated(model: "PreTrainedModel", texts: "list[np.ndarray[Any, Any]]", speedups: Speedups) -> list[list[int]]:
    """Our greedy answers to the texts, side by side."""
    from bitladder.accuracy.backend.generation import Prompt, generate

    prompts = [Prompt(text, StopStrings(None, ()), frozenset(), _ANSWER) for text in texts]
    answers: dict[int, list[int]] = {}
    generate(
        model,
        prompts,
        slots=len(prompts),
        token_budget=4 * _SHARED,
        finished=lambda index, tokens: answers.update({index: tokens}),
        seen=lambda rows, taken, broken: None,
        speedups=dataclasses.replace(speedups, recorded=False),
    )
    return [answers[index] for index in range(len(prompts))]


def _require_same(
    model: "PreTrainedModel", text: "np.ndarray[Any, Any]", loglikelihood: float, answer: list[int], tolerance: float
) -> None:
    """Raise UnsupportedModelError where the model's own forward has another log-likelihood of the text's last token, or
    another first choice than a generated one, near ties apart."""
    import torch

    whole = torch.from_numpy(np.concatenate([text, answer]).astype(np.int64)).to(model.device)
    with torch.inference_mode():
        logits = model(whole[None]).logits[0, len(text) - 2 : -1].float()  # as lm-eval calls it
    spread = logits.std(-1)
    exact = torch.log_softmax(logits[0], -1)[int(text[-1])]
    off = float((exact - loglikelihood).abs() / spread[0])
    if not off <= tolerance:
        raise UnsupportedModelError(f"a trial of packed attention was off by {off:.2g} standard deviations")
    chosen = logits[1:].gather(-1, whole[len(text) :, None])[:, 0]
    off = float(((logits[1:].max(-1).values - chosen) / spread[1:]).max())
    if not off <= 2 * tolerance:  # both of the two may be off
        raise UnsupportedModelError(f"a trial of generation chose a token {off:.2g} standard deviations below the best")
