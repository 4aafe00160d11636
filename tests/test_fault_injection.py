"""A small part of what `fault_injection` tries: a study of one rung's speed, at one call of each kind."""

import errno
import sys
from pathlib import Path

import pytest

from fault_injection import Slot, build, compiler
from faulty_study import KILL, Point

POINTS = {
    Point("new", 1, errno.EIO, False, ("flock",), "/out/.lock"): 2,
    Point("new", 1, errno.EIO, True, ("fsync",), "/out/prompts/"): 2,
    Point("new", 1, KILL, False, ("write",), "/out/.study.json"): -9,
    Point("new", 1, errno.ENOSPC, True, ("write",), "/cache/checkpoints/"): 2,
}
"""with the exit code, each in what the one before left"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or compiler() is None, reason="needs Linux and a C compiler: cc or gcc")
def test_a_study_whose_disk_fails_or_that_is_killed_ends_in_one_line_and_goes_on(
    tiny_llama: Path, tmp_path: Path
) -> None:
    numbers = "--only performance --rungs bf16 --scenarios batch1 --requests 1 --prompt-tokens 8 --new-tokens 2"
    arguments = [str(tiny_llama), *numbers.split(), "--device", "cpu", "--datasets", str(tmp_path)]
    with Slot(tmp_path, 0, build(tmp_path), arguments) as slot:
        slot.trace("new")
        for (point, code), tried in zip(POINTS.items(), slot.try_points(*POINTS), strict=True):
            assert (tried.code, tried.complaints) == (code, []), (point, tried)
            assert tried.hit.startswith(point.operations[0]) and point.part in tried.hit
