"""One rung on every window of the text, held against the baseline token by token."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.divergence.reference import Reference, begin_reference, find_head, load_reference
from bitladder.errors import DoesNotFitError, UserError
from bitladder.records import Divergence, DivergenceOutcome, LoadPolicy, Prompts, WindowDivergence

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]

_LARGEST_SELF_DIVERGENCE = 1e-3
"""nats a token, of the baseline's logits made anew; with the same product it is 0"""


def measure_divergence(
    directory: Path,
    item: Divergence,
    windows: Prompts,
    reference_path: Path,
    *,
    is_baseline: bool,
    policy: LoadPolicy = LoadPolicy(),
    progress: Progress | None = None,
) -> DivergenceOutcome:
    """The divergence of the checkpoint in ``directory`` from the baseline, whose states are in ``reference_path``.

    Of the baseline itself it writes them, and holds its logits against those that are made from them again. Raises
    UserError where there are none, for another vocabulary, and for logits that are no numbers; DoesNotFitError.
    """
    import torch

    from bitladder.accuracy.backend.products import WIDENED, widened_in, widens_products
    from bitladder.checkpoint.loading import load_model
    from bitladder.devices import torch_devices

    if item.baseline_hash is None:
        raise UserError("the baseline has no checkpoint to be held against; see what became of it")
    reference = None if is_baseline else load_reference(reference_path, torch_devices(item.device)[0])
    model = load_model(directory, policy.model_copy(update={"device": item.device}))
    reference = reference or begin_reference(model)
    types = () if reference.dtype is None else (reference.dtype,)  # the baseline's head is in its own type
    found = []
    try:
        with torch.inference_mode(), widened_in(model, *types), _head_inputs(model) as inputs:
            for number, (document, ids) in enumerate(zip(windows.documents, windows.token_ids, strict=True)):
                tokens = torch.tensor(ids, device=model.device)
                inputs.clear()
                logits = model(input_ids=tokens[None], use_cache=False).logits[0]
                if is_baseline:
                    reference = _with_window(reference, inputs, logits)
                found.append(_compare(document, reference.logits(number), logits, tokens))
                if progress is not None:
                    progress(number + 1, len(windows.token_ids))
    except torch.OutOfMemoryError as error:
        raise DoesNotFitError(f"out of memory beside the baseline's head ({error})") from None
    if is_baseline:
        reference.save(reference_path)
    remarks = (WIDENED,) if widens_products(model) else ()
    return DivergenceOutcome(origin=windows.origin, windows=tuple(found), remarks=remarks)


@contextmanager
def _head_inputs(model: "PreTrainedModel") -> "Iterator[list[Tensor]]":
    """Collects what a forward puts into the head: (tokens, hidden)."""
    inputs: list[Tensor] = []
    head = find_head(model)

    def keep(_: Any, arguments: Any) -> None:
        inputs.append(arguments[0][0])

    with nullcontext() if head is None else head.register_forward_pre_hook(keep):
        yield inputs


def _compare(document: str, baseline: "Tensor", rung: "Tensor", tokens: "Tensor") -> WindowDivergence:
    """From both logits (tokens, vocabulary) and the token ids (tokens,); the last prediction has nothing to follow."""
    import torch

    if baseline.shape != rung.shape:
        raise UserError(f"a vocabulary of {rung.shape[-1]}, the baseline's has {baseline.shape[-1]}; expected the same")
    ours, theirs = (torch.log_softmax(logits[:-1], -1, dtype=torch.float32) for logits in (rung, baseline))
    kl = torch.nn.functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    if not torch.isfinite(kl).all():
        raise UserError("logits that are not numbers; the model overflows its type, take a rung of wider range")
    agrees = baseline[:-1].argmax(-1) == rung[:-1].argmax(-1)
    following = tokens[1:, None]
    return WindowDivergence(
        document=document,
        kl=_floats(kl.clamp(min=0)),  # rounding in FP32 gives down to -5e-7
        agrees=tuple(agrees.tolist()),
        baseline_loglikelihoods=_floats(theirs.gather(-1, following)[:, 0]),
        loglikelihoods=_floats(ours.gather(-1, following)[:, 0]),
    )


def _floats(values: "Tensor") -> tuple[float, ...]:
    """FP32 in as few digits as tell it from its neighbours."""
    return tuple(float(f"{value:.9g}") for value in values.tolist())


def _with_window(reference: Reference, inputs: "list[Tensor]", logits: "Tensor") -> Reference:
    """With one more window of the baseline: what went into its head, or the logits of all windows, where those of the
    first are more than its head's product or a later one isn't one product of its head."""
    if reference.weight is not None and len(inputs) == 1:
        reference.states.append(inputs[0].cpu())
        if len(reference.states) > 1 or _same(reference.logits(0), logits):
            return reference
        reference.states.clear()
    earlier = reference.states
    if reference.weight is not None:
        earlier = [reference.logits(window).cpu() for window in range(len(earlier))]
    return replace(reference, weight=None, bias=None, states=[*earlier, logits.cpu()])


def _same(made: "Tensor", logits: "Tensor") -> bool:
    import torch

    if made.shape != logits.shape:
        return False
    ours, theirs = (torch.log_softmax(one, -1, dtype=torch.float32) for one in (made, logits))
    kl = torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return float(kl) <= _LARGEST_SELF_DIVERGENCE
