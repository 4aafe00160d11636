"""Prints our lm-eval backend beside lm-eval's hf: same answers, and how much sooner.

    python benchmarks/accuracy.py --model DIR --datasets MIRROR [--dtype float32] [--device cpu] [--cases arc_easy ...]

With --device cuda the cases are those of a GPU. Beside the table stands the share of the device's matrix throughput,
measured in the same run on products of 8,192 by 8,192, that our forwards reached: products of the layers and of the
head on the tokens of the plan, attention left out. With --vllm, where vLLM is installed, lm-eval's vllm backend scores
the same requests after that, and a second table sets ours beside the better of the two.

Both sides score the same requests of the same loaded model in one run. hf is lm-eval's own HFLM as it comes, at batch
sizes that double until it slows or runs out of memory, of which the fastest counts; each is printed on stderr. Times
are wall seconds; on a CPU the processor seconds stand beside them, which other work on the machine disturbs less.
Tokenizing counts on both sides.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitladder.accuracy.backend.lm import BitladderLM

NEAR_TIE = 2e-4
"""gap of hf's two best, in log-probability, within which another choice is no error"""


@dataclass(frozen=True)
class Case:
    """A task, the documents of each of its parts, and how much sooner we want to be."""

    name: str
    task: str
    documents: int | None
    num_fewshot: int | None
    goal: float
    first_batch: int
    """of hf, far below its best"""


CUDA_CASES = (
    Case("arc_challenge", "arc_challenge", None, 0, 6.0, 64),
    Case("hellaswag", "hellaswag", 1500, 0, 4.0, 64),
    Case("mmlu 0-shot", "mmlu", 3000, 0, 2.6, 32),
    Case("mmlu 5-shot", "mmlu_moral_disputes", None, 5, 8.0, 16),
    Case("gsm8k_cot", "gsm8k_cot", 128, None, 3.0, 64),
)
"""With the documents of a group counted over all its tasks."""
CPU_CASES = (
    Case("arc_challenge", "arc_challenge", 200, 0, 3.5, 4),
    Case("arc_easy", "arc_easy", 200, 0, 3.0, 4),
    Case("hellaswag", "hellaswag", 200, 0, 2.0, 4),
    Case("mmlu 0-shot", "mmlu_moral_disputes", None, 0, 1.5, 2),
    Case("mmlu 5-shot", "mmlu_moral_disputes", 200, 5, 6.0, 1),
    Case("gsm8k_cot", "gsm8k_cot", 32, None, 3.0, 8),
    Case("gsm8k", "gsm8k", 32, 5, 1.0, 8),
)
COLUMNS = (
    "case",
    "documents",
    "hf batch",
    "hf, documents/s",
    "ours, documents/s",
    "ratio",
    "ratio of processor time",
    "share of matrix throughput",
    "goal",
    "largest difference",
    "largest of its size",
    "other greedy flags",
    "other choices or texts",
)


@dataclass(frozen=True)
class Timing:
    wall_s: float
    processor_s: float


@dataclass(frozen=True)
class Comparison:
    """How one case's answers differ from hf's."""

    largest_difference: float | None
    """between log-likelihoods, nats"""
    largest_relative: float | None
    """the same over hf's own: what FP32 rounds grows with the sum"""
    greedy: int
    choices: int
    near_ties: int


@dataclass(frozen=True)
class Rates:
    """Documents a second."""

    case: Case
    ours: float
    hf: float | None


def main() -> None:
    options = _parse()
    logging.disable(logging.WARNING)
    import torch

    from bitladder.checkpoint.loading import load_pretrained, load_tokenizer

    if options.threads:
        torch.set_num_threads(options.threads)
    model = load_pretrained(options.model, options.device, dtype=getattr(torch, options.dtype))
    tokenizer = load_tokenizer(options.model)
    on_cuda = options.device.startswith("cuda")
    device = torch.cuda.get_device_name() if on_cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"{options.model.name}, {options.dtype}, {device}\n")
    print(_row(COLUMNS))
    print(_row(["---"] * len(COLUMNS)))
    peak = matrix_flop_per_s(options.device, model.dtype) if on_cuda else None
    rates: list[Rates] = []
    for case in CUDA_CASES if on_cuda else CPU_CASES:
        if options.cases and case.name not in options.cases and case.task not in options.cases:
            continue
        rates.append(run_case(case, model, tokenizer, options, peak))
    if peak:
        print(f"\nmatrix throughput of this device: {peak / 1e12:.0f} TFLOP/s")
    if options.vllm:
        del model
        torch.cuda.empty_cache()
        run_vllm(rates, options)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--datasets", required=True, help="mirror of the data sets in Hub layout")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cases", nargs="*")
    parser.add_argument("--documents", type=int, help="of each case, instead of its own number")
    parser.add_argument("--hf-batches", type=int, nargs="*", help="these alone; none leaves hf out")
    parser.add_argument("--new-tokens", type=int, help="limit of a generation, instead of the task's")
    parser.add_argument("--token-budget", type=int)
    parser.add_argument("--vllm", action="store_true", help="lm-eval's vllm backend, too (on a GPU)")
    parser.add_argument("--on", nargs="*", default=(), help="fields of Speedups, beside the default")
    parser.add_argument("--off", nargs="*", default=())
    return parser.parse_args()


