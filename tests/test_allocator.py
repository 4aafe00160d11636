"""What the process keeps of the memory that it freed."""

import platform
import subprocess
import sys

import pytest

KEPT_KIB = 100 * 64
FREED_BETWEEN = """
import psutil
from bitladder.machine.host import map_large_blocks
{call}
kept, before = [], psutil.Process().memory_info().rss
bytearray(16 << 20)  # freed at once: glibc then takes blocks of that size from its heap
for step in range(100):  # temporaries that grow, and what outlives them
    temporary = bytearray((1 << 20) + step * (32 << 10))
    kept.append(bytearray(64 << 10))
    del temporary
print((psutil.Process().memory_info().rss - before) >> 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's allocator")
def test_freed_large_blocks_do_not_stay_between_what_outlives_them() -> None:
    def grown_kib(call: str) -> int:
        code = FREED_BETWEEN.format(call=call)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    assert grown_kib("map_large_blocks()") < 1.5 * KEPT_KIB < grown_kib("")
