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
    texts = [by_key[key] for key in ordered]
    trie = Trie()
    node_of = dict(zip(ordered, _fill(trie, texts, _branch(texts), longest_segment), strict=True))
    trie.end_of = [node_of[key] for key in keys]
    return trie


@dataclass(eq=False, slots=True)
class _Fork:
    """A node of the tree of common prefixes, before it is decided which of them to share."""

    depth: int
    sequence: int
    """some sequence below the node"""
    ends: bool
    children: "list[_Fork]" = field(default_factory=list)
    start: int = 0
    """its parent's depth"""
    shared: bool = True
    """whether its tokens are forwarded once, or again for each child"""
    copies: int = 1
    """how often that is"""
    total: int = 0
    """tokens forwarded for it and all below it"""


def _branch(ordered: Sequence[Tokens]) -> list[_Fork]:
    """The tree of sorted, distinct sequences, parents first, and what of it is shared."""
    order = [_Fork(0, 0, False)]
    path = order[:]  # the rightmost one, root first
    for index, tokens in enumerate(ordered):
        shared = shared_length(ordered[index - 1], tokens) if index else 0
        below = path[-1]
        while path[-1].depth > shared:
            below = path.pop()
        if path[-1].depth < shared:
            path[-1].children[-1] = _Fork(shared, index, False, [below])
            path.append(path[-1].children[-1])
        path[-1].children.append(_Fork(len(tokens), index, True))
        path.append(path[-1].children[-1])
    for node in order:
        order += node.children
        for child in node.children:
            child.start = node.depth
    _decide(order)
    return order


def _decide(order: Sequence[_Fork]) -> None:
    """What is shared, from the leaves on."""
    for node in reversed(order):
        length = node.depth - node.start
        below = sum(child.total for child in node.children)
        heads = sum(child.copies for child in node.children) + node.ends
        node.shared = node is order[0] or length * (heads - 1) >= SHARE * (length + below)
        node.copies = 1 if node.shared else heads
        node.total = below + length * node.copies


def _fill(trie: Trie, ordered: Sequence[Tokens], branches: list[_Fork], longest_segment: int) -> list[int]:
    """Add the segments; returns the node that each ordered sequence ends in."""
    ends = [0] * len(ordered)
    above = {branches[0]: (0, 0)}  # branch -> trie node its children hang on, depth they start at
    for branch in branches:
        hang, start = above[branch]
        last, depth = hang, start
        if branch.depth and (branch.shared or branch.ends):
            for first, end in itertools.pairwise([*range(start, branch.depth, longest_segment), branch.depth]):
                last = trie.add(last, first, ordered[branch.sequence][first:end])
            if branch.ends:
                ends[branch.sequence] = last
            if branch.shared:
                hang, depth = last, branch.depth
        for child in branch.children:
            above[child] = (hang, depth)
    return ends


def shared_length(first: Tokens, second: Tokens) -> int:
    """Tokens that both begin with."""
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length
