"""What studies left: joined where there are several, by machine, and how each measurement ended."""

from bitladder.results.joined import (
    DIVERGENCE,
    Results,
    answering_machines,
    device_title,
    different_rungs,
    is_planned,
    item_name,
    join,
    joined_rungs,
    not_measured_as,
    place_key,
    place_of,
    same_contents,
    same_model,
    titles_of,
    used_cards,
)

__all__ = [
    "DIVERGENCE",
    "Results",
    "answering_machines",
    "device_title",
    "different_rungs",
    "is_planned",
    "item_name",
    "join",
    "joined_rungs",
    "not_measured_as",
    "place_key",
    "place_of",
    "same_contents",
    "same_model",
    "titles_of",
    "used_cards",
]
