"""A process that tries one batch: reads a ``ProbeJob`` line, runs the batch, writes a ``BatchProbe`` line."""

import os
import sys
import threading
from pathlib import Path

from bitladder.errors import DoesNotFitError
from bitladder.perf.engines import start_engine
from bitladder.perf.maxbatch import ProbeJob
from bitladder.perf.memory import PeakDevice, out_of_memory_does_not_fit
from bitladder.records import BatchProbe

RUNS = 2
"""The second run meets the allocator as the first one left it."""


def main() -> None:
    job = ProbeJob.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print(try_batch(job).model_dump_json(), flush=True)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def try_batch(job: ProbeJob) -> BatchProbe:
    """Whether the batch runs; running out of memory is an answer, every other error is not caught."""
    from bitladder.checkpoint.loading import load_model

    batch_size = len(job.token_ids)
    device = job.scenario.device
    peak = PeakDevice(device)
    try:
        with out_of_memory_does_not_fit(f"batch of {batch_size}"):
            model = load_model(Path(job.directory), device, trust_remote_code=job.trust_remote_code)
            engine = start_engine(job.scenario.engine, model)
            for _ in range(RUNS):
                engine.run(job.token_ids, job.scenario.new_tokens)
        fits = True
    except DoesNotFitError:
        fits = False
    _, reserved_bytes = peak.read()
    return BatchProbe(
        batch_size=batch_size,
        fits=fits,
        how="run",
        needed_bytes=reserved_bytes if fits else None,
        available_bytes=_device_bytes(device),
    )


def _device_bytes(device: str) -> int | None:
    import torch

    return torch.cuda.get_device_properties(device).total_memory if device.startswith("cuda") else None


if __name__ == "__main__":
    main()
