"""Whether something else held a measurement up, so that its times are not of the model.

A disturbance that lasts as long as the run leaves no spread to see it by, so two things are looked at: what the
measuring threads waited for a processor, which Linux counts, and how far prefills and steps lie above the fastest of
them.
"""

import time
from pathlib import Path

import numpy as np

from bitladder.records import BatchSample, PerformanceOutcome

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
