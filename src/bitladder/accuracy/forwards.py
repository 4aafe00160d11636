"""The forwards that answer a task's questions: their rows, which kernels multiplied, what a profiler saw."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bitladder.methods import METHODS
from bitladder.methods.method import UnknownKernelError, Widens
from bitladder.records import ProductKernel, Scoring, join_kernels

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from bitladder.accuracy.backend.speedups import Speedups

ALONE = "asked one by one, since padding changes what the model says"
"""what a reader of the results has to know where lm-eval's way of batches is left"""
UNTRIED = "asked one by one, since the trial of whether padding changes what the model says failed"

OnForward = Callable[[int, set[str], "Tensor"], None]
"""Is told of a forward: its rows, the names of its attention, and whether a logit was no number, left on the device."""


class Forwards:
    """How many forwards there were of each number of rows, and how they attended."""

    def __init__(self) -> None:
        self.rows: Counter[int] = Counter()
        self.attention: set[str] = set()
        self.generating = 0
        """forwards that gave next tokens"""
        self.overflowed = 0
        """those of them with logits that are no numbers, for which torch and lm-eval take a token all the same"""

        self.side_by_side = 0
        """texts that our own backend generated at once, at most"""

    @property
    def remarks(self) -> tuple[str, ...]:
        if not self.overflowed:
            return ()
        return (
            f"overflowed: logits were not numbers in {self.overflowed} of {self.generating} forwards that generated, "
            "which spoils these texts and may spoil those beside them in a batch",
        )

    def __iadd__(self, other: "Forwards") -> "Forwards":
        self.rows += other.rows
        self.attention |= other.attention
        return self

    def add(self, rows: int, attention: set[str]) -> None:
        self.rows[rows] += 1
        self.attention |= attention

    @contextmanager
    def generated(self) -> "Iterator[OnForward]":
        """Gives what is to be told of each forward that generates."""
        broken: list[Tensor] = []  # left on the device, so that nothing waits for it

        def seen(rows: int, attention: set[str], no_number: "Tensor") -> None:
            self.add(rows, attention)
            broken.append(no_number)

        try:
            yield seen
        finally:
            self.generating += len(broken)
            self.overflowed += sum(int(one) for one in broken)

    @contextmanager
    def seen(self, model: "PreTrainedModel", *, generating: bool = False) -> "Iterator[None]":
        """Counts each forward in the block that comes to its end."""

        def count(_: Any, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            tokens = arguments[0] if arguments else options["input_ids"]
            ours = options.get("bitladder")
            attention = {f"the model's own, {model.config._attn_implementation}"} if ours is None else ours.taken
            if generating:
                told(tokens.numel(), attention, output.logits[:, -1].amax(-1).isfinite().all().logical_not())
            else:
                self.add(tokens.numel(), attention)

        with self.generated() as told, model.register_forward_hook(count, with_kwargs=True):
            yield


def record_scoring(model: "PreTrainedModel", forwards: Forwards, speedups: "Speedups | None" = None) -> Scoring:
    """What a record says of the forwards that answered. ``speedups``: of our own backend; None: lm-eval's."""
    from bitladder.accuracy.backend.compiling import widens, widens_products

    ours, kernels, reason = speedups is not None, None, None
    try:
        kernels = product_kernels(model, forwards.rows, widens if ours else lambda *_: False)
    except UnknownKernelError as error:
        reason = str(error)
    return Scoring(
        attention=tuple(sorted(forwards.attention)),
        shared=ours,
        compiled=speedups is not None and speedups.compiled,
        widened=ours and widens_products(model),
        row_kernel=speedups is not None and speedups.row_kernel,
        forwards=forwards.rows.total(),
        least_rows=min(forwards.rows, default=None),
        most_rows=max(forwards.rows, default=None),
        kernels=kernels,
        no_kernels_reason=reason,
        side_by_side=forwards.side_by_side or None,
    )


def product_kernels(model: "PreTrainedModel", rows: Mapping[int, int], widens: Widens) -> tuple[ProductKernel, ...]:
    """Which kernels the products of quantized layers took, in forwards with so many ``rows``, each so many times.

    Raises UnknownKernelError.
    """
    rules = {
        layer: rule
        for layer in model.modules()
        for method in METHODS.values()
        if (rule := method.product_rule(layer, widens)) is not None
    }
    if not rules:
        quantizer: Any = getattr(model, "hf_quantizer", None)
        if quantizer is None:
            return ()
        method = getattr(quantizer.quantization_config, "quant_method", "another library's")
        raise UnknownKernelError(f"nobody has said which kernels {getattr(method, 'value', method)}'s layers take")
    if model.get_output_embeddings() in rules:  # type: ignore[no-untyped-call]
        raise UnknownKernelError("its head is quantized too, and sees fewer rows than the other layers")
    taken = Counter((rule(number), number) for rule in rules.values() for number in rows)
    return join_kernels(
        ProductKernel(kernel=kernel, least_rows=number, most_rows=number, products=layers * rows[number])
        for (kernel, number), layers in taken.items()
    )


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
