"""Random weights in the shape of a published model: for speed and memory, which do not depend on what weights say.

What does depend on them is put in: LLM.int8 computes in 16 bits the columns of a layer's input that hold an outlier,
so that without outliers its speed would be that of no real model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.models.cached import CachedModel

if TYPE_CHECKING:
    import torch

OUTLIER_GAIN = 16.0
"""Of the norm's weight in an outlier column. A normalized value is beyond LLM.int8's threshold of 6 in about 70% of
the rows, so that every batch has it."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


@dataclass(frozen=True)
class RandomShape(CachedModel):
    """A Llama of this configuration with seeded random weights, and the tokenizer of another built-in model."""

    tokenizer: CachedModel
    outlier_columns: int
    """of the inputs of every layer's attention and MLP, the same in all of them as in trained models"""
    seed: int
    config: dict[str, Any] = field(hash=False)

    def make(self, directory: Path) -> None:
        import torch
        from safetensors.torch import save_file
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(**self.config, dtype="bfloat16", architectures=["LlamaForCausalLM"])
        with torch.device("meta"):
            network = LlamaForCausalLM(config)
        save_file(
            dict(self._tensors(dict(network.named_parameters()))),
            directory / "model.safetensors",
            metadata={"format": "pt"},
        )
        config.save_pretrained(directory)
        tokenizer = self.tokenizer.cached_directory()
        for name in _TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                (directory / name).write_bytes((tokenizer / name).read_bytes())

    def _tensors(self, shapes: dict[str, "torch.Tensor"]) -> Iterator[tuple[str, "torch.Tensor"]]:
        """Every tensor from a generator of its own: NumPy's, which gives the same numbers on every machine."""
        import numpy as np
        import torch

        columns = np.random.default_rng(self.seed).permutation(self.config["hidden_size"])[: self.outlier_columns]
        for index, (name, shape) in enumerate(sorted(shapes.items())):
            if shape.ndim == 1:
                numbers = np.ones(shape.shape, dtype=np.float32)
                if "layernorm" in name:  # the layers' two; the last norm, before the head, stays plain
                    numbers[columns] = OUTLIER_GAIN
            else:
                numbers = np.random.default_rng([self.seed, index]).standard_normal(shape.shape, dtype=np.float32)
                numbers *= np.float32(0.02)
            yield name, torch.from_numpy(numbers).bfloat16()
