"""What one forward pass shows: the memory that a model holds before and after it, and the operators that ran."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitladder.checkpoint.footprint import loaded_bytes_by_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Loaded:
    """A model that was loaded and run once. Bytes by type are those of `loaded_bytes_by_dtype`."""

    device: str
    bytes_before: Mapping[str, int]
    bytes_after: Mapping[str, int]
    operators: frozenset[str]
    """as the torch profiler names them, such as ``aten::_int_mm``"""
    remarks: tuple[str, ...] = ()
    """what the format's library warned of"""


def observe_forward(model: "PreTrainedModel") -> Loaded:
    """One forward over a fixed prompt of 16 tokens, under the profiler. Some formats unpack their weights here."""
    import torch

    before = loaded_bytes_by_dtype(model)
    vocabulary = model.config.get_text_config().vocab_size
    token_ids = (torch.arange(PROMPT_TOKENS, device=model.device) * 97 % vocabulary)[None]  # (1, 16)
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids))
    return Loaded(
        device=str(model.device),
        bytes_before=before,
        bytes_after=loaded_bytes_by_dtype(model),
        operators=frozenset(event.name for event in profiler.events() if "::" in event.name),
    )
