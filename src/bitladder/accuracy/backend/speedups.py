"""What is done on a GPU to be faster. The answers are the same up to rounding, whichever of it is on."""

import logging
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from bitladder.accuracy.backend.attention import Layer, PrefixCache
from bitladder.accuracy.backend.decoding import may_pad
from bitladder.accuracy.backend.plan import Request, attention_heads, plan_packs
from bitladder.accuracy.backend.tree import TreeAttention

if TYPE_CHECKING:
    from torch import device, dtype
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
"""of our kernels against plain products, relative to values of about 1"""


@dataclass(frozen=True)
class Speedups:
    overlapped: bool = False
    """requests are tokenized and planned in chunks, each while the device works on those before"""
    tree_kernel: bool = False
    """attention over a pack is one call of our kernel"""
    row_kernel: bool = False
    """log-probabilities are computed from the logits where they lie, not for the whole vocabulary"""
    compiled: bool = False
    """transformers' norms, MLPs and rotary embeddings are compiled by torch, so that each is few kernels; only where it
    is asked for, since it costs seconds in every process, and a small task is scored in less"""
    recorded: bool = False
    """a step of generation is launched as one, as a CUDA graph"""


NO_SPEEDUPS = Speedups()


def default_speedups(model: "PreTrainedModel") -> Speedups:
    """What pays on the model's device, as far as it works there; a kernel that doesn't is told in a warning."""
    if model.device.type != "cuda":
        return Speedups()
    config = model.config.get_text_config()
    heads, key_heads, size = attention_heads(model)
    group = max(1, heads // key_heads)
    softcap = getattr(config, "attn_logit_softcapping", None)
    windows = getattr(config, "sliding_window", None) is not None
    works = _kernels_work(model.device, model.dtype, group, size, softcap, windows)
    return Speedups(
        overlapped=True,
        tree_kernel=works,
        row_kernel=works,
        recorded=may_pad(model),
    )


def kernel_errors(speedups: Speedups) -> tuple[type[Exception], ...]:
    """What a kernel of ours raises where it can't run; none where there is none."""
    if not (speedups.tree_kernel or speedups.row_kernel):
        return ()
    from triton.errors import TritonError

    return (TritonError,)


@lru_cache
def _kernels_work(
    device: "device", dtype: "dtype", group: int, size: int, softcap: float | None, windows: bool
) -> bool:
    """Whether our kernels can be built here, and give what plain products give."""
    import torch

    try:
        from triton.errors import TritonError
    except ImportError as error:
        log.warning("without Triton (%s) attention and scoring take several kernels each", error)
        return False
    try:
        with torch.cuda.device(device):
            off = _largest_error(device, dtype, group, size, softcap, windows)
    except (TritonError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        log.warning("our kernels can't be built here (%s), so attention and scoring take several each", error)
        return False
    if not off <= _TOLERANCE[str(dtype).removeprefix("torch.")]:
        log.warning("our kernels are off by %.2g here, so attention and scoring take several each", off)
        return False
    return True


def _largest_error(
    device: "device", dtype: "dtype", group: int, size: int, softcap: float | None, windows: bool
) -> float:
    """Of attention over two small trees that share kept keys, without and with a window, and of a row's statistics."""
    import torch

    from bitladder.accuracy.backend.triton_kernels import block_rows, row_statistics

    random = np.random.default_rng(0)
    beginning, *middles = (random.integers(0, 99, length) for length in (90, 30, 41))
    texts = [[*beginning, *middle, *random.integers(0, 99, 7)] for middle in middles for _ in range(3)]
    requests = [Request(np.array(text[:-1], np.int32), np.array(text[-1:], np.int32)) for text in texts]
    generator = torch.Generator(device).manual_seed(0)
    errors = []
    for window in (None, 17) if windows else (None,):
        kept = PrefixCache()
        for pack in plan_packs(requests, seed=0, token_budget=95).packs:
            query, key, value = (
                torch.randn((len(pack.tokens), heads, size), generator=generator, device=device).to(dtype)
                for heads in (group * 2, 2, 2)
            )
            positions = torch.from_numpy(pack.positions).to(device)
            layer = Layer(0, size**-0.5, softcap, window)
            ours = TreeAttention(pack, kept, device, positions, block_rows(dtype)).attend(layer, query, key, value)
            # On the CPU, where no setting makes FP32 products less than that.
            wide = [part.float().cpu() for part in (query, key, value)]
            plain = TreeAttention(pack, _widened(kept), wide[0].device, positions.cpu())
            exact = plain._attend_units(layer, window, *wide)
            errors.append(float((ours.float().cpu() - exact).abs().max()))
    logits = (torch.randn((3, 5008), generator=generator, device=device) * 4).to(dtype)
    largest, log_sum, choice = row_statistics(logits)
    likely = torch.log_softmax(logits, -1, dtype=torch.float32)
    errors.append(float((likely - (logits.float() - largest[:, None] - log_sum[:, None])).abs().max()))
    errors.append(float((likely.argmax(-1) != choice).any()))
    return max(errors) if all(error == error for error in errors) else float("nan")


def _widened(kept: PrefixCache) -> PrefixCache:
    wide = PrefixCache()
    for (node, layer), (key, value) in kept._kept.items():
        wide.put(node, layer, key.float().cpu(), value.float().cpu())
    return wide
