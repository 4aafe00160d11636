"""Running a scenario's requests through an engine, batch after batch, until one of three reasons to stop."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from bitladder.errors import DoesNotFitError
from bitladder.perf.engines.engine import Engine, StepTimes
from bitladder.perf.memory import out_of_memory_does_not_fit
from bitladder.records import BatchSample, Prompts, RequestSample, Scenario

MIN_RUNS = 20
"""Fewer batches say too little about their own spread, and how each resembles the one before, to stop on."""
MOST_CORRELATED = 0.8

CONFIDENCE = 0.95

StoppedBy = Literal["requests", "precision", "time_limit", "out_of_memory"]


@dataclass(frozen=True)
class Run:
    """The measured part. ``started_s`` and ``ended_s`` are readings of the clock; all others count from the first."""

    started_s: float
    ended_s: float
    batches: tuple[BatchSample, ...]
    requests: tuple[RequestSample, ...]
    stopped_by: StoppedBy
    hook_s_per_step: float


def run_batches(
    engine: Engine,
    scenario: Scenario,
    prompts: Prompts,
    batch_size: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> Run:
    """Run until all requests are done, the rate is known well enough, or the time is over.

    At batch 1 a request is submitted when the one before is done; at the largest batch all wait from the beginning,
    and the last batch may be short. Out of memory ends the run and keeps what was measured; in the first batch it
    raises DoesNotFitError.
    """
    total = scenario.planned_requests(batch_size)
    batches: list[BatchSample] = []
    requests: list[RequestSample] = []
    stopped_by: StoppedBy | None
    hook_s = 0.0
    started_s = clock()
    while True:
        rows = min(batch_size, total - len(requests))
        token_ids = [prompts.row(len(requests) + index) for index in range(rows)]
        try:
            with out_of_memory_does_not_fit(f"batch of {rows}"):
                steps = engine.run(token_ids, scenario.new_tokens)
        except DoesNotFitError:
            if not batches:
                raise
            requests += [_request(scenario, len(batches), clock() - started_s, fits=False) for _ in range(rows)]
            ended_s, stopped_by = clock(), "out_of_memory"
            break
        hook_s += steps.hook_s
        batch = to_sample(steps, started_s)
        requests += [_request(scenario, len(batches), batch.started_s) for _ in range(rows)]
        batches.append(batch)
        if progress is not None:
            progress(len(requests), total)
        ended_s = clock()
        stopped_by = _reason_to_stop(scenario, batches, len(requests) == total, ended_s - started_s)
        if stopped_by is not None:
            break
    steps_done = scenario.new_tokens * len(batches)
    return Run(started_s, ended_s, tuple(batches), tuple(requests), stopped_by, hook_s / steps_done)


def to_sample(steps: StepTimes, origin_s: float) -> BatchSample:
    """A run's times counted from ``origin_s``."""
    return BatchSample(
        batch_size=len(steps.tokens),
        started_s=steps.started_s - origin_s,
        step_end_s=tuple(end_s - origin_s for end_s in steps.step_end_s),
    )


def relative_half_width(durations_s: Sequence[float]) -> float:
    """Half-width of the 95% t interval of the mean, over the mean. To first order that of the rate is the same.

    Wider for durations that resemble the one before, by the factor of a first-order autoregressive series with their
    correlation, corrected for its bias (Bartlett 1946, Kendall 1954). Needs two durations at least.
    """
    # the light half of scipy: scipy.stats would double what this process holds
    from scipy.special import stdtrit

    count = len(durations_s)
    mean = math.fsum(durations_s) / count
    departures = [value - mean for value in durations_s]
    squares = math.fsum(value**2 for value in departures)
    if not squares:
        return 0.0
    seen = math.fsum(one * other for one, other in pairwise(departures)) / squares
    correlation = min(seen + (1 + 4 * seen) / count, MOST_CORRELATED) if seen > 0 else 0.0
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    error = math.sqrt(squares / (count - 1) / count * (1 + correlation) / (1 - correlation))
    return quantile * error / mean


def _request(scenario: Scenario, batch: int, started_s: float, *, fits: bool = True) -> RequestSample:
    return RequestSample(
        batch=batch,
        submitted_s=started_s if scenario.scenario == "batch1" else 0.0,
        status="ok" if fits else "does_not_fit",
        prompt_tokens=scenario.prompt_tokens,
        new_tokens=scenario.new_tokens if fits else 0,
    )


def _reason_to_stop(
    scenario: Scenario, batches: Sequence[BatchSample], all_done: bool, elapsed_s: float
) -> StoppedBy | None:
    if all_done:
        return "requests"
    durations_s = [batch.step_end_s[-1] - batch.started_s for batch in batches]
    if len(batches) >= MIN_RUNS and relative_half_width(durations_s) < scenario.half_width_target:
        return "precision"
    return "time_limit" if elapsed_s >= scenario.time_limit_s else None