def load_requests(case: Case, options: argparse.Namespace) -> list[Any]:
    """lm-eval's own requests for the case's documents."""
    from bitladder.records import TaskSources
    from bitladder.records.study import SEED
    from bitladder.tasks.library import task_library

    library = task_library(
        TaskSources(requested=(case.task,), datasets=options.datasets, num_fewshot=case.num_fewshot, seed=SEED)
    )
    left = options.documents or case.documents
    instances: list[Any] = []
    for name in leaf_names(library, case.task):
        if left == 0:
            break
        task = library.task(name)
        task.set_fewshot_seed(seed=SEED)
        task.build_all_requests(limit=left, rank=0, world_size=1)
        instances += task.instances
        left = None if left is None else left - len({request.doc_id for request in task.instances})
        if options.new_tokens and task.OUTPUT_TYPE == "generate_until":
            for request in task.instances:
                request.arguments[1]["max_gen_toks"] = options.new_tokens
    return instances


def leaf_names(library: Any, name: str) -> list[str]:
    """The tasks that a task or group stands for, in lm-eval's order."""
    members = library.members(name)
    return [leaf.name for member in members for leaf in (member.leaves() if hasattr(member, "leaves") else (member,))]


def matrix_flop_per_s(device: str, dtype: Any) -> float:
    """Of one product of 8,192 by 8,192, the median of 20."""
    import torch

    one, other = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(25):
        torch.cuda.synchronize()
        started = time.perf_counter()
        one @ other
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return float(2 * 8192**3 / statistics.median(times[5:]))


def forward_flop(model: Any, plans: Sequence[Any]) -> float:
    """Products of the layers on every token forwarded and of the head on every scored position; no attention."""
    head = model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    inside = sum(parameter.numel() for parameter in model.parameters()) - embedding.numel()
    if head is not embedding:
        inside -= head.numel()
    tokens = sum(plan.tokens for plan in plans)
    rows = sum(len(pack.rows) for plan in plans for pack in plan.packs)
    return float(2 * inside * tokens + 2 * head.shape[0] * head.shape[1] * rows)


def timed(run: Callable[[], list[Any]], device: str) -> tuple[list[Any], Timing]:
    import torch

    wall, processor = time.perf_counter(), time.process_time()
    answers = run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return answers, Timing(time.perf_counter() - wall, time.process_time() - processor)


def run_case(case: Case, model: Any, tokenizer: Any, options: argparse.Namespace, peak: float | None) -> Rates:
    from bitladder.accuracy.backend.lm import BitladderLM
    from bitladder.accuracy.backend.speedups import default_speedups

    requests = load_requests(case, options)
    method = requests[0].request_type
    speedups = replace(default_speedups(model), **dict.fromkeys(options.on, True), **dict.fromkeys(options.off, False))
    lm = BitladderLM(model, tokenizer, token_budget=options.token_budget, cache_requests=False, speedups=speedups)
    if options.device.startswith("cuda"):
        getattr(lm, method)(requests[:8], disable_tqdm=True)  # kernels are loaded at their first use
        lm.plans.clear()
    ours, our_time = timed(partial(getattr(lm, method), requests, disable_tqdm=True), options.device)
    documents = len({(request.task_name, request.doc_id) for request in requests})
    theirs, best, best_size = fastest_stock(case, model, tokenizer, requests, documents, options)
    cells: list[object] = [case.name, documents]
    share = f"{forward_flop(model, lm.plans) / our_time.wall_s / peak:.0%}" if peak and lm.plans else "-"
    if theirs is None or best is None:
        print(_row([*cells, "-", "-", f"{documents / our_time.wall_s:.2f}", "-", "-", share]), flush=True)
        return Rates(case, documents / our_time.wall_s, None)
    found = compare_texts(requests, theirs, ours, lm) if method == "generate_until" else compare(requests, theirs, ours)
    cells += [best_size, f"{documents / best.wall_s:.2f}", f"{documents / our_time.wall_s:.2f}"]
    cells += [f"{best.wall_s / our_time.wall_s:.2f}", f"{best.processor_s / our_time.processor_s:.2f}"]
    cells += [share, case.goal]
    cells.append("-" if found.largest_difference is None else f"{found.largest_difference:.1e}")
    cells.append("-" if found.largest_relative is None else f"{found.largest_relative:.1e}")
    cells += [found.greedy, f"{found.choices} (near ties: {found.near_ties})"]
    print(_row(cells), flush=True)
    return Rates(case, documents / our_time.wall_s, documents / best.wall_s)


