"""Whether something else held a measurement up, so that its times are not of the model.

A disturbance that lasts as long as the run leaves no spread to see it by, so two things are looked at: what the
measuring threads waited for a processor, which Linux counts, and how far the steps lie above the fastest of them.
"""

import time
from pathlib import Path

import numpy as np

from bitladder.records import BatchSample, PerformanceOutcome

SHORTEST_JUDGED_S = 5.0
"""of a shorter run a few ticks of the scheduler would decide"""
FEWEST_STEPS = 20
MOST_WAITING = 0.1
"""share of the run that a thread may wait for a processor: on an idle machine it is 0.00 to 0.02"""
FAST_PERCENT, SLOW_PERCENT = 5, 95
MOST_MEAN, MOST_SLOW = 2.0, 4.0
"""times the fast end that the mean step, and one step in twenty, may take: 45 undisturbed runs on an H100 took up to
1.7 and 2.7, whose host now and then is late"""

_TASKS = Path("/proc/self/task")


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
    """Why the times of a run say nothing of the model; None where nothing is seen, or it was too short to tell."""
    duration_s = outcome.batches[-1].step_end_s[-1]
    if duration_s < SHORTEST_JUDGED_S:
        return None
    lost = _lost_share(outcome, device, duration_s)
    if lost is not None and lost > MOST_WAITING:
        return (
            f"disturbed: it waited for a processor, which other programs had, for {lost:.0%} of the time; end them and "
            "run the study again"
        )
    mean, slow = _over_the_fast_end(outcome)
    if mean > MOST_MEAN or slow > MOST_SLOW:
        return (
            f"disturbed: a step took {mean:.1f} times as long as the fast ones on average, one in twenty {slow:.1f} "
            "times as long; see what else ran on the machine and run the study again"
        )
    return None


def _lost_share(outcome: PerformanceOutcome, device: str, duration_s: float) -> float | None:
    """Of the time; on a CPU what this thread did not have of it, where the system doesn't count what it waited."""
    if outcome.waited_s is not None:
        return outcome.waited_s / duration_s
    if device == "cpu" and outcome.processor_s is not None:
        return 1 - outcome.processor_s / duration_s
    return None


def _over_the_fast_end(outcome: PerformanceOutcome) -> tuple[float, float]:
    """(mean step, step that one in twenty exceeds), in times of the fast end; of full batches, without the prefill.

    A step reads all tokens before it, so that it may take as much longer than the first one as there are more of them:
    each is held against the fast end of all steps, or of their times a token of context, whichever expects more.
    """
    full = [batch for batch in outcome.batches if batch.batch_size == outcome.batch_size]
    steps = [_steps(batch) for batch in full]
    if sum(map(len, steps)) < FEWEST_STEPS:
        return 1.0, 1.0
    times = np.concatenate(steps)
    prompt_tokens = outcome.requests[0].prompt_tokens
    context = np.concatenate([prompt_tokens + 1 + np.arange(len(one)) for one in steps])
    fast = np.maximum(np.percentile(times, FAST_PERCENT), context * float(np.percentile(times / context, FAST_PERCENT)))
    return float(times.sum() / fast.sum()), float(np.percentile(times / fast, SLOW_PERCENT))


def _steps(batch: BatchSample) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.diff(np.asarray(batch.step_end_s, dtype=np.float64))
