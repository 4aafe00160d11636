"""A container's share of main memory counts, not only the machine's."""

from pathlib import Path

import psutil
import pytest

from bitladder.machine import host
from bitladder.machine.host import available_memory_bytes, memory_bytes

MIB = 1 << 20


@pytest.fixture(autouse=True)
def own_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of a container in both versions, whose group is deeper than the container's root."""
    (tmp_path / "own").write_text("4:memory:/deep/er\n3:cpu,cpuacct:/deep/er\n0::/deep/er\n")
    monkeypatch.setattr(host, "_OWN", tmp_path / "own")


def test_cgroup_v2_limit_less_what_is_used_but_for_file_cache(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{100 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{60 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {20 * MIB}\n")
    assert available_memory_bytes(tmp_path) == 60 * MIB
    assert memory_bytes(tmp_path) == 100 * MIB


def test_cgroup_v1_limit(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{50 * MIB}\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text(f"{60 * MIB}\n")
    (tmp_path / "memory" / "memory.stat").write_text("total_inactive_file 0\n")
    assert available_memory_bytes(tmp_path) == 0
    assert memory_bytes(tmp_path) == 50 * MIB


def test_without_a_limit_it_is_the_machines(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    found = available_memory_bytes(tmp_path)
    assert 0 < found <= psutil.virtual_memory().total
    assert memory_bytes(tmp_path) == psutil.virtual_memory().total


@pytest.mark.parametrize("deeper", ["", "deep", "deep/er"])
def test_the_least_limit_of_all_groups_above_counts(deeper: str, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for folder, limit in ((tmp_path, 90), (tmp_path / "deep", 80), (tmp_path / "deep" / "er", 70)):
        (folder / "memory.max").write_text(f"{10 if folder == tmp_path / deeper else limit}\n")
    assert memory_bytes(tmp_path) == 10
    (tmp_path / "deep" / "er" / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path) == (80 if deeper == "deep/er" else 10)


def test_a_limit_that_can_not_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "memory.max").mkdir()
    assert memory_bytes(tmp_path) == psutil.virtual_memory().total
