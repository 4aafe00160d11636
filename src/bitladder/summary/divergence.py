"""How far a rung's next-token distributions lie from the baseline's: figures with intervals, from every token.

Tokens of one document resemble each other: intervals take documents for the independent samples, or tokens by their
effective number.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from bitladder.records import DivergenceOutcome
from bitladder.stats.clusters import clustering_of
from bitladder.stats.interval import CONFIDENCE, quantile
from bitladder.stats.ratio import ratio_interval
from bitladder.summary.scores import Score, score_interval
from bitladder.summary.table import DivergenceSummary, Estimate
from bitladder.unknown import Unknown

TAIL = 0.99
"""the share of tokens that diverge by at most `DivergenceSummary.kl_tail`"""


def summarize_divergence(outcome: DivergenceOutcome) -> DivergenceSummary:
    """The figures of one rung; of the baseline itself they say how exactly its logits were made anew."""
    windows = outcome.windows
    kl = [value for window in windows for value in window.kl]
    documents = [window.document for window in windows for _ in window.kl]
    agrees = [float(value) for window in windows for value in window.agrees]
    losses = [-value for window in windows for value in window.loglikelihoods]
    before = [-value for window in windows for value in window.baseline_loglikelihoods]
    return DivergenceSummary(
        origin=outcome.origin,
        documents=len(set(documents)),
        tokens=len(kl),
        kl_mean=_mean(outcome),
        kl_tail=_tail(kl, documents),
        kl_max=Estimate(value=max(kl), reason="the largest of a sample has no interval"),
        agreement_percent=Score(sum(agrees) / len(agrees), score_interval(agrees, documents)).percent(),
        perplexity=math.exp(math.fsum(losses) / len(losses)),
        perplexity_ratio=_ratio([ours - theirs for ours, theirs in zip(losses, before, strict=True)], documents),
    )


def _mean(outcome: DivergenceOutcome) -> Estimate:
    """Between positive limits, by document; a mean of 0 has none."""
    sums: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for window in outcome.windows:
        sums[window.document] = sums.get(window.document, 0.0) + math.fsum(window.kl)
        tokens[window.document] = tokens.get(window.document, 0.0) + len(window.kl)
    total = math.fsum(sums.values())
    if total == 0:
        return Estimate(value=0.0, reason="no token diverges at all")
    return Estimate.of(total / math.fsum(tokens.values()), ratio_interval(tuple(sums.values()), tuple(tokens.values())))


def _tail(kl: Sequence[float], documents: Sequence[str]) -> Estimate:
    """A quantile between the quantiles at the limits of its share (Woodruff 1952, JASA 47:635-646).

    The share's limits are Clopper and Pearson's on the effective sample (Korn and Graubard 1998, Survey Methodology
    24:193-201): so near to 1 Wilson's are too short where documents differ.
    """
    value = float(np.quantile(kl, TAIL))
    # one token in a hundred lies above, so few documents hold one, and are not all alike for that
    clustering = clustering_of([float(one <= value) for one in kl], documents, unseen=0)
    if isinstance(clustering, Unknown):
        return Estimate(value=value, reason=clustering.reason)
    effect, degrees = clustering or (1.0, len(kl) - 1)
    size = len(kl) / effect * (quantile(CONFIDENCE) / quantile(CONFIDENCE, degrees)) ** 2
    below = TAIL * size
    tail = (1 - CONFIDENCE) / 2
    lower = float(special.betaincinv(below, size - below + 1, tail))
    upper = float(special.betaincinv(below + 1, size - below, 1 - tail))
    if (1 - upper) * len(kl) < 1:
        return Estimate(value=value, reason=f"{len(kl):,} tokens are too few for an interval of this quantile")
    low, high = (float(np.quantile(kl, limit)) for limit in (lower, upper))
    return Estimate(value=value, low=low, high=high)


def _ratio(differences: Sequence[float], documents: Sequence[str]) -> Estimate:
    """The exponential of a mean difference of losses, and of its limits."""
    value = math.exp(math.fsum(differences) / len(differences))
    if min(differences) == max(differences):
        return Estimate(value=value, reason="all tokens differ by the same, so they show no spread")
    interval = score_interval(differences, documents)
    if isinstance(interval, Unknown):
        return Estimate(value=value, reason=interval.reason)
    return Estimate(value=value, low=math.exp(interval.low), high=math.exp(interval.high))
