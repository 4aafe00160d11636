"""Every family that transformers' AutoModelForCausalLM knows, as a tiny checkpoint of random weights.

The families are asked for, not listed. A configuration begins as its class's default and is shrunk by the names of its
fields, most of which families share; `SPECIAL` has what follows from no name.
"""

from pathlib import Path
from typing import Any

HIDDEN, HEADS, KEY_HEADS, HEAD, INNER, VOCABULARY, CONTEXT, EXPERTS = 64, 4, 2, 16, 128, 512, 512, 4

_NAMES_BY_SIZE: tuple[tuple[int, str], ...] = (
    (
        HIDDEN,
        "hidden_size d_model n_embd embedding_size word_embed_proj_dim attention_hidden_size lru_width mamba_d_ssm "
        "hidden_size_per_layer_input backbone_hidden_size adapter_out_dim adapter_in_dim out_hidden_size ple_embed_dim "
        "cross_attention_hidden_size hidden_size_global attention_dim emb_dim input_embedding_size",
    ),
    (
        INNER,
        "intermediate_size d_ff ffn_dim dff dim_ff n_inner decoder_ffn_dim encoder_ffn_dim ffn_hidden_size "
        "intermediate_size_mlp dense_intermediate_size prefix_dense_intermediate_size block_ff_dim "
        "mamba_intermediate_size shared_intermediate_size",
    ),
    (
        32,
        "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size moe_ffn_hidden_size "
        "expert_ffn_hidden_size shared_experts_intermediate_size q_lora_rank kv_lora_rank o_lora_rank hc_lowrank "
        "laurel_rank moe_latent_size dim_head sliding_window attention_window_size sliding_window_size chunk_size "
        "mamba_chunk_size window_size mamba_dt_rank time_step_rank num_filters attention_chunk_size",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
        "linear_num_value_heads swa_num_attention_heads linear_num_heads attention_heads num_centroids",
    ),
    (
        KEY_HEADS,
        "num_key_value_heads num_kv_heads kv_n_heads linear_num_key_heads swa_num_key_value_heads "
        "num_global_key_value_heads",
    ),
    (
        HEAD,
        "head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim linear_key_head_dim linear_value_head_dim swa_head_dim "
        "global_head_dim mamba_head_dim mamba_d_head d_kv kv_channels linear_head_dim index_head_dim rotary_dim "
        "ssm_state_size state_size mamba_d_state attention_head_dim indexer_head_dim d_rel swa_v_head_dim",
    ),
    (2 * HEAD, "qk_head_dim"),
    (
        2,
        "num_hidden_layers n_layer num_layers n_layers decoder_layers encoder_layers num_experts_per_tok moe_topk "
        "top_k_experts moe_top_k num_experts_per_token moe_k num_decoder_layers index_n_heads num_zero_experts "
        "zero_expert_num n_input_layers n_recurrent_layers n_output_layers num_layers_per_stack mamba_n_groups "
        "n_groups num_memory_blocks",
    ),
    (EXPERTS, "num_experts num_local_experts n_routed_experts moe_num_experts hc_mult index_topk"),
    (
        1,
        "topk_group n_group n_shared_experts num_shared_experts first_k_dense_replace moe_num_shared_experts "
        "num_expert_group num_dense_layers first_k_dense",
    ),
    (0, "num_nextn_predict_layers num_kv_shared_layers mtp_num_hidden_layers"),
    (VOCABULARY, "vocab_size vocab_size_per_layer_input unpadded_vocab_size output_vocab_size ngram_vocab_size_base"),
    (
        CONTEXT,
        "max_position_embeddings n_positions n_ctx max_seq_len model_max_length max_source_positions "
        "max_target_positions rel_extent",
    ),
)
_SIZES = {name: size for size, names in _NAMES_BY_SIZE for name in names.split()}
_TOKENS = {"eos_token_id": 1, "pad_token_id": 2, "sep_token_id": 3}
_TOKEN_NAMES = (*_TOKENS, "bos_token_id", "decoder_start_token_id", "forced_eos_token_id", "forced_bos_token_id")
_KINDS_OF_LAYERS = ("layer_types", "layers_block_type")

SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 512},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": KEY_HEADS, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {"num_hidden_layers": 6, "layer_types": ["full_attention"] * 6},
    "dots1": {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"per_layer_config": {}},
    "falcon_h1": {"mamba_n_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["mamba", "attention"], "num_hidden_layers": 2},
    "hrm_text": {"num_hidden_layers": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "mamba2": {"num_heads": 8},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 32]},
    "roc_bert": {
        "pronunciation_vocab_size": 64,
        "shape_vocab_size": 64,
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
    },
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 2 * HIDDEN,
        "attention_head_dim": 2 * HIDDEN // HEADS,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "hybrid_layer_ids": [1],
        "num_hidden_layers": 2,
        "n_mamba_heads": 4,
        "mamba_headdim": 32,
        "attention_hidden_size": 2 * HIDDEN,
        "attention_head_dim": 2 * HIDDEN // HEADS,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def causal_families() -> tuple[str, ...]:
    """Model types of all of transformers' causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """A configuration of the family whose model has about 100,000 weights. Raises what transformers has against it."""
    from transformers import CONFIG_MAPPING

    return _shrunk(CONFIG_MAPPING[model_type], {**SPECIAL.get(model_type, {}), **overrides})


def _shrunk(config_class: Any, overrides: dict[str, Any]) -> Any:
    default = config_class()
    known = default.to_dict()
    for name, size in (("head_dim", HEAD), ("num_key_value_heads", KEY_HEADS), ("num_experts_per_tok", 2)):
        if known.get(name, 0) is None:
            known[name] = size
    fields: dict[str, Any] = {}
    for name, value in known.items():
        if name in (getattr(config_class, "sub_configs", None) or {}) and isinstance(value, dict):
            fields[name] = _shrunk(type(getattr(default, name)), overrides.get(name, {}))
        elif name in _TOKEN_NAMES and value is not None:
            fields[name] = _TOKENS.get(name, 0)
        elif name in _SIZES and isinstance(value, int) and not isinstance(value, bool):
            fields[name] = _SIZES[name] if value > 0 else value
        elif name in _KINDS_OF_LAYERS and isinstance(value, list | tuple):
            kinds = list(dict.fromkeys(value))
            fields[name] = kinds if len(kinds) > 1 else kinds * 2
    layers = max((len(fields[name]) for name in _KINDS_OF_LAYERS if name in fields), default=0)
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if layers and name in fields:
            fields[name] = layers
    if "qk_rope_head_dim" in fields and "num_key_value_heads" in fields:
        fields["num_key_value_heads"] = fields["num_attention_heads"]  # latent attention has no groups
    return config_class(**{**fields, **overrides})


def save_tiny_family(model_type: str, directory: Path, **overrides: Any) -> Path:
    """A BF16 checkpoint of the family with random weights and a byte-level tokenizer; returns the directory."""
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    from tiny_tokenizer import save_tokenizer

    set_seed(20240)
    config = tiny_config(model_type, **overrides)
    for one in (config, config.get_text_config()):
        if hasattr(one, "initializer_range"):
            one.initializer_range = 0.1
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.nan_to_num_(0.0, 1.0, -1.0)  # RecurrentGemma's beginning may be infinite in 16 bits
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory
