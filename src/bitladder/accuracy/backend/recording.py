"""CUDA graphs: what a function does on a GPU, recorded once and launched as one."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, device
    from torch.cuda import Stream
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Replay:
    """What was recorded."""

    run: Callable[[], None]
    answer: "Tensor"
    """where each run leaves what the function returned"""


Record = Callable[[Callable[[], "Tensor"]], Replay]
"""Records what a function does on the device, without doing it."""

_failed: list[Any] = []
"""Graphs that could not be recorded. The allocator goes on asking them, and another would be recorded into theirs: they
are kept, and nothing is recorded any more in this process."""


def recorder(model: "PreTrainedModel") -> Record | None:
    """Graphs on the model's device, which share their memory: only the last one's answer stands. None where recording
    failed before."""
    import torch

    if _failed:
        return None
    pool: Any = torch.cuda.graph_pool_handle()
    where = model.device

    def record(function: Callable[[], "Tensor"]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        random = torch.cuda.default_generators[where.index]
        before = random.clone_state()
        # torch leaves the stream that it records on only where recording succeeds.
        with torch.cuda.device(where), torch.cuda.stream(torch.cuda.current_stream()):
            try:
                with torch.cuda.graph(graph, pool=pool, stream=_stream(where), capture_error_mode="thread_local"):
                    answer = function()
            except RuntimeError:
                _failed.append(graph)
                random.graphsafe_set_state(before)  # the state at hand waits for the recording's end
                with suppress(RuntimeError):  # where torch has done so itself
                    torch._C._cuda_endAllocateToPool(where.index, pool)
                raise
        return Replay(graph.replay, answer)

    return record


@lru_cache
def _stream(where: "device") -> "Stream":
    """One a device: each has a workspace of cuBLAS's."""
    import torch

    return torch.cuda.Stream(where)  # type: ignore[no-untyped-call]
