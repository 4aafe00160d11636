"""Takes every family of transformers' causal language models through all of bitladder; prints what became of each.

    python benchmarks/families.py [FAMILY ...] [--workers 2] [--out docs/families.md]

Each family is a tiny checkpoint of random weights (tests/tiny_families.py). It is quantized to int8, fp4 and nf4, each
is audited, loaded and held bit for bit against the model that was quantized in memory; its FP32 rung is scored and
generated from by the backend `bitladder` and by lm-eval's `hf`; it decodes at batch 1 and 3; nf4's divergence from the
baseline is measured. What is refused has to be refused by one line before anything is quantized. A family that mixes
experts is taken with --allow-partial, since bitsandbytes leaves experts as they are.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TIME_LIMIT_S = 240
TOLERANCE = 1e-4
"""of a log-likelihood in FP32"""
RUNGS = ("int8", "fp4", "nf4")


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
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.failed is None and self.refused is None


def try_family(family: str, folder: Path) -> Outcome:
    from tiny_families import save_tiny_family

    outcome = Outcome(family)
    started = time.perf_counter()
    try:
        source = save_tiny_family(family, folder / "source")
    except Exception as error:
        outcome.failed = f"no tiny model: {type(error).__name__}: {_one_line(error)}"
        return outcome
    try:
        for step in _steps(family, source, folder, outcome):
            outcome.steps |= step
    except Exception as error:
        outcome.failed = f"{type(error).__name__}: {_one_line(error)}"
        traceback.print_exc()
    outcome.seconds = time.perf_counter() - started
    return outcome


def _steps(family: str, source: Path, folder: Path, outcome: Outcome) -> Iterator[dict[str, str]]:
    from bitladder.checkpoint.audit import require_sound
    from bitladder.checkpoint.expected import expect
    from bitladder.checkpoint.skeleton import build_skeleton
    from bitladder.errors import UserError
    from bitladder.perf.memory import predict_working_memory
    from bitladder.rungs import find_rung

    try:
        outcome.network = type(build_skeleton(source)).__name__
        require_sound(source)
        left = max(expect(source, find_rung(rung).scheme).left_share for rung in RUNGS)
    except UserError as error:
        outcome.refused = str(error).replace(str(source), "DIR")
        return
    predict_working_memory(build_skeleton(source), 2, 1, 8, 4)
    yield {"partial": f"{left:.0%}" if left > 0.05 else ""}
    for rung in ("bf16", *RUNGS):
        yield {rung: _rung(source, rung, folder / rung)}
    yield _scored(source, folder / "fp32")
    yield {"decoding": _decoded(folder / "bf16")}
    yield {"divergence": _divergence(folder) if (folder / "nf4").is_dir() else ""}


def _rung(source: Path, rung: str, out: Path) -> str:
    """Quantized, audited, and equal bit for bit to what was quantized in memory."""
    import torch

    from bitladder.checkpoint.audit import audit
    from bitladder.checkpoint.expected import expect, quantization_config, torch_dtype
    from bitladder.checkpoint.loading import load_model, load_pretrained
    from bitladder.checkpoint.quantize import quantize
    from bitladder.errors import UserError
    from bitladder.rungs import find_rung

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
    config = quantization_config(scheme, expect(source, scheme).skipped)
    options: dict[str, Any] = {} if config is None else {"quantization_config": config}
    made = _logits(load_pretrained(source, "cpu", dtype=torch_dtype(scheme.rest_type), **options))
    if not torch.equal(made, _logits(load_model(out, "cpu"))):
        raise RuntimeError(f"{rung}: other logits after loading")
    return "ok"


def _logits(model: PreTrainedModel) -> Any:
    import torch

    token_ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        return model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids)).logits


def _scored(source: Path, out: Path) -> dict[str, str]:
    """Log-likelihoods and texts by our backend and by lm-eval's, in FP32."""
    from lm_eval.api.instance import Instance

    from bitladder.accuracy.backend.lm import BitladderLM
    from bitladder.accuracy.huggingface import HuggingFaceModel
    from bitladder.checkpoint.loading import load_model, load_tokenizer
    from bitladder.checkpoint.quantize import quantize

    quantize(str(source), "fp32", out)
    model, tokenizer = load_model(out, "cpu"), load_tokenizer(out)
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
    why = ours.unsupported
    answers = [lm.generate_until(texts, disable_tqdm=True) for lm in (ours, hf)]
    if answers[0] != answers[1]:
        raise RuntimeError("other texts than hf's")
    generated = ours.unsupported or ours.generated_by_hf
    return {
        "scored": f"{off:.0e}" if why is None else f"hf: {why}",
        "generated": "ours" if generated is None else "hf",
    }


