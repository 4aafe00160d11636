"""How many tokens to forward at once: a power of two, so that what is free at the moment doesn't change the plan."""

from typing import TYPE_CHECKING

from bitladder.defaults import TOKEN_BUDGET

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LEAST = 256
CPU_ROWS = 32
MAX_ROWS = 2048
"""where a decoding step's products no longer gain from more rows, and its launch has long been spread over many"""


def token_budget(model: "PreTrainedModel") -> int:
    """The device's best budget, halved until its activations and logits take at most half of the free memory."""
    from bitladder.checkpoint.loading import available_bytes

    budget = TOKEN_BUDGET[model.device.type]
    free = available_bytes(str(model.device))
    while budget > _LEAST and budget * token_bytes(model) > free / 2:
        budget //= 2
    return budget


def token_bytes(model: "PreTrainedModel") -> int:
    """Upper estimate of the memory one packed token takes while it is forwarded and scored.

    The logits twice (soft-capping copies them), the widest layer's inside three times, and a dozen hidden states in
    FP32, which norms are computed in. On a CPU all of it is in FP32, since 16-bit products may be computed so.
    """
    config = model.config.get_text_config()
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    size = 4 if model.device.type == "cpu" else model.dtype.itemsize
    return int(size * (2 * config.vocab_size + 3 * wide) + 4 * 12 * config.hidden_size)


def rows_at_once(model: "PreTrainedModel", length: int, most: int = MAX_ROWS) -> int:
    """How many of up to ``most`` rows of ``length`` tokens to generate side by side.

    Their keys and values take at most a quarter of what the weights leave of the device's memory, and not of what is
    free at the moment: LLM.int8's texts depend on the number.
    """
    from bitladder.checkpoint.loading import device_bytes

    rows = min(most, CPU_ROWS if model.device.type == "cpu" else MAX_ROWS)
    left = device_bytes(str(model.device)) - sum(tensor.nbytes for tensor in model.parameters())
    while rows > 1 and rows * length * key_value_bytes(model) > left / 4:
        rows //= 2
    return rows


def key_value_bytes(model: "PreTrainedModel") -> int:
    """Memory of one token's keys and values in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)
