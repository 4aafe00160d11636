"""A worker that tries one batch: gets a `ProbeJob`, runs the batch, answers with a `BatchProbe`."""

import time
import traceback
from pathlib import Path
from typing import TextIO

from bitladder.errors import DoesNotFitError
from bitladder.perf.engines.table import find_engine
from bitladder.perf.maxbatch import ProbeJob
from bitladder.perf.memory import limit_memory, out_of_memory_does_not_fit
from bitladder.perf.resources import gpus_of, torch_memory_bytes, total_bytes, used_bytes
from bitladder.records import BatchProbe

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
