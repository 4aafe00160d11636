"""The values of generation_config.json by their types: transformers checks hardly any before it generates."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError, create_model

from bitladder.wording import describe_mismatch

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Count = Annotated[int, Field(strict=True, ge=0)]
_Positive = Annotated[int, Field(strict=True, ge=1)]
_Token = Annotated[int, Field(strict=True, ge=0)]
_TokenOrNone = Annotated[int, Field(strict=True, ge=-1)]
"""some families' files have -1 for a token that they lack"""
_KINDS: dict[Any, str] = {
    StrictBool: "do_sample use_cache renormalize_logits remove_invalid_values token_healing output_attentions "
    "output_hidden_states output_scores output_logits return_dict_in_generate low_memory disable_compile",
    StrictBool | StrictStr: "early_stopping",
    StrictStr: "cache_implementation",
    StrictStr | list[StrictStr]: "stop_strings",
    _Number: "temperature top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty length_penalty "
    "encoder_repetition_penalty diversity_penalty guidance_scale penalty_alpha max_time",
    _Positive: "num_beams num_return_sequences num_beam_groups max_new_tokens",
    _Count: "max_length min_length min_new_tokens top_k no_repeat_ngram_size encoder_no_repeat_ngram_size",
    _Token | list[_Token]: "eos_token_id forced_eos_token_id",
    _TokenOrNone: "pad_token_id bos_token_id forced_bos_token_id",
    _TokenOrNone | list[_TokenOrNone]: "decoder_start_token_id",
    list[StrictInt]: "suppress_tokens begin_suppress_tokens",
    list[list[StrictInt]]: "bad_words_ids",
}
_FIELDS: dict[str, Any] = {name: (kind | None, None) for kind, names in _KINDS.items() for name in names.split()}
_Generation = create_model("_Generation", __config__=ConfigDict(extra="ignore"), **_FIELDS)


def wrong_value(fields: Mapping[str, Any]) -> str | None:
    """The first field that isn't of the type that generating takes, with what was found and what is expected."""
    try:
        _Generation.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{first['loc'][0]}: {describe_mismatch(first)}"
    return None
