"""Models to test on: a tiny one of random weights, made here, and the trained built-in one."""

import gc
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol

import pytest

_USER_CACHE = os.environ.get("BITLADDER_CACHE")

# Tests run side by side, and their workers too: more threads than cores are slower by far.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nothing here is compiled, and each process that imports bitsandbytes would take a second to be ready for it.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

# Triton reads it when it is imported, which others do before our tests: its kernels run on the CPU then.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

SLOWEST = ("test_smollm2_study.py", "test_study_run.py", "test_notebook.py")
"""Begun first, so that the rest runs beside them."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What the tests import is never looked through for cycles: a million objects, half a second each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in SLOWEST)


class MakeTinyLlama(Protocol):
    """Saves a random-weight Llama with its tokenizer to a directory; keywords go to LlamaConfig."""

    def __call__(self, directory: Path, *, max_shard_size: str = "5GB", dtype: str = "bfloat16", **config: Any) -> Path:
        """Returns the directory."""


@pytest.fixture(scope="session")
def make_tiny_llama() -> MakeTinyLlama:
    return _make_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BF16 checkpoint of a random Llama: hidden 64, 2 layers, tied head, 512 ids, byte-level tokenizer of 391 without a
    padding token."""
    return _make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The converted BF16 checkpoint of builtin:smollm2-135m, in the user's own cache (converted there once)."""
    from bitladder.models.builtin import SMOLLM2

    with pytest.MonkeyPatch.context() as patch:
        if _USER_CACHE is None:
            patch.delenv("BITLADDER_CACHE", raising=False)
        else:
            patch.setenv("BITLADDER_CACHE", _USER_CACHE)
        return SMOLLM2.cached_directory()


def _make_tiny_llama(directory: Path, *, max_shard_size: str = "5GB", dtype: str = "bfloat16", **config: Any) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    from tiny_tokenizer import save_tokenizer

    tokenizer = save_tokenizer(directory)
    set_seed(20240)
    settings: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **config,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(getattr(torch, dtype))
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return directory
