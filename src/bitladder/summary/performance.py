"""What the rows of `metrics.METRICS` are derived by, from raw batches and monitor readings.

Requests of one batch share every step and are not independent; batches may resemble the one before, which widens
every interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy import stats

from bitladder.machine.host import BUSY_SHARE
from bitladder.records import BatchSample, PerformanceOutcome, RequestSample
from bitladder.records.base import Unknown, all_known
from bitladder.stats.interval import (
    CONFIDENCE,
    Interval,
    mean_interval,
    quotient_interval,
    ratio_interval,
    relative_error,
    seen_correlation,
)
from bitladder.summary.resources import Readings, gpu_energy, gpu_utilisation, others_bytes, resource_metrics
from bitladder.summary.table import Estimate
from bitladder.units import counted, format_bytes

FEW_REQUESTS = 10
"""below that a scenario says so: its interval is wide, and may miss what happens rarely"""
FEW_BATCHES = 5
IDLE_UTILISATION_PERCENT = 50
"""below that a GPU most likely waited for the processor to launch its kernels"""
NOTED_ERRORS = 1.96
"""standard errors, 1 / sqrt(batches) each (Bartlett 1946), beyond which a correlation is told"""
_DERIVED_REQUESTS = (200, 2000)
"""workloads of the study's Tables 3 and 4"""

_WAITED = "no interval: a batch waits for those before it"
_NONE_FULL = Unknown("no batch was full")


@dataclass(frozen=True)
class Timeline:
    """The requests of one measurement that ended well, and the batches that they ran in."""

    outcome: PerformanceOutcome

    @cached_property
    def requests(self) -> tuple[RequestSample, ...]:
        return tuple(request for request in self.outcome.requests if request.status == "ok")

    @cached_property
    def rows(self) -> list[int]:
        """Requests by batch."""
        counts = [0] * len(self.outcome.batches)
        for request in self.requests:
            counts[request.batch] += 1
        return counts

    @cached_property
    def tokens(self) -> list[int]:
        """Generated tokens by batch."""
        counts = [0] * len(self.outcome.batches)
        for request in self.requests:
            counts[request.batch] += request.new_tokens
        return counts

    @cached_property
    def cycle_s(self) -> list[float]:
        """By batch, from its start to the next one's; to its own end for the last."""
        starts = [batch.started_s for batch in self.outcome.batches]
        return [end - start for start, end in zip(starts, [*starts[1:], self.end_s], strict=True)]

    @property
    def end_s(self) -> float:
        return self.outcome.batches[-1].step_end_s[-1]

    @property
    def total_s(self) -> float:
        """From the first submission to the last token."""
        return self.end_s - min(request.submitted_s for request in self.requests)

    @property
    def full(self) -> list[int]:
        """Indices of the batches without an empty row."""
        return [index for index, rows in enumerate(self.rows) if rows == self.outcome.batch_size]

    @cached_property
    def rate_error(self) -> float | Unknown:
        """Of requests/s, see `relative_error`."""
        return relative_error(self.rows, self.cycle_s, serial=True)

    def batch(self, request: RequestSample) -> BatchSample:
        return self.outcome.batches[request.batch]


@dataclass(frozen=True)
class TimedRun(Timeline):
    """A timeline, and the device that it is of: ``cpu`` or ``cuda:N``."""

    device: str


def speedup(ours: Timeline, theirs: Timeline, confidence: float = CONFIDENCE) -> Estimate:
    """Ratio of requests/s to the other's, the baseline's most of all.

    The interval is of the batches of these two runs: it holds nothing of what another hour or host would change.
    """
    if not ours.requests or not theirs.requests:
        return Estimate.unknown(Unknown("no request ended well, here or on the baseline"))
    value = (len(ours.requests) / ours.total_s) / (len(theirs.requests) / theirs.total_s)
    errors = all_known((ours.rate_error, theirs.rate_error))
    if isinstance(errors, Unknown):
        return Estimate(value=value, reason=errors.reason)
    degrees = (len(ours.rows) - 1, len(theirs.rows) - 1)
    return Estimate.of(value, quotient_interval(value, (errors[0], errors[1]), degrees, confidence))


