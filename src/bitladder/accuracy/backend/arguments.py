"""What lm-eval's command line passes to a model, as our constructor's arguments."""

from pathlib import Path
from typing import Any

from bitladder.cuda import count_cards, require_usable
from bitladder.environment import describe_gpus
from bitladder.errors import UnknownNameError, UserError

_OWN = ("token_budget", "seed", "max_rows", "max_length", "cache_requests")
_NAMES = ("pretrained", "revision", "dtype", "device", "trust_remote_code", "batch_size", "max_batch_size", *_OWN)


def load_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Load the model and its tokenizer.

    ``pretrained`` is a Hub id, a directory or a built-in model; ``dtype`` float32, bfloat16, float16 or auto;
    ``batch_size`` counts only for a model that can't be batched our way, ``max_batch_size`` never. Raises
    UnknownNameError for another name, UserError for no or a wrong value, and
    where no ``device`` is given and torch can't use the GPU that is here.
    """
    import torch

    from bitladder.checkpoint.loading import load_pretrained, load_tokenizer
    from bitladder.models.source import resolve_model

    arguments = {name: value for name, value in given.items() if value is not None}
    for name in arguments:
        if name not in _NAMES:
            raise UnknownNameError("model argument", name, _NAMES)
    if "pretrained" not in arguments:
        raise UserError("no model given; expected --model_args pretrained=MODEL")
    dtype = str(arguments.get("dtype", "auto"))
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise UserError(f"dtype {dtype!r}; expected auto, float32, bfloat16 or float16")
    directory: Path = resolve_model(str(arguments["pretrained"]), arguments.get("revision")).directory
    trust: bool = bool(arguments.get("trust_remote_code", False))
    device = str(arguments.get("device") or _default_device())
    options = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}
    loaded: dict[str, Any] = {
        "model": load_pretrained(directory, device, trust_remote_code=trust, **options),
        "tokenizer": load_tokenizer(directory, trust_remote_code=trust),
        **{name: arguments[name] for name in _OWN if name in arguments},
    }
    if str(arguments.get("batch_size", "auto")).isdecimal():
        loaded["fallback_batch_size"] = int(arguments["batch_size"])
    return loaded


def _default_device() -> str:
    require_usable(describe_gpus())
    return "cuda" if count_cards() else "cpu"
