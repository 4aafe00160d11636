"""A performance scenario, prompts, and an engine whose clock stands still unless it runs."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

from bitladder.perf.engines.engine import LaunchFacts, StepTimes
from bitladder.records import Prompts, Scenario, hash_json


def make_prompts(prompt_tokens: int = 16, windows: int = 5) -> Prompts:
    token_ids = tuple(tuple((window * 31 + i) % 500 + 2 for i in range(prompt_tokens)) for window in range(windows))
    return Prompts(token_ids=token_ids, prompts_hash=hash_json(token_ids), origin="made up")


def make_scenario(prompts: Prompts, **changes: Any) -> Scenario:
    fields: dict[str, Any] = {
        "scenario": "batch1",
        "batch_size_cap": 1,
        "requests": 3,
        "prompt_tokens": len(prompts.token_ids[0]),
        "new_tokens": 6,
        "prompts_hash": prompts.prompts_hash,
        "seed": 1,
        "device": "cpu",
        "engine": "eager",
        "threads": 1,  # those of the tests themselves, see conftest: a measurement sets them for good
        "half_width_target": 0.02,
        "time_limit_s": 1000.0,
    }
    return Scenario(**fields | changes)


class FakeEngine:
    """Runs of the given lengths in turn, in equal steps; remembers the rows it was given."""

    launch: LaunchFacts = {"engine": "fake"}  # noqa: RUF012
    loaded_bytes = 0

    def __init__(self, durations_s: Iterable[float]) -> None:
        self.now_s = 100.0
        self.seen: list[list[tuple[int, ...]]] = []
        self._durations_s = cycle(durations_s)

    def clock(self) -> float:
        return self.now_s

    def run(self, token_ids: Sequence[Sequence[int]], new_tokens: int) -> StepTimes:
        self.seen.append([tuple(row) for row in token_ids])
        started_s, duration_s = self.now_s, next(self._durations_s)
        ends_s = tuple(started_s + duration_s * (step + 1) / new_tokens for step in range(new_tokens))
        self.now_s = ends_s[-1]
        return StepTimes(started_s, ends_s, 0.001 * new_tokens, tuple((0,) * new_tokens for _ in token_ids))

    def run_unstamped(self, token_ids: Sequence[Sequence[int]], new_tokens: int) -> float:
        return next(self._durations_s)
