"""What a measuring process takes beside a model's weights and batches: its libraries, on a GPU the device's context.

Found by running a model of next to no weights in a process like those that measure.
"""

import os
from collections.abc import Sequence

from bitladder.allocator import give_back_freed
from bitladder.devices import torch_devices
from bitladder.forkserver import ForkServer, take_job
from bitladder.perf.engines import start_engine
from bitladder.perf.memory import resident_bytes
from bitladder.perf.monitor import open_gpus
from bitladder.perf.resources import gpus_of, total_bytes, used_bytes

OVERHEAD = "bitladder.perf.overhead"
"""the server's target"""

_PROMPT: Sequence[Sequence[int]] = ((1,) * 8,)
_NEW_TOKENS = 8


def unknown_overhead(device: str) -> str:
    """Why `measure_overhead` found nothing."""
    _, unavailable = open_gpus(gpus_of(device))
    return unavailable.get("gpu_memory_bytes", "a model of next to no weights did not run")


def measure_overhead(server: ForkServer, device: str) -> int | None:
    """Bytes of the memory that a peak counts: of the device on a GPU, else resident. None where it could not be found.

    ``server`` forks for `OVERHEAD`.
    """
    answer, _ = server.ask(device)
    return int(answer) if answer.strip().isdigit() else None


def work(descriptor: int) -> None:
    """Write the number of bytes for the device that is named on standard input, of all its cards."""
    device = take_job().strip()
    gpus = gpus_of(device)
    idle_bytes = total_bytes(used_bytes(gpus))
    for one in torch_devices(device):
        run_tiny_model(one)
    give_back_freed()
    found_bytes = resident_bytes() if device == "cpu" else total_bytes(used_bytes(gpus))
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        if found_bytes is not None and (device == "cpu" or idle_bytes is not None):
            file.write(str(found_bytes - (idle_bytes or 0)))


def run_tiny_model(device: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config).bfloat16()
    model.to(device)  # type: ignore[arg-type]
    start_engine("eager", model).run(_PROMPT, _NEW_TOKENS)