def fastest_stock(
    case: Case, model: Any, tokenizer: Any, requests: list[Any], documents: int, options: argparse.Namespace
) -> tuple[list[Any] | None, Timing | None, int]:
    """Answers, time and batch size of lm-eval's own HFLM at its fastest; None and 0 where it was not to run, or ran out
    of memory at the first size."""
    import torch
    from lm_eval.models.huggingface import HFLM

    best: tuple[list[Any] | None, Timing | None, int] = None, None, 0
    for size in options.hf_batches if options.hf_batches is not None else doubling(case.first_batch, len(requests)):
        ask = getattr(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size), requests[0].request_type)
        try:
            answers, taken = timed(partial(ask, requests, disable_tqdm=True), options.device)
        except torch.OutOfMemoryError:
            print(f"{case.name}: hf runs out of memory at batch {size}", file=sys.stderr)
            torch.cuda.empty_cache()
            break
        print(f"{case.name}: hf {documents / taken.wall_s:.1f} documents/s at batch {size}", file=sys.stderr)
        slower = best[1] is not None and taken.wall_s > best[1].wall_s
        best = best if slower else (answers, taken, size)
        if slower and options.hf_batches is None:
            break
    return best


def doubling(first: int, requests: int) -> Iterator[int]:
    """Batch sizes up to the first that holds all requests."""
    size = first
    while size < requests:
        yield size
        size *= 2
    yield size


def run_vllm(rates: Sequence[Rates], options: argparse.Namespace) -> None:
    """lm-eval's vllm backend on each case's requests, its start left out."""
    from lm_eval.models.vllm_causallms import VLLM

    lm = VLLM(
        pretrained=str(options.model),
        dtype=options.dtype,
        gpu_memory_utilization=0.8,
        max_model_len=4096,
        max_num_seqs=512,  # its largest recorded graph; more than that is slower
    )
    print()
    print(_row(("case", "vllm, documents/s", "ours, documents/s", "ours over the better of hf and vllm", "goal")))
    print(_row(["---"] * 5))
    for one in rates:
        requests = load_requests(one.case, options)
        ask = getattr(lm, requests[0].request_type)
        ask(requests[:8], disable_tqdm=True)
        _, taken = timed(partial(ask, requests, disable_tqdm=True), options.device)
        theirs = len({(request.task_name, request.doc_id) for request in requests}) / taken.wall_s
        ratio = one.ours / max(theirs, one.hf or 0.0)
        print(_row((one.case.name, f"{theirs:.1f}", f"{one.ours:.1f}", f"{ratio:.1f}", one.case.goal)), flush=True)


def compare(requests: Sequence[Any], theirs: Sequence[Any], ours: Sequence[Any]) -> Comparison:
    """Log-likelihoods, greedy flags, and which choice is the most likely."""
    by_document: dict[tuple[str, int], list[int]] = {}
    for index, request in enumerate(requests):
        by_document.setdefault((request.task_name, request.doc_id), []).append(index)
    choices = near_ties = 0
    for members in by_document.values():
        ranked = sorted(members, key=lambda index: -theirs[index][0])
        if max(members, key=lambda index: ours[index][0]) != ranked[0]:
            tie = theirs[ranked[0]][0] - theirs[ranked[1]][0] <= NEAR_TIE
            choices, near_ties = choices + 1, near_ties + tie
    return Comparison(
        max(abs(a[0] - b[0]) for a, b in zip(theirs, ours, strict=True)),
        max(abs(a[0] - b[0]) / abs(a[0]) for a, b in zip(theirs, ours, strict=True) if a[0]),
        sum(a[1] != b[1] for a, b in zip(theirs, ours, strict=True)),
        choices,
        near_ties,
    )


def compare_texts(requests: Sequence[Any], theirs: Sequence[str], ours: Sequence[str], lm: BitladderLM) -> Comparison:
    """Texts; one that differs is a near tie where the model's two best tokens at the fork are one."""
    different = [index for index in range(len(ours)) if theirs[index] != ours[index]]
    ties = sum(fork_gap(requests[index].args[0], theirs[index], ours[index], lm) <= NEAR_TIE for index in different)
    return Comparison(None, None, 0, len(different), ties)


def fork_gap(prompt: str, theirs: str, ours: str, lm: BitladderLM) -> float:
    """Gap in log-probability between the two best tokens where two continuations part."""
    import torch

    first, second = (lm.tok_encode(text, add_special_tokens=False) for text in (theirs, ours))
    shared = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    tokens = torch.tensor([lm.tok_encode(prompt) + first[:shared]], device=lm.model.device)
    with torch.inference_mode():
        best = lm.model(tokens, use_cache=False, logits_to_keep=1).logits[0, -1].float().log_softmax(-1).topk(2).values
    return float(best[0] - best[1])


if __name__ == "__main__":
    main()
