"""One family of models through all of bitladder: what benchmarks/families.py does with each, and tests with some."""

import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_families import save_tiny_family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-4
"""of a log-likelihood in FP32; of a whole text's by so many nats, since FP32 rounds relatively"""
TOLERANCE_NATS = 100
RUNGS = ("int8", "fp4", "nf4")
UNNAMED_SHARE = 0.03
"""of a family's weights may be none of `named_share`'s"""


@dataclass
class Outcome:
    """What became of a family. ``steps``: one word or figure each."""

    family: str
    network: str = ""
    steps: dict[str, str] = field(default_factory=dict)
    refused: str | None = None
    """the line, where it was refused before any work"""
    failed: str | None = None
    """what went wrong"""
    untried: str | None = None
    """why there is no tiny model of it"""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.failed is None and self.refused is None and self.untried is None


def try_family(family: str, folder: Path) -> Outcome:
    """What becomes of the family's tiny model in the steps below; a traceback goes to stderr."""
    outcome = Outcome(family)
    started = time.perf_counter()
    try:
        source = save_tiny_family(family, folder / "source")
    except Exception as error:
        outcome.untried = f"{type(error).__name__}: {_one_line(error)}"
        return outcome
    try:
        for step in steps(family, source, folder, outcome):
            outcome.steps |= step
    except Exception as error:
        outcome.failed = f"{type(error).__name__}: {_one_line(error)}"
        traceback.print_exc()
    outcome.seconds = time.perf_counter() - started
    return outcome


def steps(family: str, source: Path, folder: Path, outcome: Outcome) -> Iterator[dict[str, str]]:
    """Each step's word or figure by its name. Raises what went wrong."""
    from bitladder.auditing import require_sound
    from bitladder.checkpoint.expected import expect
    from bitladder.checkpoint.skeleton import build_skeleton
    from bitladder.errors import UserError
    from bitladder.methods import find_rung
    from bitladder.perf.memory import predict_working_memory

    try:
        outcome.network = type(build_skeleton(source)).__name__
        require_sound(source)
        left = max(expect(source, find_rung(rung).scheme).left_share for rung in RUNGS)
    except UserError as error:
        outcome.refused = str(error).replace(str(source), "DIR")
        return
    skeleton = build_skeleton(source)
    predict_working_memory(skeleton, 2, 8, 4)
    if (share := named_share(skeleton)) < 1 - UNNAMED_SHARE:
        raise RuntimeError(f"{1 - share:.0%} of the weights are unknown to bitladder")
    yield {"partial": f"{left:.0%}" if left > 0.05 else ""}
    for rung in ("bf16", *RUNGS):
        yield {rung: rung_comes_back(source, rung, folder / rung)}
    yield scored(source, folder / "fp32")
    yield {"decoding": decoded(folder / "bf16")}
    yield {"divergence": divergence(folder) if (folder / "nf4").is_dir() else ""}


def named_share(model: "PreTrainedModel") -> float:
    """Share of the weights that are matrices, embeddings, positions, the head, convolutions, vectors, decays or kept in
    FP32."""
    import torch
    from torch import nn

    from bitladder.checkpoint.skeleton import kept_in_fp32, linear_weights

    linear, in_fp32 = linear_weights(model), kept_in_fp32(model)
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    named = total = 0
    for module_name, module in model.named_modules():
        known = module is head or isinstance(module, nn.modules.conv._ConvNd | nn.Embedding)
        for name, weight in module.named_parameters(recurse=False):
            whole = f"{module_name}.{name}"
            vector = max(weight.shape, default=1) == weight.numel()
            wide = weight.dtype != torch.bfloat16 or in_fp32(whole)
            total += weight.numel()
            named += weight.numel() * (known or vector or wide or name in ("A_log", "pos_embed") or whole in linear)
    return named / total


def rung_comes_back(source: Path, rung: str, out: Path) -> str:
    """Quantized, audited, and equal bit for bit to what was quantized in memory."""
    import torch

    from bitladder.auditing import audit
    from bitladder.checkpoint.expected import expect
    from bitladder.checkpoint.loading import load_model, load_pretrained
    from bitladder.errors import UserError
    from bitladder.methods import find_rung
    from bitladder.methods.method import torch_dtype
    from bitladder.quantization import quantize

    scheme = find_rung(rung).scheme
    try:
        quantize(str(source), rung, out, allow_partial=True)
    except UserError as error:
        if out.exists():
            raise
        print(f"{rung}: {error}", file=sys.stderr)
        return "refused"
    found = audit(out)
    if not found.passed:
        raise RuntimeError(f"audit of {rung}: " + "; ".join(one.message for one in found.errors))
    if found.loaded_bytes is None:
        raise RuntimeError(
            f"audit of {rung}: " + "; ".join(one.message for one in found.findings if one.check == "load")
        )
    config = find_rung(rung).method.quantization_config(scheme, expect(source, scheme).skipped)
    options: dict[str, Any] = {} if config is None else {"quantization_config": config}
    made = _logits(load_pretrained(source, dtype=torch_dtype(scheme.rest_type), **options))
    if not torch.equal(made, _logits(load_model(out))):
        raise RuntimeError(f"{rung}: other logits after loading")
    return "ok"


