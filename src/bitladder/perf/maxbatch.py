"""The largest batch that fits: a search over a probe, which predicts on a CPU and runs on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bitladder.errors import DoesNotFitError
from bitladder.forkserver import ForkServer
from bitladder.perf.memory import predict_working_memory
from bitladder.perf.resources import device_bytes, device_capacity_bytes, gpu_of
from bitladder.records import BatchProbe, Prompts, Record, Scenario
from bitladder.units import format_bytes

Probe = Callable[[int], BatchProbe]

STEP_SHARE = 1 / 32
"""The search ends when the first batch that fails is at most this share above the last that fits."""

TRUSTED_FAILURES = 2
"""After more, what runs needed does not foretell what fits, and the search bisects."""

GPU_GROWTH = 16
"""Two far sizes say more of what a row needs than two near ones, and small batches fit on most cards."""

KILLED = -9
"""What the kernel does to a process that takes all of main memory."""

PROBE = "bitladder.perf.probe"


class ProbeJob(Record):
    """What a probing process gets on its standard input, in one line."""

    directory: str
    scenario: Scenario
    token_ids: tuple[tuple[int, ...], ...]
    trust_remote_code: bool


def search_largest_batch(probe: Probe, cap: int | None, growth: int = 2) -> tuple[BatchProbe, ...]:
    """Grow from 1 by ``growth`` until a batch fails or ``cap`` fits, then close in. All probes, in their order.

    Where two probes said what they needed, the next is a batch that should just fit: memory grows evenly with the
    batch, so that a run or two replace a bisection.
    """
    probes = [probe(1)]
    while (size := _next_size(probes, cap, growth)) is not None:
        probes.append(probe(size))
    return tuple(probes)


def _next_size(probes: list[BatchProbe], cap: int | None, growth: int) -> int | None:
    """The batch to try next, None at the end."""
    fitting = largest_fitting(probes)
    failing = min((probe.batch_size for probe in probes if not probe.fits), default=None)
    if fitting is None or fitting == cap or (failing is not None and failing - fitting <= _step(fitting)):
        return None
    failures = sum(not probe.fits for probe in probes)
    likely = _likely_largest(probes) if failures <= TRUSTED_FAILURES else None
    if likely is None or (failing is not None and likely >= failing):
        size = growth * fitting if failing is None else (fitting + failing) // 2
    else:
        # a step below what should fit, so that it does and says more; next to it, a step above, which ends the search
        below = likely - _step(likely)
        size = below if below > fitting else fitting + _step(fitting)
    if failing is not None:
        return min(size, failing - 1)
    return size if cap is None else min(size, cap)


def _step(fitting: int) -> int:
    return max(1, int(fitting * STEP_SHARE))


def _likely_largest(probes: list[BatchProbe]) -> int | None:
    """From the line through the two largest runs that fitted; None without two."""
    known = sorted((probe.batch_size, probe) for probe in probes if probe.fits and probe.how == "run")
    if len(known) < 2:
        return None
    (size, smaller), (larger_size, larger) = known[-2], known[-1]
    if larger.available_bytes is None or larger.needed_bytes is None or smaller.needed_bytes is None:
        return None
    row_bytes = (larger.needed_bytes - smaller.needed_bytes) / (larger_size - size)
    if row_bytes <= 0:
        return None
    return larger_size + int((larger.available_bytes - larger.needed_bytes) / row_bytes)


def largest_fitting(probes: list[BatchProbe] | tuple[BatchProbe, ...]) -> int | None:
    """None where not even one row fits."""
    return max((probe.batch_size for probe in probes if probe.fits), default=None)


def choose_batch(
    directory: Path,
    scenario: Scenario,
    prompts: Prompts,
    *,
    audited_bytes: int | None = None,
    trust_remote_code: bool = False,
) -> tuple[int, tuple[BatchProbe, ...]]:
    """The scenario's batch size, and the search that found it (none where the size is given).

    Raises DoesNotFitError where not even one row fits.
    """
    if scenario.scenario == "batch1":
        return 1, ()
    if scenario.device == "cpu":
        probe = predicting_probe(directory, scenario, audited_bytes, trust_remote_code=trust_remote_code)
        probes = search_largest_batch(probe, scenario.batch_size_cap)
    else:
        with running_probe(directory, scenario, prompts, trust_remote_code=trust_remote_code) as probe:
            probes = search_largest_batch(probe, scenario.batch_size_cap, GPU_GROWTH)
    largest = largest_fitting(probes)
    if largest is None:
        last = probes[-1]
        if last.reason is not None:
            raise RuntimeError(f"batch of 1: {last.reason}")
        raise DoesNotFitError(
            f"batch of 1: {format_bytes(last.needed_bytes)} needed, {format_bytes(last.available_bytes)} available; "
            "choose fewer tokens, a smaller rung or a device with more memory"
        )
    return largest, probes


def predicting_probe(
    directory: Path, scenario: Scenario, audited_bytes: int | None = None, *, trust_remote_code: bool = False
) -> Probe:
    """Predicts from weights, cache, activations and logits against the main memory that is available now.

    ``audited_bytes``: of the weights after a forward, where that is known: another library's may be dense by then.
    """
    from bitladder.checkpoint.loading import available_bytes, load_config, predicted_load_bytes

    config = load_config(directory, trust_remote_code=trust_remote_code)
    load_bytes = max(predicted_load_bytes(directory), audited_bytes or 0)
    free_bytes = available_bytes(scenario.device)
    if scenario.memory_limit_bytes is not None:
        free_bytes = min(free_bytes, scenario.memory_limit_bytes)

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


@contextmanager
def running_probe(
    directory: Path, scenario: Scenario, prompts: Prompts, *, trust_remote_code: bool = False
) -> Iterator[Probe]:
    """Runs each batch in a process of its own, so that a failure leaves nothing behind."""
    gpu = gpu_of(scenario.device)
    idle_bytes, capacity_bytes = device_bytes(gpu), device_capacity_bytes(gpu)
    free_bytes = None if idle_bytes is None or capacity_bytes is None else capacity_bytes - idle_bytes
    limits = [limit for limit in (free_bytes, scenario.memory_limit_bytes) if limit is not None]

    def probe(batch_size: int) -> BatchProbe:
        job = ProbeJob(
            directory=str(directory),
            scenario=scenario,
            token_ids=tuple(prompts.row(index) for index in range(batch_size)),
            trust_remote_code=trust_remote_code,
        )
        answer, code = server.ask(job.model_dump_json())
        if answer:
            found = BatchProbe.model_validate_json(answer)
        elif code == KILLED:
            found = BatchProbe(batch_size=batch_size, fits=False, how="run", needed_bytes=None, available_bytes=None)
        else:
            raise RuntimeError(f"the probe of batch {batch_size} ended with {code} and no answer")
        return found.model_copy(update={"available_bytes": min(limits, default=None)})

    with ForkServer(PROBE, None, with_gpu=gpu is not None) as server:
        yield probe
