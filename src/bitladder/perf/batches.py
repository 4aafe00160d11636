"""Batch after batch through an engine until one of three reasons to stop, and what held a measurement up."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from bitladder.errors import DoesNotFitError
from bitladder.perf.engines.engine import Engine, StepTimes
from bitladder.perf.memory import out_of_memory_does_not_fit
from bitladder.records import BatchSample, PerformanceOutcome, Prompts, RequestSample, Scenario

LEAST_LOST_S = 1.0
"""that a disturbance has to take of the run: the clocks count nanoseconds, but a run of half a second beside any other
program waits for some turns of the scheduler, which are a large share of it and say nothing"""
FEWEST_TIMES = 3
MOST_WAITING = 0.1
"""share of the run that a thread may wait for a processor: on an idle machine it is 0.00 to 0.02"""
FAST_PERCENT, SLOW_PERCENT = 1, 95
MOST_MEAN_ON_CPU, MOST_MEAN_ON_GPU, MOST_SLOW = 1.8, 2.0, 4.0
"""times the fast end that the mean may take, and one in twenty: undisturbed runs took up to 1.61 and 2.3 on CPUs (three
models), up to 1.79 and 3.4 on an H100 (45 runs, three models), whose host now and then is late"""

_TASKS = Path("/proc/self/task")

Times = np.ndarray[tuple[int], np.dtype[np.float64]]
"""seconds"""


class ProcessorTimes:
    """What this thread had of the processors, and what a thread of this process waited for one, since this was made."""

    def __init__(self) -> None:
        self._processor_s = time.thread_time()
        self._waits = _waits_s()

    def read(self) -> tuple[float, float | None]:
        """(seconds on a processor, most seconds that one thread was ready and waited for one), as of now.

        The second is None where the system doesn't count it.
        """
        waits = [wait_s - self._waits.get(thread, 0.0) for thread, wait_s in _waits_s().items()]
        return time.thread_time() - self._processor_s, max(waits, default=None)


def _waits_s() -> dict[str, float]:
    """By thread; one that ends meanwhile is left out."""
    found = {}
    for path in _TASKS.glob("*/schedstat"):
        try:
            found[path.parent.name] = int(path.read_text(encoding="utf-8").split()[1]) / 1e9
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def find_disturbance(outcome: PerformanceOutcome, device: str) -> str | None:
    """Why the times of a run say nothing of the model; None where nothing is seen."""
    duration_s = outcome.batches[-1].step_end_s[-1]
    waited_s = _waited_s(outcome, device, duration_s)
    if waited_s is not None and waited_s > max(LEAST_LOST_S, MOST_WAITING * duration_s):
        share = waited_s / duration_s
        return (
            f"disturbed: it waited for a processor, which other programs had, for {share:.0%} of the time; end them "
            "and run the study again"
        )
    most_mean = MOST_MEAN_ON_CPU if device == "cpu" else MOST_MEAN_ON_GPU
    for name, (times_s, fast_s) in (("prefill", _prefills(outcome)), ("step", _steps(outcome))):
        if len(times_s) < FEWEST_TIMES or times_s.sum() - fast_s.sum() < LEAST_LOST_S:
            continue
        mean, slow = float(times_s.sum() / fast_s.sum()), float(np.percentile(times_s / fast_s, SLOW_PERCENT))
        if mean > most_mean or slow > MOST_SLOW:
            return (
                f"disturbed: a {name} took {mean:.1f} times as long as the fast ones on average, one in twenty "
                f"{slow:.1f} times as long; see what else ran on the machine and run the study again"
            )
    return None


def _waited_s(outcome: PerformanceOutcome, device: str, duration_s: float) -> float | None:
    """On a CPU what this thread did not have of the time, where the system doesn't count what it waited."""
    if outcome.waited_s is not None:
        return outcome.waited_s
    if device == "cpu" and outcome.processor_s is not None:
        return duration_s - outcome.processor_s
    return None


def _prefills(outcome: PerformanceOutcome) -> tuple[Times, Times]:
    """Seconds of each full batch's first step, and of a fast one."""
    times = np.asarray([batch.step_end_s[0] - batch.started_s for batch in _full_batches(outcome)], dtype=np.float64)
    return times, np.full_like(times, np.percentile(times, FAST_PERCENT))


def _steps(outcome: PerformanceOutcome) -> tuple[Times, Times]:
    """Seconds of each further step of full batches, and of a fast one in its place.

    A step reads all tokens before it, so that it may take as much longer than the first one as there are more of them:
    each is held against the fast end of all steps, or of their times a token of context, whichever expects more.
    """
    steps = [np.diff(np.asarray(batch.step_end_s, dtype=np.float64)) for batch in _full_batches(outcome)]
    times = np.concatenate(steps)
    if not len(times):
        return times, times
    prompt_tokens = outcome.requests[0].prompt_tokens
    context = np.concatenate([prompt_tokens + 1 + np.arange(len(one)) for one in steps])
    by_token = float(np.percentile(times / context, FAST_PERCENT))
    return times, np.maximum(np.percentile(times, FAST_PERCENT), context * by_token)


def _full_batches(outcome: PerformanceOutcome) -> list[BatchSample]:
    return [batch for batch in outcome.batches if batch.batch_size == outcome.batch_size]


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
