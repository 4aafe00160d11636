"""A process that tries one batch: reads a ``ProbeJob`` line, runs the batch, writes a ``BatchProbe`` line."""

import os
import time
import traceback
from pathlib import Path

from bitladder.errors import DoesNotFitError
from bitladder.forkserver import take_job
from bitladder.perf.engines import start_engine
from bitladder.perf.maxbatch import ProbeJob
from bitladder.perf.memory import limit_memory, out_of_memory_does_not_fit
from bitladder.perf.resources import device_bytes, device_capacity_bytes, gpu_of
from bitladder.records import BatchProbe

ROOMY_SHARE = 0.75
"""Above this share of the memory a second run is made, which meets the allocator as the first one left it."""


def work(descriptor: int) -> None:
    """Do the job on standard input, with the answer to ``descriptor``."""
    job = ProbeJob.model_validate_json(take_job())
    with os.fdopen(descriptor, "w") as file:
        file.write(try_batch(job).model_dump_json())


def try_batch(job: ProbeJob) -> BatchProbe:
    """Whether the batch runs. What torch refuses for another cause than memory, such as a kernel that can't index so
    many rows, is an answer too, with its reason; with one row it is whoever asks that makes it an error."""
    from bitladder.checkpoint.loading import load_model

    batch_size = len(job.token_ids)
    scenario = job.scenario
    gpu = gpu_of(scenario.device)
    idle_bytes = device_bytes(gpu)
    available_bytes = _available_bytes(gpu, idle_bytes, scenario.memory_limit_bytes)
    needed_bytes = reason = None
    started_s = time.perf_counter()
    try:
        with out_of_memory_does_not_fit(f"batch of {batch_size}"):
            limit_memory(scenario.device, scenario.memory_limit_bytes, idle_bytes)
            model = load_model(Path(job.directory), scenario.device, trust_remote_code=job.trust_remote_code)
            engine = start_engine(scenario.engine, model)
            engine.run(job.token_ids, scenario.new_tokens)
            needed_bytes = _held_bytes(gpu, idle_bytes)
            if needed_bytes is None or available_bytes is None or needed_bytes > ROOMY_SHARE * available_bytes:
                engine.run(job.token_ids, scenario.new_tokens)
                needed_bytes = _held_bytes(gpu, idle_bytes)
        fits = available_bytes is None or needed_bytes is None or needed_bytes <= available_bytes
    except DoesNotFitError:
        fits = False
    except RuntimeError as error:
        traceback.print_exc()
        fits, reason = False, f"RuntimeError: {str(error).splitlines()[0]}"
    return BatchProbe(
        batch_size=batch_size,
        fits=fits,
        how="run",
        needed_bytes=needed_bytes,
        available_bytes=available_bytes,
        duration_s=time.perf_counter() - started_s,
        reason=reason,
    )


def _available_bytes(gpu: str | None, idle_bytes: int | None, limit_bytes: int | None) -> int | None:
    """What this process can take of the device, None where neither the driver nor the user says."""
    capacity_bytes = device_capacity_bytes(gpu)
    free_bytes = None if idle_bytes is None or capacity_bytes is None else capacity_bytes - idle_bytes
    return min((limit for limit in (free_bytes, limit_bytes) if limit is not None), default=None)


def _held_bytes(gpu: str | None, idle_bytes: int | None) -> int | None:
    """The peak until now: torch keeps what it reserved."""
    held_bytes = device_bytes(gpu)
    return None if held_bytes is None or idle_bytes is None else held_bytes - idle_bytes
