"""Which matrix products a model's forwards run: some libraries take another kernel by the number of rows."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PRODUCTS = ("gemm", "gemv", "dequant", "mm", "matmul")
"""in the names of products and of what prepares them, of torch's operators and of a GPU's kernels"""


@contextmanager
def products_seen(model: "PreTrainedModel", forwards: int) -> "Iterator[list[str]]":
    """Fills the list from the first forwards in the block, such as ``64 rows: 210 bitsandbytes::gemv_4bit``."""
    from torch.profiler import ProfilerActivity, profile

    found: list[str] = []
    on_gpu = model.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    running: list[Any] = []

    def abandon() -> None:
        """Of a forward that did not end: one that ran out of memory is tried again."""
        while running:
            running.pop().stop()

    def begin(*_: Any) -> None:
        abandon()
        if len(found) < forwards:
            running.append(profile(activities=activities))
            running[0].start()

    def end(_: Any, arguments: tuple[Any, ...], options: dict[str, Any], __: Any) -> None:
        if running:
            profiler = running.pop()
            profiler.stop()
            tokens = arguments[0] if arguments else options["input_ids"]  # lm-eval names none
            found.append(_describe(profiler, tokens.numel(), on_gpu))

    with model.register_forward_pre_hook(begin), model.register_forward_hook(end, with_kwargs=True):
        try:
            yield found
        finally:
            abandon()


def _describe(profiler: Any, rows: int, on_gpu: bool) -> str:
    """On a GPU its own kernels, which say more than the operators that launch them."""
    wanted = "CUDA" if on_gpu else "CPU"
    names = (event.name for event in profiler.events() if event.device_type.name == wanted)
    counts = Counter(name for name in names if any(part in name.lower() for part in _PRODUCTS))
    return f"{rows} rows: " + (", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none seen")
