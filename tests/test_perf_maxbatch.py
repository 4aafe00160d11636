"""The search for the largest batch, and the two probes it can ask."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitladder.checkpoint.loading import predicted_load_bytes
from bitladder.checkpoint.skeleton import cache_bytes
from bitladder.errors import DoesNotFitError
from bitladder.perf import maxbatch
from bitladder.perf.maxbatch import (
    GPU_GROWTH,
    Probe,
    ProbeJob,
    card_limits,
    choose_batch,
    largest_fitting,
    running_probe,
    search_largest_batch,
)
from bitladder.perf.memory import out_of_memory_does_not_fit, predict_working_memory
from bitladder.records import BatchProbe, LoadPolicy
from perf_fakes import FakeEngine, make_prompts, make_scenario


def search(capacity: int, cap: int | None) -> list[tuple[int, bool]]:
    def ask(batch_size: int) -> BatchProbe:
        fits = batch_size <= capacity
        return BatchProbe(batch_size=batch_size, fits=fits, how="run", needed_bytes=None, available_bytes=None)

    return [(maxbatch.batch_size, maxbatch.fits) for maxbatch in search_largest_batch(ask, cap)]


def test_search_doubles_then_bisects() -> None:
    assert search(21, None) == [
        *((size, True) for size in (1, 2, 4, 8, 16)),
        *((32, False), (24, False), (20, True), (22, False), (21, True)),
    ]


@pytest.mark.parametrize("capacity", range(1, 33))
def test_search_is_exact_for_small_batches(capacity: int) -> None:
    asked = search(capacity, None)
    assert max(size for size, fits in asked if fits) == capacity
    assert min(size for size, fits in asked if not fits) == capacity + 1
    assert len({size for size, _ in asked}) == len(asked)


@pytest.mark.parametrize("capacity", [100, 368, 1000, 4097])
def test_search_ends_a_step_from_the_first_that_fails(capacity: int) -> None:
    asked = search(capacity, None)
    fitting, failing = max(s for s, fits in asked if fits), min(s for s, fits in asked if not fits)
    assert fitting <= capacity < failing <= fitting * (1 + maxbatch.STEP_SHARE)


@pytest.mark.parametrize(("row_mib", "start_mib"), [(30, 3000), (7, 20000), (400, 3000)])
@pytest.mark.parametrize("wobble", [0.0, 0.01])
def test_search_that_knows_what_runs_needed_takes_few(row_mib: int, start_mib: int, wobble: float) -> None:
    """Memory that grows evenly with the batch, and with an allocator's blocks on top of that."""
    capacity_mib = 80_000

    def ask(batch_size: int) -> BatchProbe:
        needed = int((start_mib + row_mib * batch_size) * (1 + wobble * (batch_size % 3)))
        fits = needed <= capacity_mib
        return BatchProbe(
            batch_size=batch_size,
            fits=fits,
            how="run",
            needed_bytes=needed if fits else None,
            available_bytes=capacity_mib,
        )

    probes = search_largest_batch(ask, None, growth=16)
    fitting = largest_fitting(probes)
    assert fitting is not None
    failing = min(maxbatch.batch_size for maxbatch in probes if not maxbatch.fits)
    assert failing <= fitting + max(1, fitting * maxbatch.STEP_SHARE)
    assert len(probes) <= (5 if not wobble else 8)


def test_search_goes_by_the_card_that_is_full_first() -> None:
    """The sums would foretell a batch a third too large."""

    def ask(batch_size: int) -> BatchProbe:
        needed = 10 + batch_size, 10 + 2 * batch_size
        fits = max(needed) <= 1000
        return BatchProbe(
            batch_size=batch_size,
            fits=fits,
            how="run",
            needed_bytes=sum(needed) if fits else None,
            available_bytes=2000,
            card_needed_bytes=needed if fits else (),
            card_available_bytes=(1000, 1000),
        )

    probes = search_largest_batch(ask, None, growth=16)
    fitting = largest_fitting(probes)
    assert fitting is not None and 495 * (1 - 2 * maxbatch.STEP_SHARE) < fitting <= 495
    assert [maxbatch.batch_size for maxbatch in probes if not maxbatch.fits] == [fitting + maxbatch._step(fitting)]
    assert len(probes) <= 5


@pytest.mark.parametrize(
    ("capacity", "idle", "limit", "cards", "limits"),
    [
        ((80, 60), (5, 10), None, 2, (75, 50)),
        ((80, 60), (5, 10), 60, 2, (60, 50)),
        ((), (), 60, 2, (60, 60)),
        ((80,), (), 60, 1, (60,)),
        ((), (), None, 2, ()),
    ],
)
def test_what_a_run_may_take_of_each_card(
    capacity: tuple[int, ...], idle: tuple[int, ...], limit: int | None, cards: int, limits: tuple[int, ...]
) -> None:
    assert card_limits(capacity, idle, limit, cards) == limits


