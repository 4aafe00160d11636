"""What a process may use of the processors, not what the machine has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitladder.machine import host
from bitladder.machine.host import heed_quota, usable_processors
from bitladder.study import calibration


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 processors, of which this process is bound to 8; the root of its control groups."""
    (tmp_path / "own").write_text("3:cpu,cpuacct:/deep/er\n1:name=systemd:/\n0::/deep/er\n")
    monkeypatch.setattr(host, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8, 16)))
    for name in host._THREADS:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "texts", "count"),
    [
        ("", {"cpu.max": "200000 100000"}, 2),
        ("", {"cpu.max": "250000 100000"}, 2),
        ("", {"cpu.max": "50000 100000"}, 1),
        ("", {"cpu.max": "max 100000"}, 8),
        ("", {"cpu.max": "6400000 100000"}, 8),
        ("deep", {"cpu.max": "300000 100000"}, 3),
        ("unified/deep/er", {"cpu.max": "300000 100000"}, 3),
        ("cpu,cpuacct", {"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}, 4),
        ("cpu/deep/er", {"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}, 4),
        ("cpu", {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 8),
        ("cpu", {"cpu.cfs_quota_us": "400000"}, 8),
        ("elsewhere", {"cpu.max": "100000 100000"}, 8),
    ],
)
def test_a_quota_counts(place: str, texts: dict[str, str], count: int, many: Path) -> None:
    (many / place).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (many / place / name).write_text(text + "\n")
    assert usable_processors(many) == count


@pytest.fixture
def quota_of_two(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_quota", lambda _: 2.0)


@pytest.mark.usefixtures("quota_of_two")
def test_records_and_threads_go_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert host.describe_machine().cpu_count == 2
    assert calibration._threads("cpu") == 2
    assert calibration._threads("cuda:0") is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert calibration._threads("cpu") == 1, "fewer threads than may run stay"


@pytest.mark.usefixtures("quota_of_two")
def test_libraries_are_told_unless_the_user_told_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "5")
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "kept for its end")
        patch.delenv("TORCHINDUCTOR_COMPILE_THREADS")
        heed_quota()
        assert os.environ["OMP_NUM_THREADS"] == "5"
        assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "2"


def test_without_a_quota_nothing_is_told(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_quota", lambda _: float("inf"))
    heed_quota()
    assert not set(host._THREADS) & os.environ.keys()


def test_layers_are_timed_with_the_threads_of_the_workers() -> None:
    import torch

    before = torch.get_num_threads()
    with calibration._timing_threads(2):
        assert torch.get_num_threads() == 2
    with calibration._timing_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_how_busy_is_of_our_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_percent", lambda seconds, percpu: [0.0, 100.0, 50.0, 10.0])
    for bound, share in (({1, 2}, 0.75), ({0}, 0.0), ({0, 1, 2, 3}, 0.4), ({70}, 0.4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, bound=bound: bound)
        assert host.busy_share() == pytest.approx(share)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_process_bound_to_one_processor_counts_one() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from bitladder.machine.host import usable_processors; print(usable_processors())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "1\n"
