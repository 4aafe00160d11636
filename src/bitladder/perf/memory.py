"""Memory: what a batch is predicted to need, what a process takes beside it, and what was really used."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import psutil

from bitladder.checkpoint.skeleton import cache_bytes, embedding_width, layer_count, vocabulary_size, widest_layer
from bitladder.errors import DoesNotFitError
from bitladder.executors.executor import Executor
from bitladder.machine.cards import cards_of, torch_devices
from bitladder.machine.host import give_back_freed
from bitladder.methods import find_rung, method_of
from bitladder.methods.method import torch_dtype
from bitladder.perf.engines import find_engine
from bitladder.perf.engines.engine import Engine
from bitladder.perf.monitor import open_gpus
from bitladder.perf.resources import gpus_of, total_bytes, used_bytes
from bitladder.records import Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOAT32_BYTES = 4

OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a RuntimeError says when it is torch.OutOfMemoryError in all but type."""


@dataclass(frozen=True)
class WorkingMemory:
    """Bytes that one batch needs beside the loaded model: an estimate from above."""

    cache_bytes: int
    activation_bytes: int
    logits_bytes: int
    workspace_bytes: int
    """one weight matrix in FP32, which kernels without native support make at every call"""

    @property
    def total_bytes(self) -> int:
        return self.cache_bytes + self.activation_bytes + self.logits_bytes + self.workspace_bytes

    def of_rows(self, rows: int) -> "WorkingMemory":
        """Of so many such rows; they share the workspace."""
        return replace(
            self,
            cache_bytes=rows * self.cache_bytes,
            activation_bytes=rows * self.activation_bytes,
            logits_bytes=rows * self.logits_bytes,
        )


def predict_working_memory(
    skeleton: "PreTrainedModel", value_bytes: int, prompt_tokens: int, new_tokens: int
) -> WorkingMemory:
    """Estimate for one row of a decoder whose logits are computed for the last position alone, as ``generate`` does.

    ``skeleton``: of `build_skeleton`; ``value_bytes``: of the type that it will compute in. Activations are those of
    the prefill's widest layer in FP32: residual, norm, query, key, value and attention output (hidden size each), gate,
    up and their product (the widest layer's features each).
    """
    hidden = embedding_width(skeleton)
    wide = max(widest_layer(skeleton))
    cache = cache_bytes(skeleton, prompt_tokens + new_tokens, value_bytes)
    return WorkingMemory(
        cache_bytes=cache + cache // layer_count(skeleton),  # growing by a token copies one layer's
        activation_bytes=prompt_tokens * (6 * hidden + 3 * wide) * FLOAT32_BYTES,
        logits_bytes=vocabulary_size(skeleton) * (value_bytes + 2 * FLOAT32_BYTES),
        workspace_bytes=hidden * max(wide, hidden) * FLOAT32_BYTES,
    )


@contextmanager
def out_of_memory_does_not_fit(what: str) -> Iterator[None]:
    """Turn running out of memory, and nothing else, into DoesNotFitError."""
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        by_type = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not by_type and not any(text in str(error) for text in OUT_OF_MEMORY_TEXTS):
            raise
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DoesNotFitError(
            f"{what}: ran out of memory ({first_line}); choose a smaller batch, fewer tokens or a device with more "
            "memory"
        ) from None


def resident_bytes() -> int:
    """Resident size of this process."""
    return int(psutil.Process().memory_info().rss)


