"""A container's share of main memory counts, not only the machine's."""

from pathlib import Path

import psutil

from bitladder.main_memory import available_memory_bytes, memory_bytes

MIB = 1 << 20


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
