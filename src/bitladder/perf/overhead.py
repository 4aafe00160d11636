"""What a measuring process takes beside a model's weights and batches: its libraries, on a GPU the device's context.

Found by running a model of next to no weights in a process like those that measure.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from bitladder.allocator import give_back_freed
from bitladder.devices import torch_devices
from bitladder.executors.executor import Executor
from bitladder.methods.types import torch_dtype
from bitladder.perf.engines.engine import Engine
from bitladder.perf.engines.table import find_engine
from bitladder.perf.memory import resident_bytes
from bitladder.perf.monitor import open_gpus
from bitladder.perf.resources import gpus_of, total_bytes, used_bytes
from bitladder.records import Scheme
from bitladder.rungs import find_rung, method_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OVERHEAD = "bitladder.perf.overhead"
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

    from bitladder.checkpoint.footprint import loaded_bytes

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
