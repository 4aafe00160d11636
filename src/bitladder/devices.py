"""Names of devices: ``cpu``, one card (``cuda`` or ``cuda:1``), or several that share a model (``cuda:0,1``).

Pure functions, without torch and without a driver.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile

from bitladder.errors import UserError

CARD_SHARE = 0.9
"""of a card's memory that weights may take; the rest is for the CUDA context, the cache and activations"""

_SLICE = "MIG-"
_CARDS = re.compile(r"cuda(?::(\d+(?:,\d+)*))?")


def cards_of(device: str) -> tuple[int, ...]:
    """The numbers of a device's cards, as torch counts them; none for a CPU.

    Raises UserError for what isn't the name of a device, and where a card stands in it twice.
    """
    if device == "cpu":
        return ()
    found = _CARDS.fullmatch(device)
    if found is None:
        raise UserError(f"device {device!r} isn't known; expected cpu, cuda:N for one card, or cuda:N,M for several")
    cards = tuple(int(number) for number in (found[1] or "0").split(","))
    if len(set(cards)) < len(cards):
        raise UserError(f"device {device!r} names a card twice; expected each once, such as cuda:0,1")
    return cards


def device_of(cards: Sequence[int]) -> str:
    """The one name of a set of cards, ``cpu`` of none."""
    return f"cuda:{','.join(map(str, sorted(cards)))}" if cards else "cpu"


def torch_devices(device: str) -> tuple[str, ...]:
    """torch's names of the devices that make up one of ours, in order."""
    return tuple(f"cuda:{card}" for card in cards_of(device)) or ("cpu",)


def choose_device(card_bytes: Sequence[int], needed_bytes: int, limit_bytes: int | None = None) -> str:
    """The first card that holds the weights, else all of them; ``cpu`` without a card.

    ``card_bytes``: all memory of each card. ``needed_bytes``: of the largest weights to be loaded. ``limit_bytes``:
    as if no card had more.
    """
    usable_bytes = [CARD_SHARE * min(size, limit_bytes or size) for size in card_bytes]
    fitting = [card for card, size in enumerate(usable_bytes) if needed_bytes <= size]
    return device_of(fitting[:1] or range(len(card_bytes)))


def visible_cards(uuids: Sequence[str], visible: str | None) -> tuple[int, ...]:
    """The driver's numbers of the cards that a process sees, in its order.

    ``uuids``: of all cards, as the driver counts them. ``visible``: the value of ``CUDA_VISIBLE_DEVICES``, which names
    cards by number or by the beginning of a UUID and ends at the first that isn't there; None where it isn't set.
    """
    if visible is None:
        return tuple(range(len(uuids)))
    found: list[int] = []
    for name in (part.strip() for part in visible.split(",")):
        if name.isdecimal():
            matches = [int(name)] if int(name) < len(uuids) else []
        else:
            matches = [index for index, uuid in enumerate(uuids) if name.startswith("GPU-") and uuid.startswith(name)]
        if len(matches) != 1:
            break
        found += matches
    return tuple(found) if len(set(found)) == len(found) else ()


def is_slice(name: str) -> bool:
    """Whether a value of ``CUDA_VISIBLE_DEVICES`` begins with a slice of a card (MIG), and so names slices alone."""
    return name.strip().startswith(_SLICE)


def visible_slices(visible: str) -> tuple[str, ...]:
    """The slices that ``CUDA_VISIBLE_DEVICES`` names, to the first name of something else; none where one is twice."""
    names = [part.strip() for part in visible.split(",")]
    found = tuple(takewhile(is_slice, names))
    return found if len(set(found)) == len(found) else ()


def count_names(names: Iterable[str]) -> str:
    """Cards in a few words: ``2 x NVIDIA H100, NVIDIA T4``."""
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in Counter(names).items())
