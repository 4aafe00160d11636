"""Two rungs answer the same questions: the difference of their scores, with its interval, by clusters of documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import optimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bitladder.records.base import Unknown
from bitladder.stats.interval import CONFIDENCE, Interval, quantile, spread, t_interval

UNSEEN_CLUSTERS = 4
"""that changed as a whole and may have been missed, where none changed: about z squared, as Agresti and Coull 1998
(American Statistician 52:119-126) add to counts"""


class ClusterSpread(NamedTuple):
    """How far the mean of clustered values may be off."""

    standard_error: float
    degrees: float
    """of freedom of the standard error: one less than the number of clusters where these are equal in size"""


def cluster_spread(values: Sequence[float], clusters: Sequence[str]) -> ClusterSpread | Unknown:
    """Cluster-robust standard error of the mean of `values`, and its degrees of freedom.

    CR2, unbiased for independent values (Bell and McCaffrey 2002, Survey Methodology 28:169-181), with Satterthwaite's
    degrees of freedom in their closed form for a mean (Pustejovsky and Tipton 2018, JBES 36:672-683): with p the
    clusters' shares of the values and b = p^2 / (1 - p), 1 / (sum p^2 + (sum b)^2 - sum b^2).
    None for a single cluster. The error is 0 where no cluster departs from the mean.
    """
    return _spread(np.asarray(values, dtype=float), _numbered(clusters))


def _numbered(clusters: Sequence[str]) -> NDArray[np.intp]:
    """The number of each value's cluster, in the order in which they first appear."""
    known = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    return np.fromiter(map(known.__getitem__, clusters), np.intp, len(clusters))


def _spread(numbers: NDArray[np.float64], index: NDArray[np.intp]) -> ClusterSpread | Unknown:
    sizes = np.bincount(index)
    if len(sizes) < 2:
        return Unknown("all documents are in one cluster, so they show no spread")
    shares = sizes / len(numbers)
    departures = np.bincount(index, weights=numbers - numbers.mean())
    variance = float(np.sum(departures**2 / (1 - shares))) / len(numbers) ** 2
    leverage = shares**2 / (1 - shares)
    degrees = 1 / float(np.sum(shares**2) + np.sum(leverage) ** 2 - np.sum(leverage**2))
    return ClusterSpread(math.sqrt(variance), degrees)


class Clustering(NamedTuple):
    """What clusters do to an interval: by how much they inflate the variance, and the t that stands for z."""

    design_effect: float
    degrees: float


def clustering_of(
    values: Sequence[float], clusters: Sequence[str] | None, unseen: int = UNSEEN_CLUSTERS
) -> Clustering | Unknown | None:
    """None without clusters and for clusters of one document each; a reason for a single cluster, which shows nothing.

    The design effect is the cluster-robust variance over that of independent values, at least 1: a lower one is luck
    more often than knowledge. Where few clusters hold a changed value the data don't show how much alike a cluster's
    values are, and may well lack one that changed as a whole. So such clusters are added to what was seen: ``unseen``
    times the share that clusters without a change have of all squared sizes, each of the size that a document finds
    itself in on average, sum of squared sizes over n. Without any change the effect is that size: each cluster counts
    as one value (Kish 1965). With every further change it comes closer to what is seen: there is no number of clusters
    at which luck would decide. benchmarks/interval_coverage.py simulates it: 93% and more of 95% intervals hold the
    truth for few clusters and many, of equal and of unequal size, right or wrong and graded, for correlations from 0
    to 0.9.
    """
    if clusters is None or len(set(clusters)) == len(clusters):
        return None
    numbers, index = np.asarray(values, dtype=float), _numbered(clusters)
    spread = _spread(numbers, index)
    if isinstance(spread, Unknown):
        return spread
    sizes = np.bincount(index)
    departures = numbers - np.median(numbers)
    changed = departures != 0
    quiet = np.bincount(index, weights=changed) == 0
    missed = unseen * float(np.sum(sizes[quiet] ** 2) / np.sum(sizes**2))
    size = float(np.sum(sizes**2)) / len(numbers)
    change = float(np.mean(departures[changed] ** 2)) if changed.any() else 1.0
    seen = (len(numbers) * spread.standard_error) ** 2 + missed * size**2 * change
    alone = float(np.sum((numbers - numbers.mean()) ** 2))
    if {-1.0, 0.0, 1.0}.issuperset(values):
        # Tango's and Wilson's intervals have a width of their own where nothing changed
        alone += missed * size * change
    return Clustering(max(seen / alone, 1.0) if alone > 0 else 1.0, spread.degrees)


