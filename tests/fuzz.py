"""Damages every file that bitladder reads and runs the real commands on it: none may end with 70.

    python tests/fuzz.py --cases 1000 --seed 1

Each case copies a sound model, checkpoint, study, merged study or folder of lm-eval's logs, damages one of its files
(`mutations`) and runs one command in this process. It passes where the command ends with 0; with 1, or with 2 and a
last line that says why. Prints how many cases were tried and how often each exit code was seen; a failed case is
printed with its seed, and is tried alone by ``--only NUMBER``.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import mutations

Mutate = Callable[[bytes, random.Random], tuple[str, bytes]]
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True)
class Target:
    """Files of one folder under the bases that are damaged alike, and the commands that read them."""

    base: str
    pattern: str
    mutate: Mutate
    commands: Sequence[str]
    """with ``{}`` for the folder and ``{out}`` for a new one"""


_AUDITS = ("audit {} --no-load", "audit {}")
_MODEL = (*_AUDITS, "quantize {} --rung nf4 --out {out}", "quantize {} --rung fp16 --out {out}")
_PLANS = (
    "study {} --dry-run --out {out} --suite builtin --limit 2 --rungs bf16,nf4",
    "study {} --dry-run --out {out} --suite builtin --limit 2 --rungs bf16,nf4 --chat-template",
)
_ADD = ("study TINY --dry-run --out {out} --suite builtin --limit 2 --rungs bf16 --add other={}",)
_STUDY = (
    "report {}",
    "recommend {} --json",
    "recommend {} --max-drop 1pt",
    "verdict {} nf4",
    "diff {} nf4",
    "compare {} --any-model",
    "merge {} STUDY --out {out}",
    "pack {} --out {out}",
    "publish NF4 --repo me/nf4 --dry-run --results {}",
)
_LOGS = ("verdict {}/one {}/two --max-drop 1pt", "diff {}/one {}/two")
TARGETS = (
    *(
        Target(base, name, mutations.mutate_json, commands)
        for base, name, commands in (
            ("tiny", "config.json", (*_MODEL, *_PLANS)),
            ("tiny", "generation_config.json", (*_MODEL[1:], *_PLANS)),
            ("tiny", "tokenizer.json", (*_MODEL[2:], *_PLANS)),
            ("tiny", "tokenizer_config.json", (*_MODEL[2:], *_PLANS)),
            ("tiny", "special_tokens_map.json", (*_MODEL[2:], *_PLANS)),
            ("sharded", "*.index.json", (*_MODEL, *_PLANS)),
            ("nf4", "bitladder.json", (*_AUDITS, *_ADD, *_MODEL[2:], "publish {} --repo me/nf4 --dry-run")),
            ("nf4", "config.json", (*_AUDITS, *_ADD, "publish {} --repo me/nf4 --dry-run")),
            ("foreign", "config.json", (*_AUDITS, *_ADD)),
            ("torchao", "config.json", (*_AUDITS, *_ADD)),
            ("study", "study.json", _STUDY),
            ("study", "rungs/*.json", _STUDY),
            ("study", "records/*.json", _STUDY),
            ("study", "documents/*.json", _STUDY),
            ("merged", "merge.json", _STUDY),
            ("merged", "parts/*/study.json", _STUDY),
            ("logs", "one/*/results_*.json", _LOGS),
        )
    ),
    Target("tiny", "chat_template.jinja", mutations.mutate_bytes, (*_MODEL[2:], *_PLANS)),
    Target("tiny", "model.safetensors", mutations.mutate_header, (*_MODEL, *_PLANS)),
    Target("nf4", "model.safetensors", mutations.mutate_header, _AUDITS),
    Target("foreign", "model.safetensors", mutations.mutate_header, (*_AUDITS, *_ADD)),
    Target("foreign", "model.safetensors", mutations.mutate_bytes, _AUDITS),
    Target("torchao", "model.safetensors", mutations.mutate_header, (*_AUDITS, *_ADD)),
    Target("logs", "one/*/samples_*.jsonl", mutations.mutate_lines, _LOGS),
)


@dataclass(frozen=True)
class Outcome:
    number: int
    told: str
    """file, damage and command"""
    code: int | None
    last_lines: str
    traceback: str

    @property
    def failed(self) -> bool:
        return bool(self.traceback) or self.code not in (0, 1, 2) or (self.code != 0 and not self.last_lines)


def make_bases(folder: Path) -> None:
    """The sound folders that cases copy."""
    from bitladder.quantization import quantize
    from bitladder.results.merge import merge_results
    from conftest import _make_tiny_llama
    from lm_eval_logs import LoggedTask, write_logs
    from replay import BUILTIN_GROUPS, BUILTIN_TASKS, RUNGS, write_replay

    _make_tiny_llama(folder / "tiny")
    (folder / "tiny" / "special_tokens_map.json").write_text('{"eos_token": "<|end|>"}')
    _make_tiny_llama(folder / "sharded", max_shard_size="50KB")
    quantize(str(folder / "tiny"), "nf4", folder / "nf4")
    shutil.copytree(folder / "nf4", folder / "foreign", ignore=shutil.ignore_patterns("bitladder.json"))
    quantize(str(folder / "tiny"), "int8-torchao", folder / "torchao")
    (folder / "torchao" / "bitladder.json").unlink()
    rungs = {name: RUNGS[name] for name in ("bf16", "nf4")}
    write_replay(folder / "study", rungs=rungs, tasks=BUILTIN_TASKS[:2], groups=BUILTIN_GROUPS[:2], divergence=True)
    merge_results([folder / "study"], folder / "merged")
    for name, right in (("one", 9), ("two", 7)):
        scores = {("acc", "none"): [1.0] * right + [0.0] * (12 - right)}
        write_logs(folder / "logs" / name, [LoggedTask("one_task", scores), LoggedTask("other_task", scores)])


def run_case(number: int, seed: int, bases: Path, scratch: Path) -> Outcome:
    """Case ``number`` of a seed; it is the same whichever others are run."""
    draw = random.Random(f"{seed}/{number}")
    target = TARGETS[number % len(TARGETS)]
    folder = scratch / "case"
    shutil.copytree(bases / target.base, folder)
    files = sorted(folder.glob(target.pattern))
    file = draw.choice(files)
    damage, content = target.mutate(file.read_bytes(), draw)
    file.unlink()
    file.write_bytes(content)
    command = draw.choice(target.commands)
    words = [word.format(folder, out=scratch / "out") for word in command.split()]
    words = [str(bases / word.lower()) if word in ("TINY", "STUDY", "NF4") else word for word in words]
    told = f"{target.base}/{file.relative_to(folder)}: {damage}; bitladder {command}"
    try:
        return Outcome(number, told, *run_command(words))
    finally:
        for left in scratch.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def run_command(words: Sequence[str]) -> tuple[int | None, str, str]:
    """Exit code, the last line of what says why, and a traceback where one was printed."""
    from bitladder.cli.main import run

    out, errors = io.StringIO(), io.StringIO()
    code: int | None = None
    with (
        mock.patch.object(sys, "argv", ["bitladder", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        try:
            run()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else None
        except BaseException:
            return None, "", traceback.format_exc()
    shown = errors.getvalue()
    lines = shown.splitlines() if code == 2 else out.getvalue().splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    if code == 2 and sum(line.startswith("error: ") for line in lines) != 1:
        return code, "", shown or "nothing was said"
    if code == 2 and not last.startswith("error: "):
        return code, "", f"more than one line:\n{shown}"
    return code, last, shown if code == 70 or "Traceback" in shown else ""


@contextlib.contextmanager
def quick_plans() -> Iterator[None]:
    """A dry run without the process that finds what libraries take, and without timing a layer."""

    from bitladder.records import LayerRate
    from bitladder.study.calibration import LayerJob

    def no_timing(job: LayerJob, *, threads: int | None = None) -> tuple[object, ...]:
        rates = ((1, False), (512, False), (512, True))
        return tuple(
            LayerRate(rung=rung, rows=rows, s_per_weight=1e-9, widened=widened)
            for rung in job.rungs
            for rows, widened in rates
        )

    with (
        mock.patch("bitladder.cli.dry_run.measure_overhead", lambda *_: {}),
        mock.patch("bitladder.study.calibration.time_layers", no_timing),
        mock.patch.dict(os.environ, _OFFLINE),
    ):
        yield


def run_cases(numbers: Sequence[int], seed: int, folder: Path) -> Iterator[Outcome]:
    """Make the bases in ``folder`` and run these cases."""
    bases, scratch = folder / "bases", folder / "scratch"
    with mock.patch.dict(os.environ, BITLADDER_CACHE=str(folder / "cache")), quick_plans():
        make_bases(bases)
        scratch.mkdir()
        with mock.patch("os.fsync"):  # nothing here has to outlast a power cut
            for number in numbers:
                yield run_case(number, seed, bases, scratch)


def main() -> int:
    """Run the cases that the command line asks for; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="run this case alone")
    parser.add_argument("--verbose", action="store_true", help="print every case and what it said")
    asked = parser.parse_args()
    numbers = range(asked.cases) if asked.only is None else [asked.only]
    started_s, codes, failed = time.monotonic(), Counter[int | None](), 0
    with tempfile.TemporaryDirectory(prefix="bitladder-fuzz-") as folder:
        for outcome in run_cases(numbers, asked.seed, Path(folder)):
            codes[outcome.code] += 1
            failed += outcome.failed
            if outcome.failed or asked.verbose:
                print(f"case {outcome.number}: {outcome.told}: exit {outcome.code}\n  {outcome.last_lines[:300]}")
                print("\n".join(outcome.traceback.splitlines()[-12:]), flush=True)
    counts = ", ".join(f"exit {code}: {number}" for code, number in sorted(codes.items(), key=str))
    print(
        f"{len(numbers)} cases of seed {asked.seed} in {time.monotonic() - started_s:.0f} s: {counts}; {failed} failed"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
