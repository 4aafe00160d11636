"""The baseline's side of a divergence: the hidden states before its head, and its head, kept as SafeTensors.

Its logits over the whole vocabulary are made from them again whenever a rung is measured, in the baseline's own
compute type: the same product gives the same bits, where one in FP32 would be another model's (of SmolLM2 in BF16 it
has a divergence of 2e-4 from what the model itself answers, and another first choice at 1.7% of the tokens).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.errors import UserError
from bitladder.files import naming, new_file

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Reference:
    """A head and what goes into it."""

    weight: "Tensor"
    """(vocabulary, hidden)"""
    bias: "Tensor | None"
    """(vocabulary,)"""
    softcap: float | None
    states: "list[Tensor]"
    """of each window (tokens, hidden), in the type that the head gets them in"""

    def logits(self, window: int) -> "Tensor":
        """(tokens, vocabulary), as the model makes them: inside the same `widened_in`, of as many rows."""
        import torch

        states = self.states[window].to(self.weight.device)
        logits = torch.nn.functional.linear(states[None], self.weight, self.bias)[0]
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def save(self, path: Path) -> None:
        """Write it all at once: a reader sees the whole file or none."""
        from safetensors.torch import save_file

        tensors = {"weight": self.weight} | ({} if self.bias is None else {"bias": self.bias})
        tensors |= {f"states.{window}": states for window, states in enumerate(self.states)}
        metadata = {} if self.softcap is None else {"softcap": repr(self.softcap)}
        with new_file(path) as temporary, naming(path):
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load_reference(path: Path, device: str) -> Reference:
    """The head on ``device``, the states in main memory. Raises UserError where the baseline has left none."""
    from safetensors import safe_open

    if not path.is_file():
        raise UserError("the baseline's answers to these texts are not there; run the study again to measure it first")
    with safe_open(path, "pt", device="cpu") as stored:
        names = set(stored.keys())
        windows = len([name for name in names if name.startswith("states.")])
        softcap = (stored.metadata() or {}).get("softcap")
        return Reference(
            weight=stored.get_tensor("weight").to(device),
            bias=stored.get_tensor("bias").to(device) if "bias" in names else None,
            softcap=None if softcap is None else float(softcap),
            states=[stored.get_tensor(f"states.{window}") for window in range(windows)],
        )


def begin_reference(model: "PreTrainedModel") -> Reference:
    """The model's own head, without states yet. Raises UserError where it has none."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None or not hasattr(head, "weight"):
        raise UserError("the model has no head of its own, so its logits can't be made from hidden states")
    config = model.config.get_text_config()
    return Reference(head.weight, getattr(head, "bias", None), getattr(config, "final_logit_softcapping", None), [])
