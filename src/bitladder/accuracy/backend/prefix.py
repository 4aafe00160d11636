"""Keys and values that several packs attend to: the few-shot examples of a task, the first part of a long text."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

KeysValues = tuple["Tensor", "Tensor"]


class KeyValueStore(Protocol):
    """Where the attention of a pack leaves keys and values, and finds those of earlier packs."""

    def put(self, node: int, layer: int, key: "Tensor", value: "Tensor") -> None:
        """Keep a copy of (tokens, key heads, head size)."""

    def get(self, chain: tuple[int, ...], layer: int) -> KeysValues:
        """What was kept for several nodes, one after the other."""


class PrefixCache:
    """Per trie node and layer: keys and values (tokens, key heads, head size)."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], KeysValues] = {}
        self._joined: dict[tuple[tuple[int, ...], int], KeysValues] = {}

    def put(self, node: int, layer: int, key: "Tensor", value: "Tensor") -> None:
        self._kept[node, layer] = key.clone(), value.clone()

    def get(self, chain: tuple[int, ...], layer: int) -> KeysValues:
        """Of several nodes one after the other."""
        import torch

        parts = [self._kept[node, layer] for node in chain]
        if len(parts) == 1:
            return parts[0]
        if (chain, layer) not in self._joined:
            keys, values = zip(*parts, strict=True)
            self._joined[chain, layer] = torch.cat(keys), torch.cat(values)
        return self._joined[chain, layer]

    def drop(self, nodes: Iterable[int]) -> None:
        gone = set(nodes)
        if gone:
            self._kept = {place: kept for place, kept in self._kept.items() if place[0] not in gone}
            self._joined = {place: kept for place, kept in self._joined.items() if not gone.intersection(place[0])}
