"""The largest batch that fits: a search over a probe, which predicts on a CPU and runs on a GPU."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bitladder.errors import DoesNotFitError
from bitladder.perf.memory import predict_working_memory
from bitladder.records import BatchProbe, Prompts, Record, Scenario
from bitladder.units import format_bytes

Probe = Callable[[int], BatchProbe]

STEP_SHARE = 1 / 32
"""The search ends when the first batch that fails is at most this share above the last that fits."""

KILLED = -9
"""What the kernel does to a process that takes all of main memory."""


class ProbeJob(Record):
    """What a probing process gets on its standard input, in one line."""

    directory: str
    scenario: Scenario
    token_ids: tuple[tuple[int, ...], ...]
    trust_remote_code: bool


def search_largest_batch(probe: Probe, cap: int | None) -> tuple[BatchProbe, ...]:
    """Double from 1 until a batch fails or ``cap`` fits, then bisect. All probes, in the order they were made."""
    probes = [probe(1)]
    while probes[-1].fits and probes[-1].batch_size != cap:
        doubled = 2 * probes[-1].batch_size
        probes.append(probe(doubled if cap is None else min(doubled, cap)))
    failing = probes[-1].batch_size
    fitting = largest_fitting(probes)
    if fitting is None or fitting == failing:
        return tuple(probes)
    while failing - fitting > max(1, int(fitting * STEP_SHARE)):
        probes.append(probe((fitting + failing) // 2))
        if probes[-1].fits:
            fitting = probes[-1].batch_size
        else:
            failing = probes[-1].batch_size
    return tuple(probes)


def largest_fitting(probes: list[BatchProbe] | tuple[BatchProbe, ...]) -> int | None:
    """None where not even one row fits."""
    return max((probe.batch_size for probe in probes if probe.fits), default=None)


def choose_batch(
    directory: Path, scenario: Scenario, prompts: Prompts, *, trust_remote_code: bool = False
) -> tuple[int, tuple[BatchProbe, ...]]:
    """The scenario's batch size, and the search that found it (none where the size is given).

    Raises DoesNotFitError where not even one row fits.
    """
    if scenario.scenario == "batch1":
        return 1, ()
    if scenario.device == "cpu":
        probe = predicting_probe(directory, scenario, trust_remote_code=trust_remote_code)
    else:
        probe = running_probe(directory, scenario, prompts, trust_remote_code=trust_remote_code)
    probes = search_largest_batch(probe, scenario.batch_size_cap)
    largest = largest_fitting(probes)
    if largest is None:
        last = probes[-1]
        raise DoesNotFitError(
            f"batch of 1: {format_bytes(last.needed_bytes)} needed, {format_bytes(last.available_bytes)} available; "
            "choose fewer tokens, a smaller rung or a device with more memory"
        )
    return largest, probes


def predicting_probe(directory: Path, scenario: Scenario, *, trust_remote_code: bool = False) -> Probe:
    """Predicts from weights, cache, activations and logits against the main memory that is available now."""
    from bitladder.checkpoint.loading import available_bytes, load_config, predicted_load_bytes

    config = load_config(directory, trust_remote_code=trust_remote_code)
    load_bytes = predicted_load_bytes(directory)
    free_bytes = available_bytes(scenario.device)

    def probe(batch_size: int) -> BatchProbe:
        working = predict_working_memory(config, batch_size, scenario.prompt_tokens, scenario.new_tokens)
        needed_bytes = load_bytes + working.total_bytes
        return BatchProbe(
            batch_size=batch_size,
            fits=needed_bytes <= free_bytes,
            how="predicted",
            needed_bytes=needed_bytes,
            available_bytes=free_bytes,
        )

    return probe


def running_probe(directory: Path, scenario: Scenario, prompts: Prompts, *, trust_remote_code: bool = False) -> Probe:
    """Runs the batch in a process of its own, so that a failure leaves nothing behind."""

    def probe(batch_size: int) -> BatchProbe:
        job = ProbeJob(
            directory=str(directory),
            scenario=scenario,
            token_ids=tuple(prompts.row(index) for index in range(batch_size)),
            trust_remote_code=trust_remote_code,
        )
        command = [sys.executable, "-P", "-m", "bitladder.perf.probe"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(job.model_dump_json().encode() + b"\n")
            process.stdin.flush()  # and stays open: the probe ends when this process does
            answer = process.stdout.readline()
        if answer:
            return BatchProbe.model_validate_json(answer)
        if process.returncode == KILLED:
            return BatchProbe(batch_size=batch_size, fits=False, how="run", needed_bytes=None, available_bytes=None)
        raise RuntimeError(f"the probe of batch {batch_size} ended with {process.returncode} and no answer")

    return probe