def joined(*labels: Sequence[str]) -> list[str]:
    """The cluster of each value: those belong together that share a label of any kind, or do so by way of others.

    ``labels``: for each kind of label one a value, such as its source and its text.
    """
    nodes = [_numbered(kind) for kind in labels]
    offsets = np.cumsum([0, *(kind.max(initial=-1) + 1 for kind in nodes)])
    pairs = [(nodes[0], nodes[kind] + offsets[kind]) for kind in range(1, len(nodes))]
    ends, others = (np.concatenate(side) for side in zip(*pairs, strict=True))
    links = coo_array((np.ones(len(ends)), (ends, others)), shape=(offsets[-1], offsets[-1]))
    _, components = connected_components(links, directed=False)
    return [str(component) for component in components[nodes[0]]]


def tango_interval(
    gained: float, lost: float, n: float, confidence: float = CONFIDENCE, degrees: float | None = None
) -> Interval:
    """Tango's score interval for the difference of paired proportions, (gained - lost) / n.

    All differences that the score test does not reject (Tango 1998, Statistics in Medicine 17:891-908). Unlike Wald's
    it keeps its coverage when few answers changed, and has a width when none did: z^2 / (n + z^2) on either side.
    Counts may be fractional, for rates extrapolated to another n and for the effective sample of clustered documents,
    whose `degrees` of freedom put Student's t for z. Raises ValueError for counts that no n questions can give.
    """
    if min(gained, lost) < 0 or n <= 0 or gained + lost > n * (1 + 1e-9):
        raise ValueError(f"needs 0 <= gained + lost <= n and n > 0, got {gained} + {lost} of {n}")
    z = quantile(confidence, degrees)
    return Interval(
        low=-_upper_limit(lost, gained, n, z),
        value=(gained - lost) / n,
        high=_upper_limit(gained, lost, n, z),
        confidence=confidence,
    )


def score_variance(gained: float, lost: float, n: float, difference: float) -> float:
    """Variance of one question's difference when the true one is `difference`.

    P(gained) + P(lost) - difference^2 at the most likely P(lost) under that hypothesis: the larger root q of
    2n q^2 + b q - lost difference (1 - difference) = 0 (Tango 1998, section 4).
    """
    b = (2 * n - gained + lost) * difference - gained - lost
    c = lost * difference * (1 - difference)
    root = math.sqrt(max(b * b + 8 * n * c, 0.0))
    # Two forms of one root: each avoids subtracting nearly equal numbers where the other does not.
    lost_share = 2 * c / (b + root) if b > 0 else (root - b) / (4 * n)
    return max(2 * lost_share + difference * (1 - difference), 0.0)


@lru_cache(maxsize=1 << 14)  # the same limits are asked for by each ratio, verdict and aggregate that has the task
def _upper_limit(gained: float, lost: float, n: float, z: float) -> float:
    estimate = (gained - lost) / n
    if gained >= n:
        return 1.0
    # Where no variance is estimated, the estimate itself solves the score equation; these are its other roots.
    if gained + lost == 0:
        return z * z / (n + z * z)
    if lost >= n:
        return (z * z - n) / (z * z + n)

    def excess(difference: float) -> float:
        return n * (estimate - difference) ** 2 - z * z * score_variance(gained, lost, n, difference)

    return float(optimize.brentq(excess, estimate, 1.0, xtol=1e-14, rtol=1e-14))