def notes_on(outcome: PerformanceOutcome, planned_requests: int, cap: int | None = None) -> tuple[str, ...]:
    """What a reader of these figures has to know. `cap`: the largest batch that the search was allowed."""
    line = Timeline(outcome)
    done, notes = len(line.requests), []
    batches = len(line.rows)
    if outcome.busy_share is not None and outcome.busy_share > BUSY_SHARE:
        notes.append(
            f"other programs kept {outcome.busy_share:.0%} of the processors busy when it began: times say little"
        )
    busy_percent = gpu_utilisation(outcome, line.end_s).value if done else None
    spread = any(len(sample.cards) > 1 for sample in outcome.resources)  # where each waits for the others
    if busy_percent is not None and busy_percent < IDLE_UTILISATION_PERCENT and not spread:
        notes.append(
            "the GPU was idle for more than half of the time, probably waiting for the processor: times are more of it "
            "than of the precision"
        )
    if (others := others_bytes(outcome)) is not None:
        size = format_bytes(abs(others))
        notes.append(
            f"another process took up to {size} of the GPU meanwhile, which figures of the device count"
            if others > 0
            else f"another process gave up {size} of the GPU meanwhile, which figures of the device lack"
        )
    if outcome.batch_search and outcome.batch_size == cap:
        notes.append(f"the batch was capped at {cap}, more would fit")
    if outcome.batch_size > 1 and batches < FEW_BATCHES:
        few = f"{batches} batches: an interval from so few says little"
        notes.append("1 batch: no interval" if batches == 1 else few)
    correlation = seen_correlation(line.rows, line.cycle_s)
    if correlation > NOTED_ERRORS / math.sqrt(max(1, batches)):
        notes.append(f"a batch's time resembles the one before (correlation {correlation:.1f}): something else drifted")
    if done < FEW_REQUESTS:
        notes.append(f"{counted(done, 'request')}, fewer than {FEW_REQUESTS}: the intervals are wide")
    if len(outcome.requests) > done:
        notes.append(f"{len(outcome.requests) - done:,} of {len(outcome.requests):,} requests did not end well")
    if outcome.stopped_by == "out_of_memory":
        notes.append(f"ended by running out of memory after {done:,} of {planned_requests:,} requests")
    if outcome.stopped_by == "time_limit":
        notes.append(f"ended by the time limit after {done:,} of {planned_requests:,} requests")
    if outcome.stopped_by == "precision":
        notes.append(f"ended after {done:,} of {planned_requests:,} requests: the rate was known well enough")
    if line.rows and outcome.batch_size > line.rows[-1] > 0:
        notes.append(f"the last batch had {line.rows[-1]} of {outcome.batch_size} rows")
    return tuple(notes)


def rates(line: Timeline) -> dict[str, Estimate]:
    """Whole run: requests over the time from first submission to last token; full batches: over their own cycles."""
    requests, total_s = len(line.requests), line.total_s
    whole = ratio_interval(line.rows, line.cycle_s, serial=True)
    tokens = ratio_interval(line.tokens, line.cycle_s, serial=True)
    rate = _scaled(requests / total_s, whole)
    per_request = _inverse(rate)
    cycles_s = [line.cycle_s[index] for index in line.full]

    def in_full(counts: Sequence[int]) -> Estimate:
        return _ratio([counts[index] for index in line.full], cycles_s) if cycles_s else Estimate.unknown(_NONE_FULL)

    return {
        "requests_per_s": rate,
        "tokens_per_s": _scaled(sum(line.tokens) / total_s, tokens),
        "requests_per_s_full_batches": in_full(line.rows),
        "tokens_per_s_full_batches": in_full(line.tokens),
        "total_time_s": _times(requests, per_request),
        "inverse_throughput_s": per_request,
        **{f"total_time_{count}_requests_s": _times(count, per_request) for count in _DERIVED_REQUESTS},
    }


def latencies(line: Timeline) -> dict[str, Estimate]:
    """Request latency from batch start and from submission; time to first token and its two parts."""
    batches = line.outcome.batches
    durations = [batch.step_end_s[-1] - batch.started_s for batch in batches]
    prefills = [batch.step_end_s[0] - batch.started_s for batch in batches]
    queues = [line.batch(request).started_s - request.submitted_s for request in line.requests]
    from_submission = [line.batch(request).step_end_s[-1] - request.submitted_s for request in line.requests]
    first_tokens = [line.batch(request).step_end_s[0] - request.submitted_s for request in line.requests]
    latency, prefill = _mean_of_requests(line, durations), _mean_of_requests(line, prefills)
    p50, p95 = _percentile_of_requests(line, durations, 50), _percentile_of_requests(line, durations, 95)
    if any(queues):
        submitted = {
            "latency_from_submission_s": Estimate(value=float(np.mean(from_submission)), reason=_WAITED),
            "latency_from_submission_p50_s": Estimate(value=_percentile(from_submission, 50), reason=_WAITED),
            "latency_from_submission_p95_s": Estimate(value=_percentile(from_submission, 95), reason=_WAITED),
            "ttft_s": Estimate(value=float(np.mean(first_tokens)), reason=_WAITED),
            "queue_s": Estimate(value=float(np.mean(queues)), reason=_WAITED),
        }
    else:
        submitted = {
            "latency_from_submission_s": latency,
            "latency_from_submission_p50_s": p50,
            "latency_from_submission_p95_s": p95,
            "ttft_s": prefill,
            "queue_s": Estimate(value=0.0, reason="no request waited: each was submitted when it could start"),
        }
    return {"latency_s": latency, "latency_p50_s": p50, "latency_p95_s": p95, "prefill_s": prefill, **submitted}


