"""One performance measurement: choose the batch, load, warm up, run, and say what could not be measured."""

import time
from dataclasses import dataclass
from pathlib import Path

from bitladder.errors import UserError
from bitladder.executors.table import executor_name
from bitladder.machine.host import give_back_freed
from bitladder.perf.batches import ProcessorTimes, Run, run_batches, to_sample
from bitladder.perf.engines import find_engine
from bitladder.perf.engines.engine import Engine, LaunchFacts, StepTimes
from bitladder.perf.maxbatch import choose_batch
from bitladder.perf.memory import (
    PeakDevice,
    PeakResident,
    limit_memory,
    out_of_memory_does_not_fit,
    resident_bytes,
)
from bitladder.perf.resources import gpus_of, power_at_rest_w, total_bytes, used_bytes, watching
from bitladder.perf.scenarios import require_context
from bitladder.records import LoadPolicy, MemoryFigures, PerformanceOutcome, Prompts, Scenario
from bitladder.units import OnProgress

HOOK_PAIRS, HOOK_TOKENS = 5, 32
"""runs with and without stamps, short ones: their difference is small beside what hosts drift in a long one"""

LEAST_HOOK_PAIRS, HOOK_TIME_S = 2, 10.0
"""no further pair after so long"""

HOOK_ROWS = 64
"""What a wait for the device costs is the launch of one step that could not overlap: no more with more rows."""

CPU_WARMUP_TOKENS = 8
"""On a CPU later steps bring nothing new, and one can take half a second."""


def measure(
    directory: Path,
    scenario: Scenario,
    prompts: Prompts,
    policy: LoadPolicy = LoadPolicy(),
    *,
    audited_bytes: int | None = None,
    progress: OnProgress | None = None,
) -> PerformanceOutcome:
    """Measure a checkpoint in one scenario. Expects a process that has loaded no other model.

    ``audited_bytes``: what it was seen to hold after one forward, where that is known.

    Raises DoesNotFitError where weights or batch don't fit, predicted or seen, and UserError for prompts that are
    not the plan's, or longer than the model's context together with the new tokens.
    """
    import torch

    if prompts.prompts_hash != scenario.prompts_hash:
        raise UserError(f"{directory}: its tokenizer gives other token ids on the prompts than the plan has")
    policy = scenario.policy(policy)
    require_context(directory, scenario, policy)
    if scenario.threads is not None:
        torch.set_num_threads(scenario.threads)
    torch.manual_seed(scenario.seed)
    gpus = gpus_of(scenario.device)
    powers_w, no_power_reason = power_at_rest_w(gpus)  # before the search, whose batches leave a card hot
    batch_size, search = choose_batch(directory, scenario, prompts, policy, audited_bytes=audited_bytes)
    give_back_freed()
    idle_process_bytes = resident_bytes()
    idle_card_bytes = used_bytes(gpus)
    idle_device_bytes = total_bytes(idle_card_bytes)
    limit_memory(scenario.device, scenario.memory_limit_bytes, idle_card_bytes)

    with watching(gpus) as watch, out_of_memory_does_not_fit(f"batch of {batch_size}"):
        seen = _load_and_run(directory, scenario, prompts, batch_size, policy, progress)

    resources, unavailable = watch.between(seen.run.started_s, seen.run.ended_s)
    if not gpus:
        unavailable |= dict.fromkeys(("allocated_peak_bytes", "reserved_peak_bytes"), "no GPU")
    elif not any(sample.gpu_process_bytes for sample in resources):
        why = "the driver does not list this process (in a container its ids are others)"
        unavailable.setdefault("gpu_process_bytes", why)
    if seen.waited_s is None:
        unavailable["waited_s"] = "the system doesn't count what a thread waits for a processor"
    if no_power_reason is not None:
        unavailable["idle_powers_w"] = no_power_reason
    if idle_device_bytes is None:
        unavailable["idle_device_bytes"] = unavailable.get("gpu_memory_bytes", "the driver gave no reading")
    return PerformanceOutcome(
        engine=scenario.engine,
        launch=seen.launch | {"executor": executor_name()},
        batch_size=batch_size,
        batch_search=search,
        load_time_s=seen.load_time_s,
        warmup=(to_sample(seen.warmup, seen.run.started_s),),
        batches=seen.run.batches,
        requests=seen.run.requests,
        stopped_by=seen.run.stopped_by,
        hook_s_per_step=_mean_cost_s(seen.hook_pairs) if seen.hook_pairs else seen.run.hook_s_per_step,
        hook_pairs=seen.hook_pairs,
        memory=MemoryFigures(
            loaded_bytes=seen.loaded_bytes,
            idle_process_bytes=idle_process_bytes,
            peak_process_bytes=max([seen.peak_process_bytes, *(sample.rss_bytes or 0 for sample in resources)]),
            allocated_peak_bytes=seen.allocated_peak_bytes,
            reserved_peak_bytes=seen.reserved_peak_bytes,
            idle_device_bytes=idle_device_bytes,
        ),
        resources=resources,
        processor_s=seen.processor_s,
        waited_s=seen.waited_s,
        idle_powers_w=powers_w,
        unavailable=unavailable,
    )


