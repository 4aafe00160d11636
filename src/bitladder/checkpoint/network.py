"""Whether two checkpoints are one network: the fields of config.json that define it, types and quantization aside."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.checkpoint.loading import load_config
from bitladder.errors import UserError
from bitladder.records import LoadPolicy

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FIRST = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
    "rope_parameters",
)
"""named before any other that differs"""
_INCIDENTAL = frozenset(
    {
        "attention_dropout",
        "auto_map",
        "compression_config",
        "initializer_range",
        "pretraining_tp",
        "quantization_config",
    }
    | {"use_cache"}
)
"""fields that make no other network; those that transformers keeps for every architecture are left out too"""
_SAME = 1e-6
"""relative: a float that went through FP32 is the same"""


def require_same_network(baseline: Path, directory: Path, policy: LoadPolicy = LoadPolicy()) -> None:
    """Raise UserError naming the first field in which ``directory`` is another network than the baseline."""
    expected = _fields(load_config(baseline, policy))
    found = _fields(load_config(directory, policy))
    for name in dict.fromkeys((*_FIRST, *expected, *found)):
        if not _equal(found.get(name), expected.get(name)):
            raise UserError(
                f"{directory}: another architecture than the baseline's: {name} {found.get(name)}, expected "
                f"{expected.get(name)}; give a checkpoint of the same model"
            )


def _fields(config: "PretrainedConfig") -> dict[str, Any]:
    from transformers import PretrainedConfig

    text = config.get_text_config()
    general = PretrainedConfig().to_dict().keys() - {"tie_word_embeddings"}
    ours = {name: value for name, value in text.to_dict().items() if name not in general | _INCIDENTAL}
    return {**ours, "model_type": config.model_type}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    numbers = list(_numbers(one, other))
    return math.isclose(*numbers, rel_tol=_SAME) if len(numbers) == 2 else bool(one == other)


def _numbers(*values: Any) -> Iterator[float]:
    return (value for value in values if isinstance(value, int | float) and not isinstance(value, bool))
