"""A share of the cases of `fuzz`, which damages every file that bitladder reads; the rest is run by hand."""

from pathlib import Path

import pytest

import fuzz


@pytest.mark.slow
def test_no_damaged_file_ends_with_a_traceback(tmp_path: Path) -> None:
    """One of each kind of records and logs, which take little time, and some checkpoints."""
    quick = [number for number, target in enumerate(fuzz.TARGETS) if target.base in ("study", "merged", "logs")]
    slow = [number for number in range(len(fuzz.TARGETS)) if number not in quick]
    numbers = [*quick, *slow[::4]]
    outcomes = list(fuzz.run_cases(numbers, seed=1, folder=tmp_path))
    assert len(outcomes) == len(numbers)
    assert [outcome for outcome in outcomes if outcome.failed] == []
    assert 2 in {outcome.code for outcome in outcomes}