@dataclass(frozen=True)
class _Measured:
    """What is left of the model when it is gone."""

    launch: LaunchFacts
    load_time_s: float
    loaded_bytes: int
    warmup: StepTimes
    run: Run
    hook_pairs: tuple[tuple[float, float], ...]
    processor_s: float
    waited_s: float | None
    peak_process_bytes: int
    allocated_peak_bytes: int | None
    reserved_peak_bytes: int | None


def _load_and_run(
    directory: Path,
    scenario: Scenario,
    prompts: Prompts,
    batch_size: int,
    policy: LoadPolicy,
    progress: OnProgress | None,
) -> _Measured:
    start = find_engine(scenario.engine).start
    started_s = time.perf_counter()
    engine = start(directory, policy)
    load_time_s = time.perf_counter() - started_s
    rows = [prompts.row(index) for index in range(batch_size)]
    on_cpu = scenario.device == "cpu"
    warmup = engine.run(rows, min(scenario.new_tokens, CPU_WARMUP_TOKENS) if on_cpu else scenario.new_tokens)
    pairs = () if on_cpu else stamp_pairs(engine, rows[:HOOK_ROWS], min(scenario.new_tokens, HOOK_TOKENS))
    bytes_held = engine.loaded_bytes
    give_back_freed()
    peak_resident, peak_device = PeakResident(), PeakDevice(scenario.device)
    processors = ProcessorTimes()
    run = run_batches(engine, scenario, prompts, batch_size, progress=progress)
    processor_s, waited_s = processors.read()
    allocated_bytes, reserved_bytes = peak_device.read()
    return _Measured(
        launch=engine.launch | {"hook_self_s_per_step": run.hook_s_per_step},
        load_time_s=load_time_s,
        loaded_bytes=bytes_held,
        warmup=warmup,
        run=run,
        hook_pairs=pairs,
        processor_s=processor_s,
        waited_s=waited_s,
        peak_process_bytes=peak_resident.read(),
        allocated_peak_bytes=allocated_bytes,
        reserved_peak_bytes=reserved_bytes,
    )


def stamp_pairs(engine: Engine, token_ids: list[tuple[int, ...]], new_tokens: int) -> tuple[tuple[float, float], ...]:
    """Seconds a step of a stamped run and of an unstamped one: HOOK_PAIRS times, or until HOOK_TIME_S.

    Which comes first alternates, since a host drifts, after a run that is discarded: the first one of a new shape is
    slower than all others. On a GPU the stamp's own time is mostly the wait for the device, and its cost the overlap
    that the wait prevents.
    """
    pairs: list[tuple[float, float]] = []
    engine.run_unstamped(token_ids, new_tokens)
    started_s = time.perf_counter()
    while len(pairs) < HOOK_PAIRS:
        if len(pairs) >= LEAST_HOOK_PAIRS and time.perf_counter() - started_s > HOOK_TIME_S:
            break
        if len(pairs) % 2:
            stamped_s = _stamped_s(engine, token_ids, new_tokens)
            unstamped_s = engine.run_unstamped(token_ids, new_tokens)
        else:
            unstamped_s = engine.run_unstamped(token_ids, new_tokens)
            stamped_s = _stamped_s(engine, token_ids, new_tokens)
        pairs.append((stamped_s / new_tokens, unstamped_s / new_tokens))
    return tuple(pairs)


def _stamped_s(engine: Engine, token_ids: list[tuple[int, ...]], new_tokens: int) -> float:
    """Of the whole run, as an unstamped one is timed: what comes after the last stamp would look like its cost."""
    started_s = time.perf_counter()
    engine.run(token_ids, new_tokens)
    return time.perf_counter() - started_s


def _mean_cost_s(pairs: tuple[tuple[float, float], ...]) -> float:
    return sum(stamped - unstamped for stamped, unstamped in pairs) / len(pairs)
