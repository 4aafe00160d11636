"""How far a rung's next-token distributions lie from the baseline's, on windows of running text.

The baseline's side is kept as SafeTensors: the hidden states before its head, and its head. Each rung's forward is then
held against it token by token.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.errors import DoesNotFitError, UserError
from bitladder.files import naming, new_file
from bitladder.records import Divergence, DivergenceOutcome, LoadPolicy, Prompts, WindowDivergence, hash_json
from bitladder.text.corpus import Corpus
from bitladder.units import OnProgress

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def cut_documents(tokenizer: "PreTrainedTokenizerBase", corpus: Corpus, windows: int, window_tokens: int) -> Prompts:
    """Up to ``windows`` windows of ``window_tokens``: the first of each document, then the second of each, and so on.

    Documents resemble themselves, so many of them say more than many windows. Each window starts as a request does,
    with a start-of-sequence token where the tokenizer puts one. Raises UserError where no document has a window.
    """
    texts = tokenizer(list(corpus.documents.values()), add_special_tokens=False, verbose=False)["input_ids"]
    first = tokenizer("a")["input_ids"][0]
    start = (first,) if first == tokenizer.bos_token_id else ()
    most = max(map(len, texts)) // window_tokens
    places = (
        (name, ids[place * window_tokens : (place + 1) * window_tokens])
        for place in range(most)
        for name, ids in zip(corpus.documents, texts, strict=True)
        if len(ids) >= (place + 1) * window_tokens
    )
    found = list(islice(places, windows))
    if not found:
        raise UserError(f"{corpus.origin}: no document has {window_tokens} tokens; leave it out with --no-divergence")
    token_ids = tuple((*start, *ids) for _, ids in found)
    documents = tuple(name for name, _ in found)
    return Prompts(
        token_ids=token_ids, prompts_hash=hash_json([documents, token_ids]), origin=corpus.origin, documents=documents
    )


@dataclass(frozen=True)
class Reference:
    """A head and what goes into it, or what the model answered."""

    weight: "Tensor | None"
    """(vocabulary, hidden); None: ``states`` are the logits"""
    bias: "Tensor | None"
    """(vocabulary,)"""
    softcap: float | None
    states: "list[Tensor]"
    """of each window (tokens, hidden), in the type that the head gets them in; or the logits (tokens, vocabulary)"""
    device: str

    def logits(self, window: int) -> "Tensor":
        """(tokens, vocabulary), as the model makes them: inside the same `widened_in`, of as many rows."""
        import torch

        states = self.states[window].to(self.device)
        if self.weight is None:
            return states
        logits = torch.nn.functional.linear(states[None], self.weight, self.bias)[0]
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @property
    def dtype(self) -> "torch.dtype | None":
        """The type of the head's product; None where none is made again."""
        return None if self.weight is None else self.weight.dtype

    def save(self, path: Path) -> None:
        """Write it all at once: a reader sees the whole file or none."""
        from safetensors.torch import save_file

        head = {"weight": self.weight, "bias": self.bias}
        tensors = {name: tensor for name, tensor in head.items() if tensor is not None}
        tensors |= {f"states.{window}": states for window, states in enumerate(self.states)}
        metadata = {} if self.softcap is None else {"softcap": repr(self.softcap)}
        with new_file(path) as temporary, naming(path):
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load_reference(path: Path, device: str) -> Reference:
    """The head on ``device``, the states in main memory. Raises UserError where the baseline has left none."""
    from safetensors import safe_open

    if not path.is_file():
        raise UserError("the baseline's answers to these texts are not there; run the study again to measure it first")
    with safe_open(path, "pt", device="cpu") as stored:
        names = set(stored.keys())
        windows = len([name for name in names if name.startswith("states.")])
        softcap = (stored.metadata() or {}).get("softcap")
        return Reference(
            weight=stored.get_tensor("weight").to(device) if "weight" in names else None,
            bias=stored.get_tensor("bias").to(device) if "bias" in names else None,
            softcap=None if softcap is None else float(softcap),
            states=[stored.get_tensor(f"states.{window}") for window in range(windows)],
            device=device,
        )


def begin_reference(model: "PreTrainedModel") -> Reference:
    """The model's own head, without states yet; one without a head keeps its logits."""
    head = find_head(model)
    if head is None:
        return Reference(None, None, None, [], str(model.device))
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return Reference(head.weight, getattr(head, "bias", None), softcap, [], str(model.device))


def find_head(model: "PreTrainedModel") -> Any:
    """The layer whose product of hidden states the logits are; None where the model has no such."""
    import torch

    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head if type(head) is torch.nn.Linear else None


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
    progress: OnProgress | None = None,
) -> DivergenceOutcome:
    """The divergence of the checkpoint in ``directory`` from the baseline, whose states are in ``reference_path``.

    Of the baseline itself it writes them, and holds its logits against those that are made from them again. Raises
    UserError where there are none, for another vocabulary, and for logits that are no numbers; DoesNotFitError.
    """
    import torch

    from bitladder.accuracy.backend.compiling import WIDENED, widened_in, widens_products
    from bitladder.checkpoint.loading import load_model
    from bitladder.machine.cards import torch_devices

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
