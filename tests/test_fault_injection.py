"""A small part of what `fault_injection` tries: a study of one rung's speed, at one call of each kind."""

import sys
from pathlib import Path

import pytest

from fault_injection import Named, Slot, build, compiler, describe, every_point

POINTS = (
    ("EIO once", "flock", "/out/.lock", 2),
    ("EIO for good", "fsync", "/out/prompts/", 2),
    ("killed", "open", "/out/.study.json", -9),
    ("ENOSPC once", "write", "/cache/checkpoints/", 2),
)
"""fault, call, part of its path, and the exit code"""


@pytest.mark.skipif(sys.platform != "linux" or compiler() is None, reason="needs Linux and a C compiler: cc or gcc")
def test_a_study_whose_disk_fails_or_that_is_killed_ends_in_one_line_and_goes_on(
    tiny_llama: Path, tmp_path: Path
) -> None:
    numbers = "--only performance --rungs bf16 --scenarios batch1 --requests 1 --prompt-tokens 8 --new-tokens 2"
    arguments = [str(tiny_llama), *numbers.split(), "--device", "cpu", "--datasets", str(tmp_path)]
    with Slot(tmp_path, 0, build(tmp_path), arguments) as slot:
        calls = slot.trace("new")
        points = every_point(calls)
        for fault, call, path, code in POINTS:
            point = next(one for one in points if one.fault == fault and _is_of(calls, one, call, path))
            tried = slot.try_point(point.point)
            assert (tried.code, tried.complaints) == (code, []), describe(point, tried)
            assert tried.hit.startswith(call) and path in tried.hit


def _is_of(calls: dict[str, list[str]], named: Named, call: str, path: str) -> bool:
    found = calls[named.point.folder][named.point.number - 1]
    return found.startswith(f"{call} ") and path in found
