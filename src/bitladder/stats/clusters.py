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

from bitladder.unknown import Unknown

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
