"""The forwards that answer a task's questions, as they are seen from outside of the model."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bitladder.accuracy.product_kernels import UnknownKernelError, product_kernels
from bitladder.records import Scoring

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bitladder.accuracy.backend.ways import Ways


class Passes:
    """How many forwards there were of each number of rows, and how they attended."""

    def __init__(self) -> None:
        self.rows: Counter[int] = Counter()
        self.attention: set[str] = set()

    def __iadd__(self, other: "Passes") -> "Passes":
        self.rows += other.rows
        self.attention |= other.attention
        return self

    @contextmanager
    def seen(self, model: "PreTrainedModel") -> "Iterator[None]":
        """Counts each forward in the block that comes to its end."""

        def count(_: Any, arguments: tuple[Any, ...], options: dict[str, Any], __: Any) -> None:
            tokens = arguments[0] if arguments else options["input_ids"]
            self.rows[tokens.numel()] += 1
            ours = options.get("bitladder")
            self.attention |= {f"the model's own, {model.config._attn_implementation}"} if ours is None else ours.taken

        hook = model.register_forward_hook(count, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def record_scoring(model: "PreTrainedModel", passes: Passes, ways: "Ways | None" = None) -> Scoring:
    """What a record says of the forwards that answered. ``ways``: of our own backend; None: lm-eval's."""
    from bitladder.accuracy.backend.products import widens_products

    ours, kernels, reason = ways is not None, None, None
    try:
        kernels = product_kernels(model, passes.rows, ours=ours)
    except UnknownKernelError as error:
        reason = str(error)
    return Scoring(
        attention=tuple(sorted(passes.attention)),
        shared=ours,
        compiled=ways is not None and ways.compiled,
        widened=ours and widens_products(model),
        row_kernel=ways is not None and ways.row_kernel,
        forwards=passes.rows.total(),
        least_rows=min(passes.rows, default=None),
        most_rows=max(passes.rows, default=None),
        kernels=kernels,
        no_kernels_reason=reason,
    )