class Comparison(Protocol):
    """What one task says of a difference, now and if it had more questions of the same kind."""

    @property
    def n_questions(self) -> int: ...

    @property
    def equivalent_questions(self) -> float:
        """Of a single task that tell as much."""
        ...

    def interval(self, confidence: float = CONFIDENCE, growth: float = 1.0) -> Interval:
        """Interval of the difference, at `growth` times the questions with the same share of changed answers."""
        ...


class PairedCounts(BaseModel):
    """A task whose answers are right or wrong.

    Of clustered documents Tango's interval is taken on the effective sample, counts over the design effect, with
    Student's t for z (Rao and Scott 1992, Biometrics 48:577-585; Korn and Graubard 1998, Survey Methodology
    24:193-201). For many changes this is the cluster-robust t interval; for few, where that one's standard error is as
    rare as they are, it keeps Tango's shape: benchmarks/interval_coverage.py holds both, and Tango's alone, side by
    side.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gained: int = Field(ge=0)
    lost: int = Field(ge=0)
    n: int = Field(ge=1)
    design_effect: float = Field(default=1.0, ge=1)
    degrees: float | None = None
    """of freedom of the design effect; None: every document is its own cluster"""
    answers_a_question: int = Field(default=1, ge=1)
    """more than 1 where the same questions were asked in several ways"""

    @model_validator(mode="after")
    def _within_n(self) -> Self:
        if self.gained + self.lost > self.n:
            raise ValueError(f"{self.gained} gained and {self.lost} lost are more than {self.n} questions")
        return self

    @property
    def n_questions(self) -> int:
        return self.n // self.answers_a_question

    @property
    def equivalent_questions(self) -> float:
        return self.n_questions / self.design_effect

    def interval(self, confidence: float = CONFIDENCE, growth: float = 1.0) -> Interval:
        scale = growth / self.design_effect
        degrees = None if self.degrees is None else self.degrees * growth
        return tango_interval(self.gained * scale, self.lost * scale, self.n * scale, confidence, degrees)


class PairedMean(BaseModel):
    """A task whose questions score on a scale: mean and standard deviation of (variant - baseline) by question.

    Of clustered documents `sd` is inflated by the square root of their design effect.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: float
    sd: float = Field(gt=0)
    n: int = Field(ge=2)
    degrees: float | None = None
    """of freedom; None: n - 1"""
    answers_a_question: int = Field(default=1, ge=1)

    @property
    def n_questions(self) -> int:
        return self.n // self.answers_a_question

    @property
    def equivalent_questions(self) -> float:
        return float(self.n_questions)

    def interval(self, confidence: float = CONFIDENCE, growth: float = 1.0) -> Interval:
        degrees = None if self.degrees is None else self.degrees * growth
        return t_interval(self.mean, self.sd, self.n * growth, confidence, degrees)


def paired_difference(
    differences: Sequence[float], clusters: Sequence[str] | None = None, answers_a_question: int = 1
) -> PairedCounts | PairedMean | Unknown:
    """What questions' differences (variant - baseline), each between -1 and 1, say; `clusters` has the cluster of each.

    Counts where all are -1, 0 or 1, whatever the scores. So scores that are all equal have an interval: unseen
    differences are as rare as unseen flips, and none is larger, which makes a flip's interval the widest they can have
    (the rule of three's argument, Hanley and Lippman-Hand 1983, JAMA 249:1743-1745). No interval where all differ by
    the same other number, and for a single cluster.
    """
    clustering = clustering_of(differences, clusters)
    if isinstance(clustering, Unknown):
        return clustering
    effect, degrees = clustering or (1.0, None)
    if {-1.0, 0.0, 1.0}.issuperset(differences):
        return PairedCounts(
            gained=differences.count(1.0),
            lost=differences.count(-1.0),
            n=len(differences),
            design_effect=effect,
            degrees=degrees,
            answers_a_question=answers_a_question,
        )
    summary = spread(differences)
    if isinstance(summary, Unknown):
        return summary
    mean, sd = summary
    return PairedMean(
        mean=mean,
        sd=sd * math.sqrt(effect),
        n=len(differences),
        degrees=degrees,
        answers_a_question=answers_a_question,
    )
