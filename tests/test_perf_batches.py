"""Requests, batches and reasons to stop, on a clock of our own."""

from itertools import cycle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from bitladder.errors import DoesNotFitError
from bitladder.perf.batches import MIN_RUNS, relative_half_width, run_batches
from bitladder.perf.measure import _mean_cost_s, stamp_pairs
from bitladder.stats.interval import relative_error
from perf_fakes import FakeEngine, make_prompts, make_scenario

UNSTEADY = (1.0, 3.0)


def test_batch1_submits_each_request_when_it_starts() -> None:
    prompts, engine = make_prompts(), FakeEngine(UNSTEADY)
    run = run_batches(engine, make_scenario(prompts), prompts, 1, clock=engine.clock)
    assert run.stopped_by == "requests"
    assert [batch.started_s for batch in run.batches] == pytest.approx([0.0, 1.0, 4.0])
    assert [request.submitted_s for request in run.requests] == [batch.started_s for batch in run.batches]
    assert [request.batch for request in run.requests] == [0, 1, 2]
    assert {(request.prompt_tokens, request.new_tokens, request.status) for request in run.requests} == {(16, 6, "ok")}
    assert run.batches[1].step_end_s == pytest.approx([1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
    assert (run.started_s, run.ended_s) == pytest.approx((100.0, 105.0))
    assert run.hook_s_per_step == pytest.approx(0.001)


def test_max_batch_submits_all_at_once_and_may_end_with_a_short_batch() -> None:
    prompts, engine = make_prompts(windows=5), FakeEngine(UNSTEADY)
    reports: list[tuple[int, int]] = []
    scenario = make_scenario(prompts, scenario="max-batch", batch_size_cap=4, requests=14)
    run = run_batches(
        engine, scenario, prompts, 4, clock=engine.clock, progress=lambda done, total: reports.append((done, total))
    )
    assert [batch.batch_size for batch in run.batches] == [4, 4, 4, 2]
    assert [request.submitted_s for request in run.requests] == [0.0] * 14
    assert [request.batch for request in run.requests] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2
    assert reports == [(4, 14), (8, 14), (12, 14), (14, 14)]
    rows = [row for batch in engine.seen for row in batch]
    assert rows == [*prompts.token_ids, *prompts.token_ids, *prompts.token_ids[:4]]


def test_max_batch_runs_three_full_batches_at_least() -> None:
    prompts, engine = make_prompts(), FakeEngine(UNSTEADY)
    scenario = make_scenario(prompts, scenario="max-batch", batch_size_cap=4, requests=1)
    run = run_batches(engine, scenario, prompts, 4, clock=engine.clock)
    assert [batch.batch_size for batch in run.batches] == [4, 4, 4]
    assert run.stopped_by == "requests"


def test_stops_when_the_rate_is_known_well_enough() -> None:
    prompts, engine = make_prompts(), FakeEngine((1.0, 1.01))
    run = run_batches(engine, make_scenario(prompts, requests=200), prompts, 1, clock=engine.clock)
    assert (run.stopped_by, len(run.batches)) == ("precision", MIN_RUNS)


def test_goes_on_while_the_rate_is_uncertain() -> None:
    """6.1% of spread: twenty runs leave a half-width of 2.9%, and 2% takes forty."""
    prompts, engine = make_prompts(), FakeEngine((0.94, 1.06))
    run = run_batches(engine, make_scenario(prompts, requests=200), prompts, 1, clock=engine.clock)
    durations_s = [batch.step_end_s[-1] - batch.started_s for batch in run.batches]
    assert run.stopped_by == "precision"
    assert MIN_RUNS < len(durations_s) < 45
    assert relative_half_width(durations_s) < 0.02 <= relative_half_width(durations_s[:-1])


def test_time_limit_ends_between_batches() -> None:
    prompts, engine = make_prompts(), FakeEngine(UNSTEADY)
    run = run_batches(engine, make_scenario(prompts, requests=200, time_limit_s=4.5), prompts, 1, clock=engine.clock)
    assert (run.stopped_by, len(run.batches)) == ("time_limit", 3)


def test_half_width_is_students() -> None:
    """Mean 2, standard deviation 1, n = 3: 4.3027 / sqrt(3) / 2."""
    assert relative_half_width([1.0, 2.0, 3.0]) == pytest.approx(1.24207, abs=1e-5)


def test_half_width_is_wider_where_times_resemble_the_one_before() -> None:
    slow_then_fast = [1.0] * 10 + [1.1] * 10
    shuffled = [1.0, 1.1] * 10
    assert relative_half_width(slow_then_fast) == pytest.approx(3 * relative_half_width(shuffled))
    assert relative_half_width([1.0, 1.0, 1.0]) == 0


def test_what_a_run_stops_at_is_the_error_that_its_report_gives() -> None:
    """Measuring imports nothing of the report's statistics, so the formula stands twice."""
    random = np.random.default_rng(2)
    for correlation in (0.0, 0.6):
        noise = [0.0]
        for shock in random.normal(0, 0.05, 30):
            noise.append(correlation * noise[-1] + shock)
        durations_s = [1 + value for value in noise]
        error = relative_error([1.0] * len(durations_s), durations_s, serial=True)
        assert isinstance(error, float)
        quantile = stats.t.ppf(0.975, len(durations_s) - 1)
        assert relative_half_width(durations_s) == pytest.approx(quantile * error)


class _Drifting(FakeEngine):
    """A stamp costs 0.6 s a run; the first run pays for the new shape, and each later one is slower by 0.1 s."""

    def __init__(self) -> None:
        super().__init__([9.0])
        self.order: list[str] = []

    def _next_s(self, kind: str) -> float:
        self.order.append(kind)
        return (9.0 if len(self.order) == 1 else 3.0 + 0.1 * len(self.order)) + (0.6 if kind == "stamped" else 0.0)

    def run(self, token_ids: Any, new_tokens: int) -> Any:
        self._durations_s = cycle([self._next_s("stamped")])
        return super().run(token_ids, new_tokens)

    def run_unstamped(self, token_ids: Any, new_tokens: int) -> float:
        return self._next_s("unstamped")


def test_stamps_cost_what_runs_with_them_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first run's start nor a drift of the host is a cost of the stamps."""
    engine = _Drifting()
    monkeypatch.setattr("bitladder.perf.measure.time", SimpleNamespace(perf_counter=lambda: engine.now_s))
    monkeypatch.setattr("bitladder.perf.measure.HOOK_TIME_S", 1000.0)
    pairs = stamp_pairs(engine, list(make_prompts().token_ids), 6)
    assert len(pairs) == 5
    assert engine.order[:5] == ["unstamped", "unstamped", "stamped", "stamped", "unstamped"]
    assert _mean_cost_s(pairs) == pytest.approx(0.1, abs=0.004)
    assert all(stamped > unstamped for stamped, unstamped in pairs)


class _EndsAfter(FakeEngine):
    """Runs out of memory after so many runs."""

    def __init__(self, runs: int) -> None:
        super().__init__([1.0] * 20)
        self._left = runs

    def run(self, token_ids: Any, new_tokens: int) -> Any:
        if not self._left:
            raise MemoryError
        self._left -= 1
        return super().run(token_ids, new_tokens)


def test_out_of_memory_keeps_what_was_measured() -> None:
    prompts = make_prompts()
    run = run_batches(_EndsAfter(2), make_scenario(prompts, requests=5), prompts, 1)
    assert run.stopped_by == "out_of_memory"
    assert [request.status for request in run.requests] == ["ok", "ok", "does_not_fit"]
    assert len(run.batches) == 2
    with pytest.raises(DoesNotFitError):
        run_batches(_EndsAfter(0), make_scenario(prompts, requests=5), prompts, 1)
