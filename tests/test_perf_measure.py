"""Engine and measurement on a tiny model of random weights."""

import itertools
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from bitladder.checkpoint.memory import loaded_bytes
from bitladder.errors import DoesNotFitError, UserError
from bitladder.perf.engines import find_engine
from bitladder.perf.engines.eager import EagerEngine
from bitladder.perf.measure import CPU_WARMUP_TOKENS, _mean_cost_s, measure
from bitladder.records import LoadPolicy, PerformanceOutcome, Prompts, hash_json
from perf_fakes import make_prompts, make_scenario

NEW_TOKENS = 12


@pytest.fixture
def model(tiny_llama: Path) -> Any:
    from bitladder.checkpoint.loading import load_model

    return load_model(tiny_llama)


def test_engine_stamps_every_step(model: Any) -> None:
    rows = make_prompts().token_ids[:3]
    steps = EagerEngine(model).run(rows, NEW_TOKENS)
    times_s = (steps.started_s, *steps.step_end_s)
    assert len(steps.step_end_s) == NEW_TOKENS
    assert all(earlier < later for earlier, later in itertools.pairwise(times_s))
    assert [len(row) for row in steps.tokens] == [NEW_TOKENS] * 3
    assert 0 < steps.hook_s < steps.step_end_s[-1] - steps.started_s


def test_engine_decodes_greedily_whatever_the_checkpoint_asks_for(model: Any) -> None:
    import torch

    rows = make_prompts().token_ids[:2]
    first = EagerEngine(model).run(rows, NEW_TOKENS).tokens
    model.generation_config.do_sample = True
    model.generation_config.temperature = 9.0
    model.generation_config.repetition_penalty = 3.0
    assert EagerEngine(model).run(rows, NEW_TOKENS).tokens == first
    with torch.no_grad():
        logits = model(torch.tensor(rows)).logits[:, -1]  # (rows, vocabulary)
    logits[:, model.generation_config.eos_token_id] = -torch.inf
    assert [row[0] for row in first] == logits.argmax(-1).tolist()


def test_engine_does_not_end_early(model: Any) -> None:
    row = make_prompts().token_ids[:1]
    would_end = EagerEngine(model).run(row, NEW_TOKENS).tokens[0][2]
    model.generation_config.eos_token_id = would_end
    tokens = EagerEngine(model).run(row, NEW_TOKENS).tokens[0]
    assert len(tokens) == NEW_TOKENS
    assert would_end not in tokens


def test_engine_without_stamps_takes_time_too(model: Any) -> None:
    assert EagerEngine(model).run_unstamped(make_prompts().token_ids[:1], NEW_TOKENS) > 0


def test_engine_refuses_rows_of_unequal_length(model: Any) -> None:
    with pytest.raises(ValueError, match="length"):
        EagerEngine(model).run([(1, 2, 3), (1, 2)], NEW_TOKENS)


def test_an_engine_starts_from_a_directory(tiny_llama: Path, model: Any) -> None:
    engine = find_engine("eager").start(tiny_llama, LoadPolicy())
    assert (engine.launch["engine"], engine.launch["attention"]) == ("eager", "sdpa")
    assert engine.loaded_bytes == loaded_bytes(model) > 0
    rows = make_prompts().token_ids[:2]
    assert engine.run(rows, NEW_TOKENS).tokens == EagerEngine(model).run(rows, NEW_TOKENS).tokens


def test_batch1_is_measured(tiny_llama: Path) -> None:
    prompts = make_prompts()
    scenario = make_scenario(prompts, new_tokens=NEW_TOKENS, threads=1)
    outcome = measure(tiny_llama, scenario, prompts)
    assert (outcome.batch_size, outcome.batch_search, outcome.stopped_by) == (1, (), "requests")
    assert len(outcome.requests) == len(outcome.batches) == 3
    assert outcome.launch["threads"] == 1
    assert outcome.launch["dtype"] == "bfloat16"
    assert len(outcome.warmup) == 1
    assert len(outcome.warmup[0].step_end_s) == CPU_WARMUP_TOKENS
    assert outcome.warmup[0].step_end_s[-1] < 0 <= outcome.batches[0].started_s
    assert 0 < outcome.hook_s_per_step < 0.001
    assert 0 < outcome.load_time_s < 60
    memory = outcome.memory
    assert 100_000 < memory.loaded_bytes < 1_000_000
    assert 0 < memory.idle_process_bytes <= memory.peak_process_bytes
    assert_every_none_has_a_reason(outcome)
    assert PerformanceOutcome.model_validate_json(outcome.model_dump_json()) == outcome


def test_max_batch_is_measured(tiny_llama: Path) -> None:
    prompts = make_prompts()
    scenario = make_scenario(prompts, scenario="max-batch", batch_size_cap=4, requests=14)
    done: list[tuple[int, int]] = []
    outcome = measure(tiny_llama, scenario, prompts, progress=lambda count, total: done.append((count, total)))
    assert outcome.batch_size == 4
    assert [probe.batch_size for probe in outcome.batch_search] == [1, 2, 4]
    assert [batch.batch_size for batch in outcome.batches] == [4, 4, 4, 2]
    assert outcome.warmup[0].batch_size == 4
    assert done == [(4, 14), (8, 14), (12, 14), (14, 14)]
    assert_every_none_has_a_reason(outcome)


