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
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

if TYPE_CHECKING:
    from family_trial import Outcome

TIME_LIMIT_S = 240
_FORKING = threading.Lock()


def _child(family: str, pipe: Any) -> None:
    from family_trial import try_family

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="family-") as folder:
        os.environ["BITLADDER_CACHE"] = str(Path(folder) / "cache")
        pipe.send(json.dumps(asdict(try_family(family, Path(folder)))))


def run_family(family: str) -> Outcome:
    """In a process of its own, which may crash or hang."""
    from family_trial import Outcome

    receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(family, send))
    with _FORKING:  # filelock refuses two at once
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
    print(
        f"{family}: {outcome.failed or outcome.untried or outcome.refused or 'passed'} ({outcome.seconds:.0f} s)",
        file=sys.stderr,
    )
    return outcome


def write_table(outcomes: list[Outcome]) -> str:
    """Markdown: the counts, then a row a family."""
    import bitsandbytes
    import torch
    import transformers

    from family_trial import RUNGS

    counts = Counter(
        "passes" if one.passed else "refused" if one.refused else "untried" if one.untried else "fails"
        for one in outcomes
    )
    ours = sum(one.passed and not one.steps["scored"].startswith("hf") for one in outcomes)
    partial = sum(one.passed and bool(one.steps["partial"]) for one in outcomes)
    versions = ", ".join(f"{one.__name__} {one.__version__}" for one in (transformers, torch, bitsandbytes))
    summary = (
        f"Of {len(outcomes)} families of transformers' causal language models ({versions}) "
        f"{counts['passes']} pass whole, {counts['refused']} are refused in one line before any work, "
        f"{counts['fails']} fail, and of {counts['untried']} no tiny model could be made. {ours} are scored by the "
        f"backend `bitladder`, the others that pass by lm-eval's `hf`. {partial} hold experts or layers that "
        "bitsandbytes leaves in 16 bits: their int8, fp4 and nf4 are refused unless `--allow-partial` is given."
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
        if not one.passed:
            word = "refused" if one.refused else "not tried" if one.untried else "**fails**"
            told = f"{word}: {one.refused or one.untried or one.failed}".replace("|", "\\|")
            lines.append(f"| {one.family} | {one.network} | | {told} | | | | |")
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
