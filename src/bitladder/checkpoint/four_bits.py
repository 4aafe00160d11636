"""Whether weights that are numbers of 16 bits or more had 4 before: then what is lost against them is not all."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitladder.checkpoint.tensors import TensorInfo
from bitladder.checkpoint.values import WINDOW, Bits, sample_windows
from bitladder.methods.kinds import is_packed
from bitladder.wording import name_some

FOUR_BIT_BLOCKS = (32, 64, WINDOW)
FOUR_BIT_VALUES = 16
FOUR_BIT_SHARE = 0.99
EXAMINED_TYPES = frozenset({"F32", "BF16", "F16"})


@dataclass(frozen=True)
class Dequantized:
    """Matrices whose blocks of neighbouring weights hold no more values than 4 bits have."""

    block_by_tensor: Mapping[str, int]
    share: float
    """of the bytes of all matrices"""

    @property
    def text(self) -> str:
        sizes = "/".join(str(size) for size in sorted(set(self.block_by_tensor.values())))
        return (
            f"{len(self.block_by_tensor):,} matrices ({self.share:.0%} of the bytes of all) were 4-bit: at most "
            f"{FOUR_BIT_VALUES} different values in blocks of {sizes} ({name_some(list(self.block_by_tensor))})"
        )


def find_dequantized(directory: Path, tensors: Mapping[str, TensorInfo]) -> Dequantized | None:
    """From a sample of each of the ``directory``'s matrices; None where none was 4-bit."""
    blocks: dict[str, int] = {}
    examined_bytes = 0
    for name, tensor in tensors.items():
        if tensor.dtype in EXAMINED_TYPES and len(tensor.shape) == 2 and not is_packed(name, tensors):
            examined_bytes += tensor.size_bytes
            block = four_bit_block(sample_windows(directory, tensor))
            if block is not None:
                blocks[name] = block
    if not blocks:
        return None
    return Dequantized(blocks, sum(tensors[name].size_bytes for name in blocks) / examined_bytes)


def four_bit_block(windows: Bits) -> int | None:
    """The largest block size (32, 64 or 128) at which the weights look dequantized from 4 bits; None where at none.

    ``windows``: bit patterns (n, 128). At least 99% of the blocks must hold at most 16 different ones; blocks of a
    single value tell nothing and don't count.
    """
    largest = None
    for block in FOUR_BIT_BLOCKS:
        ordered = np.sort(windows.reshape(-1, block), axis=1)  # (n * 128 / block, block)
        different = 1 + np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1)
        telling = different[different > 1]
        share = np.mean(telling <= FOUR_BIT_VALUES) if len(telling) else 0.0
        if share >= FOUR_BIT_SHARE:
            largest = block
        elif share < 2 * FOUR_BIT_SHARE - 1:  # each larger block holds these, so it can only be worse
            break
    return largest