def _decoded(directory: Path) -> str:
    from bitladder.checkpoint.loading import load_model
    from bitladder.perf.engines import EagerEngine

    engine = EagerEngine(load_model(directory, "cpu"))
    for rows in (1, 3):
        engine.run([[5 + row, 6, 7, 8, 9, 10, 11, 12] for row in range(rows)], 4)
    return "ok"


def _divergence(folder: Path) -> str:
    from bitladder.divergence.measure import measure_divergence
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


def _child(family: str, pipe: Any) -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="family-") as folder:
        os.environ["BITLADDER_CACHE"] = str(Path(folder) / "cache")
        pipe.send(json.dumps(asdict(try_family(family, Path(folder)))))


def run_family(family: str) -> Outcome:
    """In a process of its own, which may crash or hang."""
    receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(family, send))
    child.start()
    send.close()
    outcome = Outcome(family, failed=f"no answer within {TIME_LIMIT_S} s")
    if receive.poll(TIME_LIMIT_S):
        try:
            outcome = Outcome(**json.loads(receive.recv()))
        except EOFError:
            outcome = Outcome(family, failed="the process died")
    child.kill()
    child.join()
    print(f"{family}: {outcome.failed or outcome.refused or 'passed'} ({outcome.seconds:.0f} s)", file=sys.stderr)
    return outcome


def write_table(outcomes: list[Outcome]) -> str:
    """Markdown: the counts, then a row a family."""
    import bitsandbytes
    import torch
    import transformers

    counts = Counter("passes" if one.passed else "refused" if one.refused else "fails" for one in outcomes)
    ours = sum(one.passed and not one.steps["scored"].startswith("hf") for one in outcomes)
    partial = sum(one.passed and bool(one.steps["partial"]) for one in outcomes)
    versions = ", ".join(f"{one.__name__} {one.__version__}" for one in (transformers, torch, bitsandbytes))
    summary = (
        f"Of {len(outcomes)} families of transformers' causal language models ({versions}) "
        f"{counts['passes']} pass whole, {counts['refused']} are refused in one line before any work, "
        f"{counts['fails']} fail. {ours} are scored by the backend `bitladder`, the others that pass by lm-eval's "
        f"`hf`. {partial} hold experts or layers that bitsandbytes leaves in 16 bits: their int8, fp4 and nf4 are "
        "refused unless `--allow-partial` is given."
    )
    columns = (
        "family",
        "network",
        "left in 16 bits",
        "int8, fp4, nf4: audited, reloaded bit for bit",
        "log-likelihoods: largest difference to hf",
        "texts",
        "batch 1 and 3",
        "divergence of nf4",
    )
    lines = [
        "# Model families",
        "",
        "Made by `python benchmarks/families.py --out docs/families.md`, which says what is tried.",
        "",
        summary,
        "",
        f"| {' | '.join(columns)} |",
        "|---|---|---:|---|---|---|---|---:|",
    ]
    for one in outcomes:
        if one.refused or one.failed:
            cells = [f"{'refused' if one.refused else '**fails**'}: {one.refused or one.failed}".replace("|", "\\|")]
            lines.append(f"| {one.family} | {one.network} | | {cells[0]} | | | | |")
            continue
        steps = one.steps
        lines.append(
            f"| {one.family} | {one.network} | {steps['partial']} | {', '.join(steps[rung] for rung in RUNGS)} "
            f"| {steps['scored']} | {steps['generated']} | {steps['decoding']} | {steps['divergence']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    from tiny_families import causal_families

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # what all families need, imported before processes are forked
    import bitsandbytes  # noqa: F401
    import lm_eval.models.huggingface  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import bitladder.accuracy.backend.lm  # noqa: F401

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    families = arguments.families or list(causal_families())
    with ThreadPoolExecutor(arguments.workers) as pool:
        outcomes = list(pool.map(run_family, families))
    table = write_table(outcomes)
    if arguments.out:
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(table, encoding="utf-8")
    print(table)
    return int(any(one.failed for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
