"""Bets against a margin: evidence that may be looked at after every block of documents, and stopped at when enough.

Documents are independent draws of the questions a task could ask, in an order that no answer influenced. The target
is the difference over such questions, as of the intervals elsewhere, so that a task having finitely many documents
changes nothing. Documents of one cluster are one draw: bet on their mean.

The difference over several tasks is the mean of theirs. Their draws come in blocks, each with at least one of every
task: on each of a task's n draws in a block, the gambler stakes the same total over n. A block multiplies the capital
by prod(1 + s / n_t (x - d)), whose mean is at most exp(s sum(d_t - d)): no more than 1 where the tasks' mean is at most
d, whatever the tasks' own differences are. A bet on the blocks' means would be valid too and grow far slower, since it
must fear that a whole block is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitladder.stats.interval import Interval

EARLY_ALPHA = 0.005
"""of each side's 0.025, spent on stopping early; the test at the end has the rest"""
_MOST_STAKED = 0.9
"""of what would lose everything on the worst difference"""
_WIDEST = 0.999
"""of margins that a limit is looked for among: at 1 there is nothing to lose and a stake has no bound"""
_STEPS = 40

Side = Literal["within", "beyond"]
Numbers = NDArray[np.float64]


class Draws(NamedTuple):
    """One task's differences (variant - baseline, from -1 to 1), in the order of its documents."""

    values: Numbers
    """(..., n)"""
    starts: NDArray[np.int64]
    """where each block begins; every task has as many blocks"""
    weight: float = 1.0
    """of the task in the mean; those of all tasks sum to their number or less"""


def each_alone(values: Numbers) -> list[Draws]:
    """Of a single task, every draw in a block of its own."""
    return [Draws(values, np.arange(values.shape[-1]))]


def evenly(draws: int, blocks: int) -> NDArray[np.int64]:
    """Where ``blocks`` blocks of nearly equal size begin; none is empty where there are at least as many draws."""
    return np.arange(blocks) * draws // blocks


def log_capital(tasks: Sequence[Draws], margin: float, side: Side) -> Numbers:
    """The natural logarithm of what a gambler who began with 1 has after each block, (..., blocks).

    ``within`` bets against a true difference of at most -margin, ``beyond`` against one of at least that: there the
    capital is a nonnegative supermartingale, which ever reaches 1 / alpha with probability alpha at most (Ville). The
    stakes are the approximate growth-rate-adaptive ones of Waudby-Smith and Ramdas 2024, JRSS-B 86:1-27, section B.3,
    from the differences before.
    """
    gains = [one.values + margin if side == "within" else -one.values - margin for one in tasks]
    worst = 1 - margin if side == "within" else 1 + margin
    # each draw's part in its block
    shares = [one.weight / _sizes(one) for one in tasks]
    blocks = tasks[0].starts.shape[-1]
    weight = sum(one.weight for one in tasks)
    before = 1 + weight * np.arange(blocks)  # with a prior draw of mean 0 and variance 1, the widest
    sums = [_by_block(part, one) * share for part, one, share in zip(gains, tasks, shares, strict=True)]
    squares = [_by_block(part**2, one) * share**2 for part, one, share in zip(gains, tasks, shares, strict=True)]
    mean = _sums_before(sum(sums[1:], sums[0])) / before
    square = (1 + _sums_before(sum(squares[1:], squares[0]))) / before
    variance = np.maximum(square - mean**2, 1 / before)
    stakes = np.clip(mean / (variance + mean**2), 0, _MOST_STAKED / worst)
    growth = [
        _by_block(np.log1p(np.repeat(stakes * share, _sizes(one), axis=-1) * part), one)
        for part, one, share in zip(gains, tasks, shares, strict=True)
    ]
    found: Numbers = np.cumsum(sum(growth[1:], growth[0]), axis=-1)
    return found


def _sizes(task: Draws) -> NDArray[np.int64]:
    return np.diff(task.starts, append=task.values.shape[-1])


def _by_block(values: Numbers, task: Draws) -> Numbers:
    if len(task.starts) == values.shape[-1]:
        return values
    found: Numbers = np.add.reduceat(values, task.starts, axis=-1)
    return found


def decided_after(tasks: Sequence[Draws], margin: float, side: Side, alpha: float) -> NDArray[np.int64]:
    """Blocks, (...,), after which the capital first is 1 / alpha; one more than there are where it never is."""
    enough = log_capital(tasks, margin, side) >= -math.log(alpha)
    found: NDArray[np.int64] = np.where(enough.any(axis=-1), enough.argmax(axis=-1), enough.shape[-1]) + 1
    return found


def bet_interval(tasks: Sequence[Draws], margin: float, alpha: float, value: float) -> Interval:
    """The differences that no bet has ruled out so far, with ``alpha`` a side: right at whatever time it is looked at.

    A limit is above (or below) -margin just where the bet against -margin has been won. `value` is the estimate, which
    both limits hold between them.
    """

    if not tasks or not len(tasks[0].starts):
        return Interval(low=-_WIDEST, value=value, high=_WIDEST, confidence=1 - 2 * alpha)

    def won(difference: float, side: Side) -> bool:
        return bool(decided_after(tasks, -difference, side, alpha) <= len(tasks[0].starts))

    if value > -margin and won(-margin, "within"):
        low = _turn(won, "within", -margin, value)
    else:
        low = _turn(won, "within", -_WIDEST, min(value, -margin))
    if value < -margin and won(-margin, "beyond"):
        high = _turn(won, "beyond", -margin, value)
    else:
        high = _turn(won, "beyond", _WIDEST, max(value, -margin))
    return Interval(low=min(low, value), value=value, high=max(high, value), confidence=1 - 2 * alpha)


def _turn(won: Callable[[float, Side], bool], side: Side, ruled_out: float, kept: float) -> float:
    """Where the bets turn from won to lost, by halving; the last that was won, or the extreme where none was."""
    for _ in range(_STEPS):
        middle = (ruled_out + kept) / 2
        if won(middle, side):
            ruled_out = middle
        else:
            kept = middle
    return ruled_out


def _sums_before(values: Numbers) -> Numbers:
    return np.cumsum(values, axis=-1) - values
