"""How many tokens to forward at once: a power of two, so that what is free at the moment doesn't change the plan."""

from typing import TYPE_CHECKING

from bitladder.checkpoint.loading import available_bytes, device_bytes
from bitladder.checkpoint.skeleton import embedding_width, vocabulary_size
from bitladder.defaults import TOKEN_BUDGET

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LEAST = 256
CPU_ROWS = 32
MAX_ROWS = 2048
"""where a decoding step's products no longer gain from more rows, and its launch has long been spread over many"""


def budget_on(device: str, bytes_a_token: int) -> int:
    """Tokens: the device's best budget, halved until its activations and logits (`token_bytes`) take at most half of
    the free memory."""
    budget = TOKEN_BUDGET[device.partition(":")[0]]
    free = available_bytes(device)
    while budget > _LEAST and budget * bytes_a_token > free / 2:
        budget //= 2
    return budget


def token_bytes(model: "PreTrainedModel", device_type: str) -> int:
    """Upper estimate of the memory one packed token takes while it is forwarded and scored.

    The logits twice (soft-capping copies them), the widest layer's inside three times, and a dozen hidden states in
    FP32, which norms are computed in. On a CPU all of it is in FP32, since 16-bit products may be computed so.
    """
    vocabulary, hidden = vocabulary_size(model), embedding_width(model)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    features = (getattr(module, "out_features", 0) for module in model.modules() if module is not head)
    wide = max([4 * hidden, *(number for number in features if isinstance(number, int))])
    size = 4 if device_type == "cpu" else model.dtype.itemsize
    return int(size * (2 * vocabulary + 3 * wide) + 4 * 12 * hidden)


def rows_at_once(model: "PreTrainedModel", length: int, most: int = MAX_ROWS) -> int:
    """How many of up to ``most`` rows of ``length`` tokens to generate side by side.

    Their keys and values take at most a quarter of what the weights leave of the device's memory, and not of what is
    free at the moment: LLM.int8's texts depend on the number.
    """
    rows = min(most, CPU_ROWS if model.device.type == "cpu" else MAX_ROWS)
    left = device_bytes(str(model.device)) - sum(tensor.nbytes for tensor in model.parameters())
    while rows > 1 and rows * length * key_value_bytes(model) > left / 4:
        rows //= 2
    return rows


def key_value_bytes(model: "PreTrainedModel") -> int:
    """Memory of one token's keys and values in all layers of a model that is scored our way."""
    _, key_heads, size = attention_heads(model)
    layers: int = model.config.get_text_config().num_hidden_layers
    return 2 * layers * key_heads * size * model.dtype.itemsize


def attention_heads(model: "PreTrainedModel") -> tuple[int, int, int]:
    """Query heads, key heads, and the larger of the sizes of a key and of a value.

    Raises ValueError where the configuration doesn't say, or where they differ between layers.
    """
    config = model.config.get_text_config()
    try:
        heads = config.num_attention_heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        # of latent attention, whose keys have a rotated and an unrotated part
        latent = sum(getattr(config, name, None) or 0 for name in ("qk_nope_head_dim", "qk_rope_head_dim"))
        return int(heads), int(key_heads), int(max(size, latent, getattr(config, "v_head_dim", None) or 0))
    except (AttributeError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"its configuration has no one number of heads ({str(error).splitlines()[0]})") from None
