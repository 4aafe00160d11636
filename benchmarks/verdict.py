"""Prints how long `bitladder verdict` takes on logs of the size of MMLU's: python benchmarks/verdict.py

Six result sets of 57 subjects, 14,042 documents in all, with prompts of the length that 0-shot and 5-shot ones have.
The logs are written as lm-eval writes them; no model answers. What is timed is the command, start of Python included.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lm_eval_logs import LoggedTask, write_logs

SUBJECTS = 57
DOCUMENTS = 14_042
GROUPS = ("mmlu_stem", "mmlu_other", "mmlu_social_sciences", "mmlu_humanities")
PROMPT_CHARACTERS = {"0-shot": 600, "5-shot": 3_000}
CHANGED = {"bf16": 0.0, "fp16": 0.004, "int8": 0.02, "int8-t0": 0.03, "nf4": 0.08, "fp4": 0.12}


def write_set(directory: Path, changed: float, characters: int) -> int:
    """One model's logs; returns their bytes. A changed answer turns from right to wrong, or the other way."""
    baseline, flips = random.Random(0), random.Random(changed)
    tasks: list[LoggedTask] = []
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for subject in range(SUBJECTS):
        count = DOCUMENTS // SUBJECTS + (subject < DOCUMENTS % SUBJECTS)
        right = [baseline.random() < 0.45 for _ in range(count)]
        scores = [float(one != (flips.random() < changed)) for one in right]
        prompt = "x" * (characters - 40) + " question {index} of {task}\nAnswer:"
        tasks.append(LoggedTask(f"mmlu_subject_{subject}", {("acc", "none"): scores}, prompt=prompt))
        groups[GROUPS[subject % len(GROUPS)]].append(tasks[-1].name)
    write_logs(directory, tasks, {"mmlu": list(GROUPS), **groups})
    return sum(path.stat().st_size for path in directory.rglob("*.jsonl"))


def time_verdict(sets: Sequence[Path]) -> tuple[float, str]:
    started = time.perf_counter()
    command = [sys.executable, "-m", "bitladder", "verdict", *map(str, sets)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode > 1:
        raise SystemExit(ran.stderr)
    return time.perf_counter() - started, ran.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("| prompts | documents | result sets | logs, MB | bitladder verdict, s |\n|---|---|---|---|---|")
    for name, characters in PROMPT_CHARACTERS.items():
        with tempfile.TemporaryDirectory() as folder:
            sets = [Path(folder) / rung for rung in CHANGED]
            size = sum(
                write_set(path, changed, characters) for path, changed in zip(sets, CHANGED.values(), strict=True)
            )
            elapsed, printed = time_verdict(sets)
        print(f"| {name} | {DOCUMENTS:,} | {len(sets)} | {size / 1e6:.0f} | {elapsed:.1f} |", flush=True)
    print(f"\n{printed.partition('Verdicts by task')[0]}")


if __name__ == "__main__":
    main()