class PeakResident:
    """Highest resident size of this process since this was made.

    Exact where Linux lets a process reset its own high-water mark, else the highest of the readings taken.
    """

    _STATUS = Path("/proc/self/status")
    _RESET = Path("/proc/self/clear_refs")

    def __init__(self) -> None:
        self._highest = 0
        try:
            self._RESET.write_text("5", encoding="utf-8")
            self._exact = True
        except OSError:
            self._exact = False
        self.read()

    def read(self) -> int:
        """Bytes, as of now."""
        self._highest = max(self._highest, resident_bytes(), self._high_water_mark() if self._exact else 0)
        return self._highest

    def _high_water_mark(self) -> int:
        line = next(line for line in self._STATUS.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024


def limit_memory(device: str, limit_bytes: int | None, idle_bytes: Sequence[int]) -> None:
    """Let this process take no more of a GPU than ``limit_bytes``, as if the card were that small; of several, of each.

    torch's allocator gets what the CUDA context leaves; ``idle_bytes`` is what was in use of each card before, where
    that is known. Kernels that are loaded later are not counted here: whoever measures looks at the device's own figure
    afterwards.
    """
    if limit_bytes is None or device == "cpu":
        return
    import torch

    from bitladder.checkpoint.loading import use_device

    use_device(device)
    for index, card in enumerate(torch_devices(device)):
        torch.ones(1, device=card).sum().item()  # starts the context
        free_bytes, total_bytes = torch.cuda.mem_get_info(card)
        own_idle_bytes = idle_bytes[index] if idle_bytes else 0
        outside_bytes = total_bytes - free_bytes - own_idle_bytes - torch.cuda.memory_reserved(card)
        share = (limit_bytes - outside_bytes) / total_bytes
        torch.cuda.set_per_process_memory_fraction(min(max(share, 0.0), 1.0), card)


class PeakDevice:
    """Highest allocated and reserved bytes of torch's allocator since this was made, over all cards of the device.

    Each card's own peak counts, wherever in time it was: the memory that each of them must have.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._cards = cards_of(device)
        for card in self._cards:
            torch.cuda.reset_peak_memory_stats(card)

    def read(self) -> tuple[int | None, int | None]:
        """(allocated, reserved), as of now; None where there is no GPU."""
        import torch

        if not self._cards:
            return None, None
        return (
            sum(torch.cuda.max_memory_allocated(card) for card in self._cards),
            sum(torch.cuda.max_memory_reserved(card) for card in self._cards),
        )


OVERHEAD = "bitladder.perf.memory"
"""the executor's target"""

_PROMPT: Sequence[Sequence[int]] = ((1,) * 32,)
_NEW_TOKENS = 8
_OUTLIER_GAIN = 16.0
"""of the norm before a layer: LLM.int8's kernels for outliers are loaded only where there are some"""


def unknown_overhead(device: str) -> str:
    """Why `measure_overhead` found nothing."""
    _, unavailable = open_gpus(gpus_of(device))
    return unavailable.get("gpu_memory_bytes", "a model of next to no weights did not run")


def measure_overhead(executor: Executor, device: str, rungs: Iterable[str], engine: str) -> dict[str, int]:
    """By method of quantization, of those of ``rungs``: bytes of the memory that a peak counts, of the device on a GPU,
    else resident. Without those that could not be found.

    Each method loads kernels and libraries of its own: LLM.int8's take more of a GPU than they save of a small model.
    ``executor`` is of `OVERHEAD`.
    """
    by_method = {find_rung(rung).scheme.method: rung for rung in rungs}
    found: dict[str, int] = {}
    for method, rung in by_method.items():
        answer, _ = executor.ask(f"{device} {rung} {engine}")
        if answer.isdigit():
            found[method] = int(answer)
    return found


def work(job: str, answers: TextIO) -> None:
    """Answer with the number of bytes for the device, rung and engine that ``job`` names, of all its cards; with
    nothing where they aren't known."""
    device, rung, engine = job.split()
    of_model = find_engine(engine).of_model
    if of_model is None:
        return
    gpus = gpus_of(device)
    idle_bytes = total_bytes(used_bytes(gpus))
    own_bytes = sum(run_tiny_model(one, find_rung(rung).scheme, of_model) for one in torch_devices(device))
    give_back_freed()
    found_bytes = resident_bytes() if device == "cpu" else total_bytes(used_bytes(gpus))
    if found_bytes is not None and (device == "cpu" or idle_bytes is not None):
        print(found_bytes - (idle_bytes or 0) - own_bytes, file=answers)


def run_tiny_model(device: str, scheme: Scheme, of_model: "Callable[[PreTrainedModel], Engine]") -> int:
    """Its own weights in bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from bitladder.checkpoint.memory import loaded_bytes

    config = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=1024, num_hidden_layers=1, num_attention_heads=4
    )
    method = method_of(scheme)
    model = LlamaForCausalLM(config).to(torch_dtype(scheme.rest_type))
    layer = model.model.layers[0]
    layer.input_layernorm.weight.data[:8] = layer.post_attention_layernorm.weight.data[:8] = _OUTLIER_GAIN
    for part in (layer.self_attn, layer.mlp):
        for name, linear in list(part.named_children()):
            if hasattr(linear, "in_features"):
                made = method.make_layer(scheme, int(linear.in_features), int(linear.out_features), device)
                setattr(part, name, made)
    model.to(device)
    if device == "cpu":
        method.prepare_layers(model)
    of_model(model).run(_PROMPT, _NEW_TOKENS)
    return loaded_bytes(model)
