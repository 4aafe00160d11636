"""The baseline's side of a divergence: the hidden states before its head, and its head, kept as SafeTensors.

Where a model does more to its logits than its head's product and a soft cap - Granite and Cohere scale them - the
logits themselves are kept, which may be larger. Else its logits over the whole vocabulary are made from the states
again whenever a rung is measured, in the baseline's own compute type: the same product gives the same bits, where one
in FP32 would be another model's (of SmolLM2 in BF16 it has a divergence of 2e-4 from what the model itself answers, and
another first choice at 1.7% of the tokens).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.errors import UserError
from bitladder.files import naming, new_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Reference:
    """A head and what goes into it, or what the model answered."""

    weight: "Tensor | None"
    """(vocabulary, hidden); None: ``states`` are the logits"""
    bias: "Tensor | None"
    """(vocabulary,)"""
    softcap: float | None
    states: "list[Tensor]"
    """of each window (tokens, hidden), in the type that the head gets them in; or the logits (tokens, vocabulary)"""
    device: str

    def logits(self, window: int) -> "Tensor":
        """(tokens, vocabulary), as the model makes them: inside the same `widened_in`, of as many rows."""
        import torch

        states = self.states[window].to(self.device)
        if self.weight is None:
            return states
        logits = torch.nn.functional.linear(states[None], self.weight, self.bias)[0]
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @property
    def dtype(self) -> "torch.dtype | None":
        """The type of the head's product; None where none is made again."""
        return None if self.weight is None else self.weight.dtype

    def save(self, path: Path) -> None:
        """Write it all at once: a reader sees the whole file or none."""
        from safetensors.torch import save_file

        head = {"weight": self.weight, "bias": self.bias}
        tensors = {name: tensor for name, tensor in head.items() if tensor is not None}
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
            weight=stored.get_tensor("weight").to(device) if "weight" in names else None,
            bias=stored.get_tensor("bias").to(device) if "bias" in names else None,
            softcap=None if softcap is None else float(softcap),
            states=[stored.get_tensor(f"states.{window}") for window in range(windows)],
            device=device,
        )


def begin_reference(model: "PreTrainedModel") -> Reference:
    """The model's own head, without states yet; one without a head keeps its logits."""
    head = find_head(model)
    if head is None:
        return Reference(None, None, None, [], str(model.device))
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return Reference(head.weight, getattr(head, "bias", None), softcap, [], str(model.device))


def find_head(model: "PreTrainedModel") -> Any:
    """The layer whose product of hidden states the logits are; None where the model has no such."""
    import torch

    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head if type(head) is torch.nn.Linear else None
