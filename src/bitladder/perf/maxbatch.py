"""The largest batch that fits: a search over a probe, which predicts on a CPU and runs on a GPU in a worker."""

import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bitladder.errors import DoesNotFitError
from bitladder.executors.executor import RAISED
from bitladder.executors.table import open_executor
from bitladder.perf.engines import find_engine
from bitladder.perf.memory import limit_memory, out_of_memory_does_not_fit, predict_working_memory
from bitladder.perf.resources import capacity_bytes, gpus_of, torch_memory_bytes, total_bytes, used_bytes
from bitladder.records import BatchProbe, LoadPolicy, Prompts, Record, Scenario
from bitladder.units import format_bytes

Probe = Callable[[int], BatchProbe]

STEP_SHARE = 1 / 32
"""The search ends when the first batch that fails is at most this share above the last that fits."""

TRUSTED_FAILURES = 2
"""After more, what runs needed does not foretell what fits, and the search bisects."""

GPU_GROWTH = 16
"""Two far sizes say more of what a row needs than two near ones, and small batches fit on most cards."""

KILLED = -9
_KILLED_FOR = "the system killed the process, most likely for want of main memory"
"""What the kernel does to a process that takes all of main memory."""

PROBE = "bitladder.perf.maxbatch"


class ProbeJob(Record):
    """What a probing process gets."""

    directory: str
    scenario: Scenario
    token_ids: tuple[tuple[int, ...], ...]
    policy: LoadPolicy
    card_limits: tuple[int, ...] = ()
    """bytes that each card in use has for it; empty where the driver doesn't say"""


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
    first_failing = min((probe for probe in probes if not probe.fits), key=lambda probe: probe.batch_size, default=None)
    failing = None if first_failing is None else first_failing.batch_size
    if fitting is None or fitting == cap or (failing is not None and failing - fitting <= _step(fitting)):
        return None
    if first_failing is not None and first_failing.reason is not None:
        return _below_refused(fitting, first_failing.batch_size)
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


def _below_refused(fitting: int, refused: int) -> int:
    """Where not memory but a kernel says no: what kernels can index ends at powers of two."""
    power = 1 << ((refused - 1).bit_length() - 1)
    if fitting > power:
        return (fitting + refused) // 2
    return power if fitting < power else min(fitting + _step(fitting), refused - 1)


def _step(fitting: int) -> int:
    return max(1, int(fitting * STEP_SHARE))


def _likely_largest(probes: list[BatchProbe]) -> int | None:
    """From the line through the two largest runs that fitted, of several cards on the one that is full first; None
    without two."""
    known = sorted((probe.batch_size, probe) for probe in probes if probe.fits and probe.how == "run")
    if len(known) < 2:
        return None
    (size, smaller), (larger_size, larger) = known[-2], known[-1]
    likely = [
        larger_size + int((available - large) * (larger_size - size) / (large - small))
        for small, large, available in zip(_needed(smaller), _needed(larger), _available(larger), strict=False)
        if large > small
    ]
    return min(likely, default=None)


def _needed(probe: BatchProbe) -> tuple[int, ...]:
    """Bytes of each card, where they are known."""
    return probe.card_needed_bytes or (() if probe.needed_bytes is None else (probe.needed_bytes,))


def _available(probe: BatchProbe) -> tuple[int, ...]:
    return probe.card_available_bytes or (() if probe.available_bytes is None else (probe.available_bytes,))


def largest_fitting(probes: list[BatchProbe] | tuple[BatchProbe, ...]) -> int | None:
    """None where not even one row fits."""
    return max((probe.batch_size for probe in probes if probe.fits), default=None)