@pytest.mark.parametrize(("limit", "fits"), [(None, True), (39, False), (40, True)])
def test_a_spread_run_fits_where_each_card_does(
    limit: int | None, fits: bool, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = itertools.chain([(5, 10)], itertools.repeat((35, 50)))
    monkeypatch.setattr(maxbatch, "gpus_of", lambda device: ("0", "1"))
    monkeypatch.setattr(maxbatch, "used_bytes", lambda gpus: next(readings))
    monkeypatch.setattr(maxbatch, "limit_memory", lambda device, limit_bytes, idle_bytes: None)
    monkeypatch.setattr(maxbatch, "find_engine", lambda name: engine_of(_EndsIn(None)))
    job = probe_job(tiny_llama)
    job = job.model_copy(update={"scenario": job.scenario.model_copy(update={"memory_limit_bytes": limit})})
    answer = maxbatch.try_batch(job)
    assert (answer.fits, answer.needed_bytes, answer.card_needed_bytes) == (fits, 70, (30, 40))


@pytest.mark.parametrize(
    ("capacity", "cap", "sizes"), [(99, 8, [1, 2, 4, 8]), (99, 6, [1, 2, 4, 6]), (99, 1, [1]), (0, 8, [1])]
)
def test_search_ends_at_the_cap_or_at_once(capacity: int, cap: int, sizes: list[int]) -> None:
    assert [size for size, _ in search(capacity, cap)] == sizes


def test_largest_fitting_of_none() -> None:
    assert largest_fitting([]) is None


def test_working_memory_grows_with_the_batch_and_the_tokens() -> None:
    skeleton = smollm2_skeleton()
    row = predict_working_memory(skeleton, 2, 128, 128)
    sizes = [row.of_rows(batch) for batch in (1, 2, 8)]
    assert sizes[0].cache_bytes < sizes[1].cache_bytes < sizes[2].cache_bytes
    assert sizes[0].total_bytes < sizes[1].total_bytes < sizes[2].total_bytes
    longer = predict_working_memory(skeleton, 2, 128, 256)
    assert longer.cache_bytes > sizes[0].cache_bytes
    assert longer.activation_bytes == sizes[0].activation_bytes


def test_cache_of_smollm2_is_23_kb_a_token() -> None:
    assert cache_bytes(smollm2_skeleton(), 10) == 230_400


def smollm2_skeleton() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    return model.to(torch.bfloat16).eval()


def test_batch_on_a_cpu_is_predicted_and_capped(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = make_prompts()
    scenario = make_scenario(prompts, scenario="max-batch", batch_size_cap=8)
    size, probes = choose_batch(tiny_llama, scenario, prompts)
    assert size == 8
    assert {entry.how for entry in probes} == {"predicted"}
    needed = [entry.needed_bytes for entry in probes if entry.needed_bytes is not None]
    assert needed == sorted(set(needed)) and len(needed) == 4

    monkeypatch.setattr("bitladder.checkpoint.loading.available_bytes", lambda device: needed[2])
    size, probes = choose_batch(tiny_llama, scenario, prompts)
    assert (size, [entry.fits for entry in probes[:4]]) == (4, [True, True, True, False])
    dense_bytes = predicted_load_bytes(tiny_llama) + needed[2] - needed[1]
    size, _ = choose_batch(tiny_llama, scenario, prompts, audited_bytes=dense_bytes)
    assert size == 2, "what becomes dense leaves room for fewer rows"
    monkeypatch.setattr("bitladder.checkpoint.loading.available_bytes", lambda device: needed[0] - 1)
    with pytest.raises(DoesNotFitError, match=r"batch of 1: .* needed, .* available; choose"):
        choose_batch(tiny_llama, scenario, prompts)


def test_where_not_one_row_runs_it_is_said_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "batch of 1: ran out of memory (CUDA error: out of memory)"

    @contextmanager
    def running(*_: Any, **__: Any) -> Iterator[Probe]:
        def ask(batch_size: int) -> BatchProbe:
            return BatchProbe(
                batch_size=batch_size, fits=False, how="run", needed_bytes=None, available_bytes=9, ran_out=said
            )

        yield ask

    monkeypatch.setattr(maxbatch, "running_probe", running)
    prompts = make_prompts()
    with pytest.raises(DoesNotFitError) as caught:
        choose_batch(tmp_path, make_scenario(prompts, scenario="max-batch", device="cuda:0", threads=None), prompts)
    assert str(caught.value) == said


def test_batch1_asks_nobody(tmp_path: Path) -> None:
    prompts = make_prompts()
    assert choose_batch(tmp_path, make_scenario(prompts), prompts) == (1, ())


def test_a_memory_limit_is_of_one_request_too(tiny_llama: Path) -> None:
    """Or batch 1 would have figures under a limit that the largest batch says not even one row fits."""
    prompts = make_prompts()
    for limit, fits in ((2**30, True), (10, False)):
        scenario = make_scenario(prompts, memory_limit_bytes=limit)
        if fits:
            assert choose_batch(tiny_llama, scenario, prompts) == (1, ())
        else:
            with pytest.raises(DoesNotFitError, match=r"^batch of 1: .* needed, .* available"):
                choose_batch(tiny_llama, scenario, prompts)


@pytest.mark.slow
def test_running_probe_is_a_process(tiny_llama: Path) -> None:
    prompts = make_prompts()
    scenario = make_scenario(prompts, scenario="max-batch", batch_size_cap=2)
    with running_probe(tiny_llama, scenario, prompts) as ask:
        answer = ask(2)
    assert (answer.batch_size, answer.fits, answer.how, answer.reason) == (2, True, "run", None)
    assert answer.duration_s is not None


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("os.kill(os.getpid(), 9)", None),
        ("print('CUDA error 9', flush=True); os._exit(3)", "a library ended the process (exit code 3): CUDA error 9"),
        ("os.kill(os.getpid(), 11)", "a library ended the process (SIGSEGV)"),
    ],
)
def test_probe_without_an_answer(
    ending: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with probe_that(ending, tmp_path, monkeypatch) as ask:
        answer = ask(4)
    assert (answer.fits, answer.reason) == (False, reason)
    assert (answer.ran_out is None) == (reason is not None), "the kernel kills what takes all of main memory"


def test_probe_that_raises_is_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        probe_that("raise KeyError('x')", tmp_path, monkeypatch) as ask,
        pytest.raises(RuntimeError, match="the probe of batch 4 raised"),
    ):
        ask(4)


