"""What a recommendation is made of, and what limits it: see `decide`."""

from typing import Literal

from pydantic import Field

from bitladder.records import Record
from bitladder.stats.verdict import Verdict
from bitladder.summary.goals import Goal
from bitladder.summary.table import Estimate


class Limits(Record):
    """What the user can't exceed, and what to make best within that."""

    max_memory_bytes: int | None = Field(default=None, gt=0)
    """peak of batch1: device minus idle, on a CPU resident"""
    max_drop_points: float | None = Field(default=None, gt=0)
    """points of the aggregate below the baseline; None: the summary's margin"""
    min_recovery_percent: float | None = Field(default=None, gt=0)
    """of the baseline's own aggregate, which ``max_drop_points`` then stands for"""
    optimize: Goal | None = None
    """None: each goal by itself"""


Standing = Literal["best", "baseline", "surely better"]


class Pick(Record):
    """The rung to deploy for one goal: the best, or the baseline where none is distinguishably better."""

    goal: Goal
    rung: str
    figure: Estimate
    standing: Standing = "best"
    """best: no rung within the limits has a better figure; baseline: it stays, since none is distinguishably better;
    surely better: than the baseline, as those with better figures are not"""
    alike: tuple[str, ...] = ()
    """rungs within the limits that can't be told apart from it in this goal"""
    reasons: tuple[str, ...]


class RungVerdict(Record):
    """What became of one rung and why: picked for these goals, within the limits but not the best, undecided, not yet
    measured so far that it could be judged, or out.

    Undecided: nothing speaks against it but that more questions may decide either way.
    """

    rung: str
    outcome: Literal["picked", "within", "undecided", "unmeasured", "out"]
    goals: tuple[Goal, ...]
    reasons: tuple[str, ...]
    accuracy: Verdict | None = None
    """on the aggregate against the margin in force; None for the baseline, and where nothing is compared"""


class Recommendation(Record):
    """The answer. Without picks, `blame` says why: nothing is settled, or which limit leaves no rung."""

    sentence: str
    limits: Limits
    """with the margin that was in force, None where accuracy was not measured"""
    picks: tuple[Pick, ...]
    reasons: tuple[str, ...]
    verdicts: tuple[RungVerdict, ...]
    blame: str | None