def choose_batch(
    directory: Path,
    scenario: Scenario,
    prompts: Prompts,
    policy: LoadPolicy = LoadPolicy(),
    *,
    audited_bytes: int | None = None,
) -> tuple[int, tuple[BatchProbe, ...]]:
    """The scenario's batch size, and the search that found it (none where the size is given).

    Raises DoesNotFitError where not even one row fits.
    """
    given = scenario.scenario == "batch1"
    if given and (scenario.device != "cpu" or scenario.memory_limit_bytes is None):  # a GPU's limit is enforced
        return 1, ()
    if scenario.device == "cpu":
        probe = predicting_probe(directory, scenario, audited_bytes, policy)
        probes = search_largest_batch(probe, 1 if given else scenario.batch_size_cap)
    else:
        with running_probe(directory, scenario, prompts, policy) as probe:
            probes = search_largest_batch(probe, scenario.batch_size_cap, GPU_GROWTH)
    largest = largest_fitting(probes)
    if largest is None:
        last = probes[-1]
        if last.reason is not None:
            raise RuntimeError(f"batch of 1: {last.reason}")
        raise DoesNotFitError(
            last.ran_out
            or f"batch of 1: {format_bytes(last.needed_bytes)} needed, {format_bytes(last.available_bytes)} available; "
            "choose fewer tokens, a smaller rung or a device with more memory"
        )
    return largest, () if given else probes


def predicting_probe(
    directory: Path, scenario: Scenario, audited_bytes: int | None = None, policy: LoadPolicy = LoadPolicy()
) -> Probe:
    """Predicts from weights, cache, activations and logits against the main memory that is available now.

    ``audited_bytes``: of the weights after a forward, where that is known: another library's may be dense by then.
    """
    from bitladder.checkpoint.config import read_config
    from bitladder.checkpoint.expected import value_bytes
    from bitladder.checkpoint.loading import available_bytes, predicted_load_bytes
    from bitladder.checkpoint.scheme import found_scheme
    from bitladder.checkpoint.skeleton import build_skeleton
    from bitladder.checkpoint.tensors import read_tensors

    skeleton = build_skeleton(directory, policy)
    width = value_bytes(found_scheme(read_config(directory), read_tensors(directory)))
    row = predict_working_memory(skeleton, width, scenario.prompt_tokens, scenario.new_tokens)
    load_bytes = max(predicted_load_bytes(directory), audited_bytes or 0)
    free_bytes = available_bytes(scenario.device)
    if scenario.memory_limit_bytes is not None:
        free_bytes = min(free_bytes, scenario.memory_limit_bytes)

    def probe(batch_size: int) -> BatchProbe:
        needed_bytes = load_bytes + row.of_rows(batch_size).total_bytes
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
    directory: Path, scenario: Scenario, prompts: Prompts, policy: LoadPolicy = LoadPolicy()
) -> Iterator[Probe]:
    """Runs each batch in a process of its own, so that a failure leaves nothing behind."""
    gpus = gpus_of(scenario.device)
    limits = card_limits(capacity_bytes(gpus), used_bytes(gpus), scenario.memory_limit_bytes, len(gpus))

    def probe(batch_size: int) -> BatchProbe:
        job = ProbeJob(
            directory=str(directory),
            scenario=scenario,
            token_ids=tuple(prompts.row(index) for index in range(batch_size)),
            policy=scenario.policy(policy),
            card_limits=limits,
        )
        with tempfile.TemporaryFile() as log:
            answer, code = executor.ask(job.model_dump_json(), log)
            log.seek(0)
            printed = log.read().decode(errors="replace")
        sys.stderr.write(printed)
        if answer:
            found = BatchProbe.model_validate_json(answer)
        elif code == RAISED:
            raise RuntimeError(f"the probe of batch {batch_size} raised; its traceback is in the log")
        else:
            found = BatchProbe(
                batch_size=batch_size,
                fits=False,
                how="run",
                needed_bytes=None,
                available_bytes=None,
                reason=None if code == KILLED else _describe_end(code, printed),
                ran_out=f"batch of {batch_size}: {_KILLED_FOR}" if code == KILLED else None,
            )
        if not limits:  # the driver gives no figure; what there is the probe has from torch
            return found
        available = {"available_bytes": total_bytes(limits), "card_available_bytes": limits if len(gpus) > 1 else ()}
        return found.model_copy(update=available)

    with open_executor(PROBE, None, with_gpu=bool(gpus), trust_remote_code=policy.trust_remote_code) as executor:
        yield probe


