"""A model over several cards: how much of it each may hold, and on which it came to lie."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.devices import CARD_SHARE, torch_devices
from bitladder.errors import DoesNotFitError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NO_ROOM = "dispatched on the CPU or the disk"
"""what transformers' quantizers say where weights would be left over"""

_NAMES = {"disk": "meta"}
"""accelerate's name of where torch has tensors without data"""


def placement_options(cards: tuple[int, ...], limit_bytes: int | None) -> dict[str, Any]:
    """from_pretrained's arguments that share a model evenly among the cards, a layer whole on one of them."""
    import torch

    free_bytes = {card: int(torch.cuda.mem_get_info(card)[0]) for card in cards}
    return {"device_map": "balanced", "max_memory": card_budgets(free_bytes, limit_bytes)}


def card_budgets(free_bytes: Mapping[int, int], limit_bytes: int | None) -> dict[int, int]:
    """Most bytes of weights on each card, from what is free there and from the limit of each."""
    return {card: int(CARD_SHARE * min(free, limit_bytes or free)) for card, free in free_bytes.items()}


def require_placed(directory: Path, model: "PreTrainedModel", device: str) -> None:
    """Raise DoesNotFitError where a part of the model is elsewhere than on the device's cards."""
    elsewhere = {str(place) for place in model_devices(model)} - set(torch_devices(device))
    if elsewhere:
        raise no_room(directory, device, f"a part of it was put on {', '.join(sorted(elsewhere))}")


def no_room(directory: Path, device: str, why: str) -> DoesNotFitError:
    """The error for a model that the cards together have no place for."""
    return DoesNotFitError(
        f"{directory}: does not fit the memory of {device} ({why}); free some, or take another rung, more cards or a "
        "smaller model"
    )


def model_devices(model: "PreTrainedModel") -> "tuple[torch.device, ...]":
    """Where the model's parts run, each device once, the one that takes the input first."""
    import torch

    places = dict.fromkeys((getattr(model, "hf_device_map", None) or {}).values())
    if len(places) < 2:
        return (model.device,)
    named = (torch.device(f"cuda:{place}" if isinstance(place, int) else _NAMES.get(place, place)) for place in places)
    return tuple(dict.fromkeys([model.device, *named]))
