"""Makes every call of a tiny study fail that changes its folder or the cache, one after the other, or kills it there.

    python tests/fault_injection.py --points 300 --jobs 2
    python tests/fault_injection.py --every

The N-th open for writing, write, fsync, rename, link, unlink, mkdir, flock or close of all the study's processes fails,
once or from then on, or its process is killed there. The study has to end in one line, with exit 2, with 1 and what it
could not measure, with 0 where nothing depended on that call, or killed; no file may be cut off. Then the same command
has to leave what an undisturbed study leaves, and no other file. Needs a C compiler, and Linux.
"""

import argparse
import errno
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from faulty_study import CONTROL_BYTES, KILL, OPERATIONS, Point, Tried

_HERE = Path(__file__).parent
_NO_DESCRIPTOR = ("open", "rename", "link", "unlink", "mkdir")
FAULTS: tuple[tuple[str, int, bool, tuple[str, ...]], ...] = (
    ("killed", KILL, False, OPERATIONS),
    ("EIO once", errno.EIO, False, OPERATIONS),
    ("EIO for good", errno.EIO, True, OPERATIONS),
    ("ENOSPC once", errno.ENOSPC, False, ("open", "write", "fsync", "rename", "link", "mkdir", "close")),
    ("ENOSPC for good", errno.ENOSPC, True, ("open", "write", "fsync", "rename", "link", "mkdir", "close")),
    ("EACCES once", errno.EACCES, False, _NO_DESCRIPTOR),
    ("EACCES for good", errno.EACCES, True, _NO_DESCRIPTOR),
)
"""name, error, whether it lasts, and what can fail so"""


@dataclass(frozen=True)
class Named:
    """A point, and what its fault is called."""

    fault: str
    point: Point


class Slot:
    """One process of `faulty_study`, with a folder of its own."""

    def __init__(self, work: Path, number: int, library: Path, arguments: list[str]) -> None:
        root = work / f"slot{number}"
        control = work / f"slot{number}.control"
        control.write_bytes(bytes(CONTROL_BYTES))
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "FAULT_INJECTION": str(control),
            "BITLADDER_CACHE": str(root / "cache"),
            "HF_HOME": str(work / f"slot{number}.huggingface"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
            "TORCHDYNAMO_DISABLE": "1",
        }
        command = [sys.executable, str(_HERE / "faulty_study.py"), str(root), *arguments]
        self._log = (work / f"slot{number}.out").open("wb")
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def __enter__(self) -> "Slot":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._log.close()

    def trace(self, *folders: str) -> dict[str, list[str]]:
        return dict(self._ask({"trace": folders}))

    def try_points(self, *points: Point) -> list[Tried]:
        return [Tried(**one) for one in self._ask({"points": list(map(asdict, points))})]

    def _ask(self, question: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            printed = Path(self._log.name).read_text()[-3000:]
            raise RuntimeError(f"the process that runs studies ended with {self._process.wait()}:\n{printed}")
        return json.loads(answer)


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def build(work: Path) -> Path:
    """The library to preload."""
    library, found = work / "fault_injection.so", compiler()
    if found is None:
        raise SystemExit("no C compiler; expected cc or gcc")
    subprocess.run([found, "-shared", "-fPIC", "-O1", "-o", library, _HERE / "fault_injection.c", "-ldl"], check=True)
    return library


def study_arguments(model: Path, tasks: Path) -> list[str]:
    """Two rungs, one task, one scenario, divergence."""
    numbers = "--requests 1 --prompt-tokens 8 --new-tokens 2 --divergence-windows 2 --device cpu"
    chosen = "--rungs bf16,nf4 --backend bitladder --scenarios batch1"
    return [str(model), *f"{numbers} {chosen}".split(), "--tasks", str(tasks / "left.yaml"), "--datasets", str(tasks)]


def every_point(traces: dict[str, list[str]]) -> list[Named]:
    """One for each call and fault that can be its own."""
    return [
        Named(fault, Point(folder, number, error, forever, operations))
        for folder, calls in traces.items()
        for number, call in enumerate(calls, 1)
        for fault, error, forever, operations in FAULTS
        if call.partition(" ")[0] in operations
    ]


def try_all(slots: list[Slot], points: Iterable[Named]) -> Iterator[tuple[Named, Tried]]:
    """Each slot takes the next; in the order in which they end."""
    free = queue.SimpleQueue[Slot]()
    for slot in slots:
        free.put(slot)

    def work(named: Named) -> tuple[Named, Tried]:
        slot = free.get()
        try:
            (tried,) = slot.try_points(named.point)
        finally:
            free.put(slot)
        return named, tried

    with ThreadPoolExecutor(len(slots)) as pool:
        for done in as_completed([pool.submit(work, named) for named in points]):
            yield done.result()


def describe(named: Named, tried: Tried) -> str:
    """One line, and one for each complaint."""
    point = named.point
    lines = [
        f"{'FAILED' if tried.complaints else 'ok'}: {named.fault} at {point.folder} {point.number}, {tried.hit} -> "
        f"{tried.code}: {tried.line[:250]} ({tried.disturbed_s:.1f} s, {tried.again_s:.1f} s)"
    ]
    return "\n    ".join(lines + tried.complaints)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200, help="how many to draw")
    parser.add_argument("--every", action="store_true", help="all of them, which takes hours")
    parser.add_argument("--folder", choices=["new", "finished"], help="of these points alone")
    parser.add_argument("--fault", choices=[fault for fault, *_ in FAULTS], help="of these points alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", type=int, nargs=2, default=(1, 1), metavar=("I", "N"), help="the I-th of N parts")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    from conftest import _make_tiny_llama
    from test_study_run import write_tasks

    started = time.monotonic()
    with TemporaryDirectory(prefix="fault-injection-") as work, ExitStack() as stack:
        library, model, tasks = build(Path(work)), _make_tiny_llama(Path(work) / "model"), Path(work) / "tasks"
        tasks.mkdir()
        arguments = study_arguments(model, write_tasks(tasks, 4))
        slots = [stack.enter_context(Slot(Path(work), number, library, arguments)) for number in range(given.jobs)]
        with ThreadPoolExecutor(len(slots)) as pool:
            *_, traces = pool.map(lambda slot: slot.trace("finished", "new"), slots)
        points = [
            one
            for one in every_point(traces)
            if given.folder in (None, one.point.folder) and given.fault in (None, one.fault)
        ]
        chosen = points if given.every else random.Random(given.seed).sample(points, min(given.points, len(points)))
        part, parts = given.part
        chosen = chosen[part - 1 :: parts]
        calls = {folder: len(found) for folder, found in traces.items()}
        print(f"calls: {calls}; {len(chosen):,} of {len(points):,} points", flush=True)
        ends: Counter[str] = Counter()
        failed = 0
        for number, (named, tried) in enumerate(try_all(slots, chosen), 1):
            ends["not reached" if not tried.hit else f"exit {tried.code}"] += 1
            failed += bool(tried.complaints)
            print(f"{number} {describe(named, tried)}".replace(work, ""), flush=True)
        took = time.monotonic() - started
        print(f"{sum(ends.values()):,} of {len(points):,} points tried in {took:.0f} s, {failed} failed; {dict(ends)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