def _logits(model: "PreTrainedModel") -> Any:
    import torch

    token_ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        return model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids)).logits


def scored(source: Path, out: Path, device: str = "cpu") -> dict[str, str]:
    """Log-likelihoods and texts by our backend and by lm-eval's, in FP32."""
    from lm_eval.api.instance import Instance

    from bitladder.accuracy.backend.lm import BitladderLM
    from bitladder.accuracy.huggingface import HuggingFaceModel
    from bitladder.checkpoint.loading import load_model, load_tokenizer
    from bitladder.quantization import quantize
    from bitladder.records import LoadPolicy
    from bitladder.tasks.library import quiet

    quantize(str(source), "fp32", out)
    model, tokenizer = load_model(out, LoadPolicy(device=device)), load_tokenizer(out)
    ours = BitladderLM(model, tokenizer, cache_requests=False)
    hf = HuggingFaceModel(model, tokenizer, 1)
    contexts = [f"Question: {'word ' * (3 * number)}is the answer {number}?" for number in range(6)]
    questions = [
        Instance("loglikelihood", {}, (context, continuation), 0, ("task", 0, 1))
        for context in contexts
        for continuation in (" yes", " no, never")
    ]
    texts = [
        Instance("generate_until", {}, (context, {"until": ["\n\n"], "max_gen_toks": 8}), 0, ("task", 0, 1))
        for context in contexts
    ]
    scores = [lm.loglikelihood(questions, disable_tqdm=True) for lm in (ours, hf)]
    off = max(abs(one[0] - other[0]) for one, other in zip(*scores, strict=True))
    if not off <= TOLERANCE:
        raise RuntimeError(f"log-likelihoods off by {off:.2g}")
    whole = [Instance("loglikelihood_rolling", {}, (context,), 0, ("task", 0, 1)) for context in contexts]
    beside = HuggingFaceModel(model, tokenizer, len(whole))
    with quiet():  # lm-eval shows a bar of each batch
        totals = [lm.loglikelihood_rolling(whole) for lm in (hf, beside, ours)]
    pairs = [pair for others in totals[1:] for pair in zip(totals[0], others, strict=True)]
    off_whole = max(abs(one - other) / max(1, abs(one) / TOLERANCE_NATS) for one, other in pairs)
    if not off_whole <= TOLERANCE:
        raise RuntimeError(f"log-likelihoods of whole texts off by {off_whole:.2g} beside others or by our backend")
    why = ours.unsupported
    answers = [lm.generate_until(texts, disable_tqdm=True) for lm in (ours, hf)]
    if answers[0] != answers[1]:
        raise RuntimeError("other texts than hf's")
    generated = ours.unsupported or ours.generated_by_hf
    return {
        "scored": f"{off:.0e}" if why is None else f"hf: {why}",
        "generated": "ours" if generated is None else "hf",
    }


def decoded(directory: Path) -> str:
    from bitladder.perf.engines import find_engine
    from bitladder.records import LoadPolicy

    engine = find_engine(None).start(directory, LoadPolicy())
    for rows in (1, 3):
        engine.run([[5 + row, 6, 7, 8, 9, 10, 11, 12] for row in range(rows)], 4)
    return "ok"


def divergence(folder: Path) -> str:
    from bitladder.accuracy.divergence import measure_divergence
    from bitladder.records import Divergence, Prompts

    windows = Prompts.model_construct(
        prompts_hash="", origin="", documents=("a", "b"), token_ids=(tuple(range(3, 40)), tuple(range(50, 87)))
    )
    item = Divergence(baseline_hash="x", texts_hash="", windows=2, window_tokens=37, device="cpu")
    reference = folder / "reference.safetensors"
    own = measure_divergence(folder / "bf16", item, windows, reference, is_baseline=True)
    rung = measure_divergence(folder / "nf4", item, windows, reference, is_baseline=False)
    means = [sum(value for window in one.windows for value in window.kl) / 72 for one in (own, rung)]
    if means[0] > 1e-4:
        raise RuntimeError(f"the baseline diverges from itself by {means[0]:.1g}")
    return f"{means[1]:.2g}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:240]