def _describe_end(code: int, printed: str) -> str:
    """Of a process that a library ended: bitsandbytes' CUDA code prints a line and exits, and a kernel may crash."""
    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return f"a library ended the process ({how})" + (f": {lines[-1]}" if lines else "")


def card_limits(capacity: Sequence[int], idle: Sequence[int], limit_bytes: int | None, cards: int) -> tuple[int, ...]:
    """Bytes of each card that a run may take: what is free, and no more than the limit; none where neither is known."""
    free = tuple(whole - used for whole, used in zip(capacity, idle, strict=False))
    if limit_bytes is None:
        return free
    return tuple(min(size, limit_bytes) for size in free) or (limit_bytes,) * cards


ROOMY_SHARE = 0.75
"""Above this share of the memory a second run is made, which meets the allocator as the first one left it."""


def work(job: str, answers: TextIO) -> None:
    """Do this job, and answer it."""
    print(try_batch(ProbeJob.model_validate_json(job)).model_dump_json(), file=answers)


def try_batch(job: ProbeJob) -> BatchProbe:
    """Whether the batch runs. What torch refuses for another cause than memory, such as a kernel that can't index so
    many rows, is an answer too, with its reason; with one row it is whoever asks that makes it an error."""
    batch_size = len(job.token_ids)
    scenario = job.scenario
    gpus = gpus_of(scenario.device)
    idle_bytes = used_bytes(gpus)
    needed_bytes: tuple[int, ...] = ()
    available_bytes: tuple[int, ...] = ()
    reason = ran_out = None
    started_s = time.perf_counter()
    try:
        with out_of_memory_does_not_fit(f"batch of {batch_size}"):
            limit_memory(scenario.device, scenario.memory_limit_bytes, idle_bytes)
            engine = find_engine(scenario.engine).start(Path(job.directory), job.policy)
            engine.run(job.token_ids, scenario.new_tokens)
            if not _is_roomy(_held_bytes(gpus, idle_bytes), job.card_limits):
                engine.run(job.token_ids, scenario.new_tokens)
        needed_bytes = _held_bytes(gpus, idle_bytes)
        limit_bytes = scenario.memory_limit_bytes
        if not needed_bytes:  # nor does anything tell what was in use before: all that is counts
            needed_bytes, available_bytes = torch_memory_bytes(scenario.device)
        fits = limit_bytes is None or max(needed_bytes, default=0) <= limit_bytes
    except DoesNotFitError as error:
        fits, ran_out = False, str(error)
    except RuntimeError as error:
        traceback.print_exc()
        fits, reason = False, f"RuntimeError: {str(error).splitlines()[0]}"
    return BatchProbe(
        batch_size=batch_size,
        fits=fits,
        how="run",
        needed_bytes=total_bytes(needed_bytes),
        available_bytes=total_bytes(available_bytes),
        card_available_bytes=available_bytes if len(available_bytes) > 1 else (),
        card_needed_bytes=needed_bytes if len(needed_bytes) > 1 else (),
        duration_s=time.perf_counter() - started_s,
        reason=reason,
        ran_out=ran_out,
    )


def _held_bytes(gpus: tuple[str, ...], idle_bytes: tuple[int, ...]) -> tuple[int, ...]:
    """The peak until now of each card: torch keeps what it reserved."""
    return tuple(held - idle for held, idle in zip(used_bytes(gpus), idle_bytes, strict=False))


def _is_roomy(held_bytes: tuple[int, ...], limits: tuple[int, ...]) -> bool:
    """Whether every card has room left; False where the driver doesn't say."""
    known = 0 < len(held_bytes) == len(limits)
    return known and all(held <= ROOMY_SHARE * limit for held, limit in zip(held_bytes, limits, strict=True))
