"""What the C library's allocator does with freed memory. Both do nothing where it isn't glibc's."""

import ctypes

_M_MMAP_THRESHOLD = -3
_MAPPED_FROM_BYTES = 128 << 10
"""glibc's initial value; setting it keeps it from growing"""


def map_large_blocks() -> None:
    """Let every freed large block go back to the system at once, for the rest of the process.

    By default glibc takes larger and larger blocks from its heap, where the temporary tensors of a quantization and
    the small results that outlive them come to lie side by side: what is freed between them stays with the process,
    up to twice the memory needed.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES)


def give_back_freed() -> None:
    """Return to the system what was freed until now, so that a later peak is what that later work needs."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
