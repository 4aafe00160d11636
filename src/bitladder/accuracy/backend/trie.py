"""Token sequences as a compressed trie: what they share is one segment, so that it is forwarded once."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

SHARE = 0.04
"""Least part of a subtree's tokens that a shared segment must save; below it the tokens are forwarded twice, since
every level of the tree costs one more attention call."""


@dataclass
class Trie:
    """Segments in an order where a parent precedes its children. Node 0 is the empty root.

    Node ``i`` holds the tokens at depths ``start[i]`` to ``start[i] + len(tokens[i])`` of every sequence below it.
    """

    parent: list[int] = field(default_factory=lambda: [0])
    start: list[int] = field(default_factory=lambda: [0])
    tokens: list[Tokens] = field(default_factory=lambda: [np.empty(0, np.int32)])
    children: list[list[int]] = field(default_factory=lambda: [[]])
    end_of: list[int] = field(default_factory=list)
    """node that each sequence ends in, always at its last token"""

    def add(self, parent: int, start: int, tokens: Tokens) -> int:
        """Append a node; returns its index."""
        self.parent.append(parent)
        self.start.append(start)
        self.tokens.append(tokens)
        self.children.append([])
        self.children[parent].append(len(self.parent) - 1)
        return len(self.parent) - 1

    def subtree_tokens(self) -> list[int]:
        """Tokens of every node and all below it."""
        totals = [len(tokens) for tokens in self.tokens]
        for node in range(len(totals) - 1, 0, -1):
            totals[self.parent[node]] += totals[node]
        return totals


def build_trie(sequences: Sequence[Tokens], longest_segment: int) -> Trie:
    """The trie of the sequences; a segment longer than ``longest_segment`` is a chain of several nodes.

    The result depends on the set of sequences, not on their order (but for ``end_of``).
    """
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]  # big-endian bytes sort as the tokens do
    by_key = dict(zip(keys, sequences, strict=True))
    ordered = sorted(by_key)
    branching = _Branching([by_key[key] for key in ordered])
    trie = Trie()
    node_of = dict(zip(ordered, branching.segments_to(trie, longest_segment), strict=True))
    trie.end_of = [node_of[key] for key in keys]
    return trie


class _Branching:
    """The tree of common prefixes of sorted, distinct sequences, before it is decided which of them to share."""

    def __init__(self, ordered: list[Tokens]) -> None:
        self.ordered = ordered
        self.depth = [0]
        self.children: list[list[int]] = [[]]
        self.sequence: list[int] = [0]
        """some sequence below the node"""
        self.ends: list[bool] = [False]
        self._insert_all()

    def _node(self, depth: int, sequence: int, ends: bool) -> int:
        self.depth.append(depth)
        self.children.append([])
        self.sequence.append(sequence)
        self.ends.append(ends)
        return len(self.depth) - 1

    def _insert_all(self) -> None:
        path = [0]  # the rightmost path, root first
        for index, tokens in enumerate(self.ordered):
            shared = _common_prefix(self.ordered[index - 1], tokens) if index else 0
            below = -1
            while self.depth[path[-1]] > shared:
                below = path.pop()
            if self.depth[path[-1]] < shared:
                fork = self._node(shared, index, False)
                self.children[path[-1]][-1] = fork
                self.children[fork].append(below)
                path.append(fork)
            leaf = self._node(len(tokens), index, True)
            self.children[path[-1]].append(leaf)
            path.append(leaf)

    def _parents_first(self) -> list[int]:
        order = [0]
        for node in order:
            order.extend(self.children[node])
        return order

    def _shared(self, order: list[int]) -> list[bool]:
        """Whether each node's tokens are forwarded once, or again for each child."""
        parent_depth = [0] * len(self.depth)
        for node in order:
            for child in self.children[node]:
                parent_depth[child] = self.depth[node]
        total = [0] * len(self.depth)
        copies = [0] * len(self.depth)
        shared = [True] * len(self.depth)
        for node in reversed(order):
            length = self.depth[node] - parent_depth[node]
            below = sum(total[child] for child in self.children[node])
            heads = sum(copies[child] for child in self.children[node]) + self.ends[node]
            shared[node] = node == 0 or length * (heads - 1) >= SHARE * (length + below)
            total[node] = below + length * (1 if shared[node] else heads)
            copies[node] = 1 if shared[node] else heads
        return shared

    def segments_to(self, trie: Trie, longest_segment: int) -> list[int]:
        """Fill the trie; returns the node that each ordered sequence ends in."""
        order = self._parents_first()
        shared = self._shared(order)
        ends = [0] * len(self.ordered)
        above = {0: (0, 0)}  # node -> trie node its children hang on, depth they start at
        for node in order:
            hang, start = above[node]
            tokens = self.ordered[self.sequence[node]]
            last, depth = hang, start
            if node and (shared[node] or self.ends[node]):
                for first, end in itertools.pairwise(
                    [*range(start, self.depth[node], longest_segment), self.depth[node]]
                ):
                    last = trie.add(last, first, tokens[first:end])
                if self.ends[node]:
                    ends[self.sequence[node]] = last
                if shared[node]:
                    hang, depth = last, self.depth[node]
            for child in self.children[node]:
                above[child] = (hang, depth)
        return ends


def _common_prefix(first: Tokens, second: Tokens) -> int:
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length
