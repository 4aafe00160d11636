"""Whether a model can be scored our way: by what its configuration says, then by trying it on a few tokens."""

import dataclasses
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from bitladder.accuracy.backend.attention import UnsupportedModelError
from bitladder.accuracy.backend.packing import Request, plan_packs
from bitladder.accuracy.backend.ways import NO_WAYS, Ways, kernel_errors
from bitladder.checkpoint.placement import model_devices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STATIC_ROPE = ("default", "linear", "llama3", "yarn", "proportional")
"""rotary embeddings whose frequencies don't depend on how long a batch is"""
_TOLERANCE_FP32 = 2e-3
_TOLERANCE = 0.25
"""In standard deviations of the log-probabilities. Rounding of 16-bit and the batch dependence of LLM.int8 stay well
below it, attention to wrong tokens does not."""

_WRONG_ARGUMENTS: tuple[type[Exception], ...] = (TypeError, AttributeError, ValueError)
_tried: "WeakSet[PreTrainedModel]" = WeakSet()
"""models that passed their trial: every task of a study asks again"""


def require_support(model: "PreTrainedModel", ways: Ways = NO_WAYS) -> None:
    """Raise UnsupportedModelError, saying why, for a model that must be scored lm-eval's way."""
    require_known(model)
    if model not in _tried:
        _probe(model, dataclasses.replace(ways, compiled=False))
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
    if len({module.head_dim for module in model.modules() if isinstance(getattr(module, "head_dim", None), int)}) > 1:
        raise UnsupportedModelError("its heads are of several sizes")


def _rope_types(config: Any) -> set[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    return {str(one["rope_type"]) for one in each if one.get("rope_type")}


def _probe(model: "PreTrainedModel", ways: Ways) -> None:
    """Two texts with a common beginning, as one tree and each alone: the same log-probabilities, or unsupported."""
    import torch

    from bitladder.accuracy.backend.scoring import score

    random = np.random.default_rng(0)
    vocabulary = model.config.get_text_config().vocab_size
    shared, *ends = np.split(random.integers(0, vocabulary, 32).astype(np.int32), [20, 26])
    whole = [np.concatenate([shared, end]) for end in ends]
    requests = [Request(tokens[:-1], tokens[-1:]) for tokens in whole]
    alone, spread = [], []
    with torch.inference_mode():
        for request in requests:
            inputs = torch.from_numpy(request.inputs.astype(np.int64)).to(model.device)[None]
            logits = model(input_ids=inputs, use_cache=False).logits[0, -1].float()
            alone.append(float(torch.log_softmax(logits, -1)[int(request.targets[0])]))
            spread.append(float(logits.std()))
    try:
        together = score(model, [plan_packs(requests, seed=0, token_budget=22)], ways).loglikelihood
    except (*_WRONG_ARGUMENTS, *kernel_errors(ways)) as error:
        raise UnsupportedModelError(f"its forward doesn't take what a packed batch needs ({error})") from None
    tolerance = _TOLERANCE_FP32 if model.dtype == torch.float32 else _TOLERANCE
    off = float(np.max(np.abs(together - np.array(alone)) / np.array(spread)))
    if not off <= tolerance:
        raise UnsupportedModelError(f"a trial of packed attention was off by {off:.2g} standard deviations")
