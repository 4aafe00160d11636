"""Time and peak memory of `bitladder.quantize` beside plain transformers doing the same.

    python benchmarks/quantize.py --rungs bf16,int8,nf4 --rounds 5

Both sides run in fresh processes, in alternation, on the built-in model: load with the rung's quantization settings,
save model and tokenizer. bitladder also hashes the source and the result, predicts sizes and writes the manifest.
Its cache starts empty each time. Printed: medians and their ratios.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bitladder.methods import find_rung
from bitladder.models.source import resolve_model

PLAIN = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
source, out, rung = sys.argv[1:]
four_bit = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16, "bnb_4bit_quant_type": "nf4"}
settings = {
    "int8": {"load_in_8bit": True},
    "int8-t0": {"load_in_8bit": True, "llm_int8_threshold": 0.0},
    "fp4": {"load_in_4bit": True},
    "nf4": four_bit,
    "nf4-dq": {**four_bit, "bnb_4bit_use_double_quant": True},
}.get(rung)
options = {"dtype": {"fp32": torch.float32, "fp16": torch.float16}.get(rung, torch.bfloat16)}
if settings:
    options["quantization_config"] = BitsAndBytesConfig(**settings)
model = AutoModelForCausalLM.from_pretrained(source, device_map={"": "cpu"}, **options)
model.save_pretrained(out, max_shard_size="5GB")
AutoTokenizer.from_pretrained(source, padding_side="left").save_pretrained(out)
"""

OURS = """
import sys
from pathlib import Path
from bitladder.quantization import quantize
source, out, rung = sys.argv[1:]
quantize(source, rung, Path(out))
"""


class Run(NamedTuple):
    time_s: float
    peak_rss_bytes: int


def run(code: str, source: Path, rung: str) -> Run:
    """One fresh process; its output and cache are thrown away."""
    with tempfile.TemporaryDirectory() as place:
        environment = os.environ | {"BITLADDER_CACHE": f"{place}/cache", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-W", "ignore", "-c", code, str(source), f"{place}/out", rung]
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        time_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(time_s, peak_rss_bytes(usage))


def peak_rss_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--rungs", default="bf16,int8,nf4")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    source = resolve_model(arguments.model).directory
    print(f"{'rung':8} {'plain s':>8} {'ours s':>8} {'ratio':>6}   {'plain MB':>9} {'ours MB':>9} {'ratio':>6}")
    for rung in arguments.rungs.split(","):
        find_rung(rung)
        rounds = [(run(PLAIN, source, rung), run(OURS, source, rung)) for _ in range(arguments.rounds)]
        plain_s, ours_s = (statistics.median(pair[side].time_s for pair in rounds) for side in (0, 1))
        plain_mb, ours_mb = (statistics.median(pair[side].peak_rss_bytes for pair in rounds) / 1e6 for side in (0, 1))
        print(
            f"{rung:8} {plain_s:8.2f} {ours_s:8.2f} {ours_s / plain_s:6.3f}   "
            f"{plain_mb:9.1f} {ours_mb:9.1f} {ours_mb / plain_mb:6.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
