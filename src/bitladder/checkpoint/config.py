"""A checkpoint's configuration files, read without transformers, and the values of generation_config.json by type."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError, create_model

from bitladder.errors import BrokenFileError, UserError
from bitladder.files import read_json_object
from bitladder.text.words import describe_mismatch

ADAPTER_CONFIG = "adapter_config.json"
GENERATION_CONFIG = "generation_config.json"
_REDIRECTIONS = ("configuration_files", "fusion_config", "transformers_weights")
"""fields, at any depth, by which transformers takes its configuration or weights from elsewhere, or makes another
network: what is audited would be another model than the one that is loaded"""
_MEND = "fetch or make it again"
GGUF_SUFFIX = ".gguf"
_SHOWN_CHARACTERS = 60
_MERGE = "load it with peft, then merge_and_unload() and save_pretrained(), and give that folder"


def read_config(directory: Path) -> dict[str, Any]:
    """The fields of config.json. Raises UserError where there is none, or an adapter or GGUF instead of a model, or
    where the configuration leads transformers to other files, BrokenFileError where it isn't a JSON object."""
    path = directory / "config.json"
    if (directory / ADAPTER_CONFIG).is_file():
        _refuse_adapter(directory, beside_model=path.is_file())
    packed = sorted(directory.glob(f"*{GGUF_SUFFIX}"))
    if packed and not list(directory.glob("*.safetensors")):
        refuse_gguf(str(packed[0]))
    if not path.is_file():
        if (directory / "study.json").is_file():
            made = sorted(str(one.parent) for one in directory.glob("checkpoints/*/config.json"))
            one_of = ", ".join(made) or "none is made yet"
            raise UserError(f"{directory}: a study's folder, expected a model or one of its checkpoints ({one_of})")
        raise UserError(f"{directory}: no config.json; expected a model saved with save_pretrained")
    config = read_json_object(path, _MEND)
    for name, value in _redirections(config):
        raise UserError(
            f"{path}: {name}: found {str(value)[:_SHOWN_CHARACTERS]!r}, which leads transformers away from the files "
            "that are audited; expected weights in model.safetensors or by its index alone: take the field out"
        )
    return config


def _redirections(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if name in _REDIRECTIONS and value is not None:
            yield name, value
        elif isinstance(value, dict):
            yield from _redirections(value)


def read_generation_config(directory: Path) -> dict[str, Any] | None:
    """The fields of generation_config.json; None where there is none. Raises BrokenFileError as `read_config`."""
    path = directory / GENERATION_CONFIG
    return read_json_object(path, f"{_MEND}, or delete it") if path.is_file() else None


def refuse_gguf(name: str) -> NoReturn:
    """Raise UserError, with the way to SafeTensors, for what llama.cpp runs and transformers only reads."""
    raise UserError(
        f"{name}: GGUF, llama.cpp's format, which isn't measured here; give the model that it was made from, or as 16 "
        "bits what AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=NAME).save_pretrained(DIR) makes of it"
    )


def _refuse_adapter(directory: Path, *, beside_model: bool) -> None:
    if beside_model:
        raise UserError(
            f"{directory}: {ADAPTER_CONFIG} beside a model, which transformers loads where peft is installed and else "
            f"ignores; move it away, or {_MERGE}"
        )
    try:
        base = read_json_object(directory / ADAPTER_CONFIG, _MEND).get("base_model_name_or_path")
    except BrokenFileError:
        base = None
    of = f" of {base}" if isinstance(base, str) else ""
    raise UserError(f"{directory}: an adapter{of}, expected a whole model: {_MERGE}")


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
