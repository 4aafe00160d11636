"""Log-likelihoods as one request by itself gets them: in one forward at batch 1, or by cached decoding, step by step.

The model attends its own way here, and nothing shares a batch: what a deployment at batch 1 computes.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bitladder.accuracy.backend.packing import Request

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


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
