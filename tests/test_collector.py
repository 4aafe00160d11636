"""Cycles are looked for after the block, not in it."""

import gc

import pytest

from bitladder.machine.host import uncollected
from bitladder.tasks.library import as_we_run_it


class Cycle:
    def __init__(self, ended: list[int]) -> None:
        self.itself = self
        self.ended = ended

    def __del__(self) -> None:
        self.ended.append(1)


def test_what_the_block_made_is_collected_after_it() -> None:
    ended: list[int] = []
    with uncollected():
        for _ in range(5000):
            Cycle(ended)
        assert not gc.isenabled() and not ended
    assert gc.isenabled() and len(ended) == 5000


def test_it_comes_back_after_an_error_and_stays_off_where_it_was() -> None:
    with pytest.raises(ValueError, match="x"), uncollected():
        raise ValueError("x")
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_lm_eval_runs_without_it() -> None:
    with as_we_run_it(1):
        assert not gc.isenabled()
    assert gc.isenabled()