def test_prompts_of_another_tokenizer_are_refused(tiny_llama: Path) -> None:
    prompts = make_prompts()
    with pytest.raises(UserError, match="other token ids on the prompts"):
        measure(tiny_llama, make_scenario(prompts, prompts_hash="0"), prompts)


def test_context_that_is_too_short(tiny_llama: Path) -> None:
    token_ids = ((5,) * 500,)
    prompts = Prompts(token_ids=token_ids, prompts_hash=hash_json(token_ids), origin="made up")
    with pytest.raises(UserError, match="500 prompt and 13 new tokens, the model's context has 512"):
        measure(tiny_llama, make_scenario(prompts, new_tokens=13), prompts)


def test_running_out_of_memory_is_named(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(self: object, token_ids: object, new_tokens: int) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

    monkeypatch.setattr(EagerEngine, "run", run_out)
    prompts = make_prompts()
    with pytest.raises(DoesNotFitError, match=r"batch of 1: ran out of memory .* choose a smaller batch"):
        measure(tiny_llama, make_scenario(prompts), prompts)


def test_weights_that_do_not_fit_are_predicted(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitladder.checkpoint.loading.available_bytes", lambda device: 1000)
    prompts = make_prompts()
    with pytest.raises(DoesNotFitError):
        measure(tiny_llama, make_scenario(prompts), prompts)


def test_two_cards_are_counted_together(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the cards themselves: the model runs on the CPU."""
    import torch

    from bitladder.checkpoint import loading

    asked: dict[str, Any] = {}
    load = loading.load_model

    def load_here(directory: Path, policy: LoadPolicy) -> Any:
        asked["load"] = policy.device, policy.memory_limit_bytes
        return load(directory)

    monkeypatch.setattr("bitladder.perf.engines.eager.load_model", load_here)
    monkeypatch.setattr("bitladder.perf.measure.used_bytes", lambda gpus: (300, 200))
    monkeypatch.setattr("bitladder.perf.measure.power_at_rest_w", lambda gpus: ((50.0 * len(gpus),), None))
    monkeypatch.setattr("bitladder.perf.measure.limit_memory", lambda *arguments: asked.update(limit=arguments))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda card: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda card: 70 + card)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda card: 90 + card)
    prompts = make_prompts()
    scenario = make_scenario(prompts, device="cuda:0,1", memory_limit_bytes=1000, threads=None)
    outcome = measure(tiny_llama, scenario, prompts)
    memory = outcome.memory
    assert asked == {"load": ("cuda:0,1", 1000), "limit": ("cuda:0,1", 1000, (300, 200))}
    assert (memory.allocated_peak_bytes, memory.reserved_peak_bytes) == (141, 181)
    assert (memory.idle_device_bytes, outcome.idle_powers_w) == (500, (100.0,))
    assert len(outcome.hook_pairs) > 0
    assert_every_none_has_a_reason(outcome)


@pytest.mark.gpu
def test_two_gpus_are_measured(tiny_llama: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")
    prompts = make_prompts()
    scenario = make_scenario(prompts, requests=50, device="cuda:0,1", threads=None)
    outcome = measure(tiny_llama, scenario, prompts)
    assert outcome.launch["device"] == "cuda:0, cuda:1"
    for sample in outcome.resources:
        assert len(sample.cards) == 2
        assert sample.gpu_memory_bytes == sum(card.gpu_memory_bytes or 0 for card in sample.cards)
    assert_every_none_has_a_reason(outcome)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["batch1", "max-batch"])
def test_gpu_is_measured(name: str, tiny_llama: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    prompts = make_prompts()
    cap = 1 if name == "batch1" else 4
    scenario = make_scenario(prompts, scenario=name, batch_size_cap=cap, requests=50, device="cuda:0", threads=None)
    outcome = measure(tiny_llama, scenario, prompts)
    memory = outcome.memory
    assert outcome.batch_size == cap
    assert {probe.how for probe in outcome.batch_search} <= {"run"}
    assert memory.allocated_peak_bytes and memory.reserved_peak_bytes and memory.idle_device_bytes is not None
    assert memory.loaded_bytes <= memory.allocated_peak_bytes <= memory.reserved_peak_bytes
    powers_w = [sample.gpu_power_w for sample in outcome.resources if sample.gpu_power_w is not None]
    # a tiny model hardly raises the power, so that the two may differ by noise alone
    assert median(outcome.idle_powers_w) < 1.05 * median(powers_w), "the card was at rest, whatever the search ran"
    assert _mean_cost_s(outcome.hook_pairs) > -0.05 * outcome.hook_pairs[0][1], "a stamp saves no time"
    assert_every_none_has_a_reason(outcome)


def assert_every_none_has_a_reason(outcome: PerformanceOutcome) -> None:
    empty = {name for name, value in outcome.memory if value is None}
    empty |= set() if outcome.idle_powers_w else {"idle_powers_w"}
    for sample in outcome.resources:
        empty |= {name for name, value in sample if value is None}
    if not outcome.resources:
        empty.add("resources")
    assert empty <= set(outcome.unavailable)
    assert all(outcome.unavailable.values())