def _seen_gaps(line: Timeline) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Seconds between two tokens of a request, for every request."""
    gaps = [
        np.repeat(np.diff(batch.step_end_s), rows) for batch, rows in zip(line.outcome.batches, line.rows, strict=True)
    ]
    return np.concatenate([np.empty(0), *gaps])


def token_times(line: Timeline) -> dict[str, Estimate]:
    """Time per output token, (end to end - first token) / (n - 1), and the gaps between tokens as requests saw them."""
    gaps = [np.diff(batch.step_end_s) for batch in line.outcome.batches]
    names = ("tpot_s", "inter_token_s", "inter_token_p50_s", "inter_token_p95_s")
    if any(len(steps) == 0 for steps in gaps):
        return dict.fromkeys(names, Estimate.unknown(Unknown("a batch had one step, so no gap between tokens")))
    seen = _seen_gaps(line)
    weights = [rows * len(steps) for rows, steps in zip(line.rows, gaps, strict=True)]
    sums = [rows * float(np.sum(steps)) for rows, steps in zip(line.rows, gaps, strict=True)]
    reason = "no interval: gaps of one batch depend on each other"
    return {
        "tpot_s": _mean_of_requests(line, [float(np.mean(steps)) for steps in gaps]),
        "inter_token_s": _ratio(sums, weights),
        "inter_token_p50_s": Estimate(value=_percentile(seen, 50), reason=reason),
        "inter_token_p95_s": Estimate(value=_percentile(seen, 95), reason=reason),
    }


def hook(line: Timeline) -> dict[str, Estimate]:
    """What a time stamp costs a step; where the device works beside, the overlap that waiting for it prevents."""
    cost_s, pairs = line.outcome.hook_s_per_step, line.outcome.hook_pairs
    if not pairs:
        return {"hook_s": Estimate(value=cost_s, reason="no interval: the stamps' own time, summed")}
    return {"hook_s": Estimate.of(cost_s, mean_interval([stamped - unstamped for stamped, unstamped in pairs]))}


def took(run: TimedRun) -> dict[str, Estimate]:
    """Memory, utilisation and energy, see `resource_metrics`; known also where no request ended well."""
    return resource_metrics(run.outcome, run.device, run.end_s)


def energy_per_token(line: Timeline) -> dict[str, Estimate]:
    energy = gpu_energy(Readings(line.outcome), line.end_s)
    if energy.value is not None:
        energy = Estimate(value=energy.value / sum(line.tokens), reason=energy.reason)
    return {"energy_per_token_j": energy}


def _mean_of_requests(line: Timeline, by_batch: Sequence[float]) -> Estimate:
    return _ratio([rows * value for rows, value in zip(line.rows, by_batch, strict=True)], line.rows)


def _percentile_of_requests(line: Timeline, by_batch: Sequence[float], percent: int) -> Estimate:
    """Percentile over requests, with the distribution-free interval of order statistics over batches."""
    value = _percentile([by_batch[request.batch] for request in line.requests], percent)
    if len(set(line.rows)) > 1:
        return Estimate(value=value, reason="no interval: the batches have unequal rows")
    places = _limits_of_percentile(len(by_batch), percent)
    if places is None:
        return Estimate(value=value, reason=f"{len(by_batch)} batches are too few for an interval of p{percent}")
    low, high = (sorted(by_batch)[place] for place in places)
    return Estimate(value=value, low=min(low, value), high=max(high, value))


@lru_cache(maxsize=1024)
def _limits_of_percentile(n: int, percent: int) -> tuple[int, int] | None:
    """Which of n values in order are the limits of a percentile's interval; None where n are too few for one."""
    limits: Any = stats.quantile_test(np.arange(n), p=percent / 100).confidence_interval(CONFIDENCE)
    if math.isnan(limits.low) or math.isnan(limits.high):
        return None
    return int(limits.low), int(limits.high)


def _percentile(values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]], percent: int) -> float:
    return float(np.percentile(values, percent))


def _ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    return Estimate.of(sum(numerators) / sum(denominators), ratio_interval(numerators, denominators, serial=True))


def _scaled(value: float, interval: Interval | Unknown) -> Estimate:
    """The interval's relative width, around a value that differs from its own by the time before the first batch."""
    if isinstance(interval, Unknown):
        return Estimate(value=value, reason=interval.reason)
    factor = value / interval.value
    return Estimate(value=value, low=factor * interval.low, high=factor * interval.high)


def _inverse(estimate: Estimate) -> Estimate:
    assert estimate.value is not None
    if estimate.low is None or estimate.high is None:
        return Estimate(value=1 / estimate.value, reason=estimate.reason)
    return Estimate(value=1 / estimate.value, low=1 / estimate.high, high=1 / estimate.low)


def _times(count: int, estimate: Estimate) -> Estimate:
    assert estimate.value is not None
    if estimate.low is None or estimate.high is None:
        return Estimate(value=count * estimate.value, reason=estimate.reason)
    return Estimate(value=count * estimate.value, low=count * estimate.low, high=count * estimate.high)