@contextmanager
def probe_that(ends: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Probe]:
    """Probes whose process does this instead of running a batch."""
    (directory / "ends.py").write_text(f"import os\n\ndef work(job, answers):\n    {ends}\n")
    monkeypatch.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)
    monkeypatch.setattr(maxbatch, "PROBE", "ends")
    monkeypatch.setattr("bitladder.executors.executor.PRELOADED", ())
    monkeypatch.setattr("bitladder.executors.executor.CPU_PRELOADED", ())
    prompts = make_prompts()
    with running_probe(directory, make_scenario(prompts), prompts) as ask:
        yield ask


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, None),
        (MemoryError(), "batch of 2: ran out of memory (MemoryError); choose a smaller batch"),
        (RuntimeError("CUDA out of memory. Tried …"), "batch of 2: ran out of memory (CUDA out of memory. Tried …)"),
    ],
)
def test_out_of_memory_is_an_answer(
    error: Exception | None, said: str | None, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maxbatch, "find_engine", lambda name: engine_of(_EndsIn(error)))
    answer = maxbatch.try_batch(probe_job(tiny_llama))
    assert answer.fits is (said is None) and answer.reason is None
    assert answer.ran_out is None if said is None else (answer.ran_out or "").startswith(said)


def test_what_torch_refuses_is_an_answer_with_its_reason(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maxbatch, "find_engine", lambda name: engine_of(_EndsIn(RuntimeError("mha_graph\nmore"))))
    answer = maxbatch.try_batch(probe_job(tiny_llama))
    assert (answer.fits, answer.reason) == (False, "RuntimeError: mha_graph")


def test_other_errors_are_bugs(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maxbatch, "find_engine", lambda name: engine_of(_EndsIn(TypeError("shapes differ"))))
    with pytest.raises(TypeError, match="shapes differ"):
        maxbatch.try_batch(probe_job(tiny_llama))


def test_real_allocation_failure_is_recognised() -> None:
    import torch

    with (
        pytest.raises(DoesNotFitError, match="batch of 9: ran out of memory"),
        out_of_memory_does_not_fit("batch of 9"),
    ):
        torch.empty(1 << 50, dtype=torch.uint8)


def probe_job(directory: Path) -> ProbeJob:
    prompts = make_prompts()
    return ProbeJob(
        directory=str(directory),
        scenario=make_scenario(prompts),
        token_ids=prompts.token_ids[:2],
        policy=LoadPolicy(),
    )


def engine_of(engine: FakeEngine) -> Any:
    """A row of engines that starts this one."""
    return SimpleNamespace(start=lambda directory, policy: engine)


class _EndsIn(FakeEngine):
    def __init__(self, error: Exception | None) -> None:
        super().__init__([1.0])
        self._error = error

    def run(self, token_ids: Any, new_tokens: int) -> Any:
        if self._error is not None:
            raise self._error
        return super().run(token_ids, new_tokens)


@pytest.mark.parametrize(("limit", "runs"), [(4096, 6), (2048, 7), (4700, 11)])
def test_what_kernels_refuse_is_closed_in_on_by_powers_of_two(limit: int, runs: int) -> None:
    """Memory would take about 5,300 rows; a kernel takes ``limit``."""

    def maxbatch(batch_size: int) -> BatchProbe:
        fits = batch_size <= limit
        return BatchProbe(
            batch_size=batch_size,
            fits=fits,
            how="run",
            needed_bytes=(3000 + 15 * batch_size) << 20 if fits else None,
            available_bytes=80_000 << 20,
            reason=None if fits else "RuntimeError: mha_graph",
        )

    probes = search_largest_batch(maxbatch, None, GPU_GROWTH)
    largest = largest_fitting(probes)
    assert largest is not None
    assert limit - max(1, largest // 32) < largest <= limit
    assert len(probes) <= runs
