"""Documents that resemble each other: what a cluster of them is worth, and how sure its spread is.

Several documents from one source (HellaSwag), or answers to one question under two prompts (GSM8K), rise and fall
together, so that n of them say less than n independent ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bitladder.stats.interval import NoInterval

FEWEST_CLUSTERS = 30
"""with a changed answer, from which on the data show how much alike the answers of a cluster are"""


class ClusterSpread(NamedTuple):
    """How far the mean of clustered values may be off."""

    standard_error: float
    degrees: float
    """of freedom of the standard error: one less than the number of clusters where these are equal in size"""


def cluster_spread(values: Sequence[float], clusters: Sequence[str]) -> ClusterSpread | NoInterval:
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


def _spread(numbers: NDArray[np.float64], index: NDArray[np.intp]) -> ClusterSpread | NoInterval:
    sizes = np.bincount(index)
    if len(sizes) < 2:
        return NoInterval(reason="all documents are in one cluster, so they show no spread")
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
    values: Sequence[float], clusters: Sequence[str] | None, fewest: int = FEWEST_CLUSTERS
) -> Clustering | NoInterval | None:
    """None without clusters and for clusters of one document each; a reason for a single cluster, which shows nothing.

    The design effect is the cluster-robust variance over that of independent values, at least 1: a lower one is luck
    more often than knowledge. Of right and wrong answers and of their differences: below ``fewest`` clusters that hold
    another value than the commonest - a changed answer - the data don't show how much alike a cluster's values are, so
    each cluster counts as one value: the effect is that of values which are all alike (Kish 1965, n times the sum of
    squared shares).
    benchmarks/interval_coverage.py simulates both.
    """
    if clusters is None or len(set(clusters)) == len(clusters):
        return None
    numbers, index = np.asarray(values, dtype=float), _numbered(clusters)
    spread = _spread(numbers, index)
    if isinstance(spread, NoInterval):
        return spread
    known, counts = np.unique(numbers, return_counts=True)
    telling = int(np.count_nonzero(np.bincount(index[numbers != known[counts.argmax()]])))
    if telling < fewest and {-1.0, 0.0, 1.0}.issuperset(known.tolist()):
        shares = np.bincount(index) / len(numbers)
        return Clustering(len(numbers) * float(np.sum(shares**2)), spread.degrees)
    independent = float(np.var(numbers, ddof=1)) / len(numbers)
    effect = spread.standard_error**2 / independent if independent > 0 else 1.0
    degrees = min(spread.degrees, telling - 1) if telling >= FEWEST_CLUSTERS else spread.degrees
    return Clustering(max(effect, 1.0), degrees)


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
