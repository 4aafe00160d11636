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
from bitladder.perf.resources import device_bytes, gpu_of
from bitladder.records import BatchProbe

RUNS = 2
"""The second run meets the allocator as the first one left it."""


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
    needed_bytes = reason = None
    started_s = time.perf_counter()
    try:
        with out_of_memory_does_not_fit(f"batch of {batch_size}"):
            limit_memory(scenario.device, scenario.memory_limit_bytes, idle_bytes)
            model = load_model(Path(job.directory), scenario.device, trust_remote_code=job.trust_remote_code)
            engine = start_engine(scenario.engine, model)
            for _ in range(RUNS):
                engine.run(job.token_ids, scenario.new_tokens)
        # torch keeps what it reserved, so that this is the peak
        held_bytes = device_bytes(gpu)
        if held_bytes is not None and idle_bytes is not None:
            needed_bytes = held_bytes - idle_bytes
        limit_bytes = scenario.memory_limit_bytes
        fits = limit_bytes is None or needed_bytes is None or needed_bytes <= limit_bytes
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
        available_bytes=None,
        duration_s=time.perf_counter() - started_s,
        reason=reason,
    )
