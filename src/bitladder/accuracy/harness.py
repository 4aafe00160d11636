"""lm-eval as we run it: quiet, seeded, with a model that is already loaded."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

from bitladder.collector import uncollected
from bitladder.patches import patch_for_good, patched

_TEMPLATES = 1000
"""kept at most"""
_LIBRARIES = ("lm_eval", "transformers", "datasets", "bitsandbytes", "huggingface_hub")


@contextmanager
def as_we_run_it(seed: int, *, torch_too: bool = False) -> Iterator[None]:
    """`quiet`, `templates_kept`, `uncollected` and `seeded`."""
    with quiet(), templates_kept(), uncollected(), seeded(seed, torch_too=torch_too):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no messages below errors from lm-eval and its libraries; what matters is recorded."""
    import tqdm.std  # type: ignore[import-untyped]

    start = tqdm.std.tqdm.__init__

    def hidden(bar: Any, *arguments: Any, **options: Any) -> None:
        start(bar, *arguments, **{**options, "disable": True})

    levels = {logger: logger.level for logger in map(logging.getLogger, _LIBRARIES)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with patched("tqdm.std:tqdm.__init__", hidden):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def templates_kept() -> Iterator[None]:
    """lm-eval parses and compiles a task's templates anew for every document, which takes longer than scoring it does
    on a GPU: in the block each is compiled once.
    """
    from lm_eval.utils import env

    with patched("lm_eval.utils:env.from_string", lru_cache(_TEMPLATES)(env.from_string)):
        yield


def sandbox_templates() -> None:
    """From now on, in this process, lm-eval renders templates in Jinja's sandbox: one in a user's YAML reaches nothing
    of Python's insides. All templates that lm-eval comes with render there as they do without.
    """
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    plain = lm_eval.utils.env
    if isinstance(plain, SandboxedEnvironment):
        return
    sandboxed = SandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    sandboxed.filters.update(plain.filters)
    patch_for_good("lm_eval.utils:env", sandboxed)


@contextmanager
def seeded(seed: int, *, torch_too: bool = False) -> Iterator[None]:
    """Global random generators start at ``seed`` in the block and go on after it as if it hadn't been.

    Some tasks shuffle their choices with Python's or NumPy's while they read their documents; sampled generation draws
    from torch's.
    """
    import numpy

    states = random.getstate(), numpy.random.get_state()
    random.seed(seed)
    numpy.random.seed(seed)
    try:
        with _seeded_torch(seed) if torch_too else nullcontext():
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


@contextmanager
def _seeded_torch(seed: int) -> Iterator[None]:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
