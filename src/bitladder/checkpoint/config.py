"""A checkpoint's configuration files, read without transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from bitladder.errors import BrokenFileError, UserError
from bitladder.json_files import read_json_object

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
