"""What one forward pass shows: the memory that a model holds before and after it, and the operators that ran."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitladder.checkpoint.footprint import loaded_bytes_by_dtype
from bitladder.checkpoint.skeleton import FORWARD_ERRORS, vocabulary_size
from bitladder.errors import DoesNotFitError, UserError
from bitladder.wording import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT_TOKENS = 16


class FailingModelError(UserError):
    """A model that loads and can't be run."""


@dataclass(frozen=True)
class Loaded:
    """A model that was loaded and run once. Bytes by type are those of `loaded_bytes_by_dtype`."""

    device: str
    bytes_before: Mapping[str, int]
    stored_bytes_before: Mapping[str, int]
    """without buffers that are made anew at every loading, such as masks and rotary tables"""
    bytes_after: Mapping[str, int]
    operators: frozenset[str]
    """as the torch profiler names them, such as ``aten::_int_mm``"""
    looks_ahead: float = 0.0
    """how far the last token moves the logits of the first half, in their standard deviations: 0 of a causal model"""
    remarks: tuple[str, ...] = ()
    """what the format's library warned of"""


def observe_forward(model: "PreTrainedModel") -> Loaded:
    """One forward over a fixed prompt of 16 tokens, under the profiler. Some formats unpack their weights here.

    Raises FailingModelError where the model's own code fails, as some families' does in 16 bits.
    """
    import torch

    before = loaded_bytes_by_dtype(model)
    stored = loaded_bytes_by_dtype(model, stored_alone=True)
    token_ids = (torch.arange(PROMPT_TOKENS, device=model.device) * 97 % vocabulary_size(model))[None]  # (1, 16)
    mask = torch.ones_like(token_ids)
    other = token_ids.clone()
    other[0, -1] = (other[0, -1] + 1) % vocabulary_size(model)
    try:
        with torch.inference_mode():
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
                logits = model(input_ids=token_ids, attention_mask=mask).logits
            moved = model(input_ids=other, attention_mask=mask).logits - logits
    except torch.OutOfMemoryError as error:
        raise DoesNotFitError(f"out of memory in a forward of {PROMPT_TOKENS} tokens ({first_line(error)})") from None
    except FORWARD_ERRORS as error:
        raise FailingModelError(f"its own forward fails: {type(error).__name__}: {first_line(error)}") from error
    first = slice(0, PROMPT_TOKENS // 2)
    return Loaded(
        device=str(model.device),
        bytes_before=before,
        stored_bytes_before=stored,
        looks_ahead=float(moved[0, first].abs().max() / logits[0, first].float().std()),
        bytes_after=loaded_bytes_by_dtype(model),
        operators=frozenset(event.name for event in profiler.events() if "::" in event.name),
    )
