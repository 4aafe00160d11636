"""What lm-eval's command line passes to a model, as our constructor's arguments."""

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.accuracy.backend.attention import UnsupportedModelError
from bitladder.accuracy.backend.speedups import Speedups, default_speedups
from bitladder.accuracy.backend.support import require_known
from bitladder.errors import UnknownNameError, UserError
from bitladder.machine.cards import count_cards, require_usable
from bitladder.machine.host import describe_gpus
from bitladder.records import LoadPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_OWN = ("token_budget", "seed", "max_rows", "max_length", "cache_requests")
_SPEEDUPS = tuple(way.name for way in dataclasses.fields(Speedups))
_FROM_COMMAND = ("batch_size", "max_batch_size", "device")
_NAMES = ("pretrained", "revision", "dtype", "trust_remote_code", *_FROM_COMMAND, *_OWN, *_SPEEDUPS)


def load_arguments(given: dict[str, Any], from_command: dict[str, Any]) -> dict[str, Any]:
    """Load the model and its tokenizer. ``given`` is ``--model_args``, ``from_command`` what options of lm-eval say.

    ``pretrained`` is a Hub id, a directory or a built-in model; ``dtype`` float32, bfloat16, float16 or auto;
    ``batch_size`` counts only for a model that can't be batched our way, ``max_batch_size`` never; the fields of
    `Speedups` are true or false. Where lm-eval's default device is missing, which it names unasked, the CPU is used,
    and that is told in a warning. Raises UnknownNameError for another name, UserError for no or a wrong value, and
    where torch can't use the GPU that is here.
    """
    import torch
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from bitladder.checkpoint.loading import load_pretrained, load_tokenizer
    from bitladder.models.source import resolve_model

    arguments = {name: value for name, value in {**from_command, **given}.items() if value is not None}
    for name in arguments:
        if name not in _NAMES:
            raise UnknownNameError("model argument", name, _NAMES)
    if "pretrained" not in arguments:
        raise UserError("no model given; expected --model_args pretrained=MODEL")
    dtype = str(arguments.get("dtype", "auto"))
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise UserError(f"dtype {dtype!r}; expected auto, float32, bfloat16 or float16")
    directory: Path = resolve_model(str(arguments["pretrained"]), arguments.get("revision")).directory
    device = str(arguments.get("device") or _fastest_device())
    commands = EvaluatorConfig.__dataclass_fields__["device"].default
    if given.get("device") is None and device == commands and not count_cards():
        log.warning("no %s, lm-eval's default device, on this machine: running on the CPU", device)
        device = "cpu"
    policy = LoadPolicy(device=device, trust_remote_code=bool(arguments.get("trust_remote_code", False)))
    options = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}
    loaded: dict[str, Any] = {
        "model": load_pretrained(directory, policy, **options),
        "tokenizer": load_tokenizer(directory, policy),
        **{name: arguments[name] for name in _OWN if name in arguments},
    }
    if str(arguments.get("batch_size", "auto")).isdecimal():
        loaded["fallback_batch_size"] = int(arguments["batch_size"])
    speedups = {name: arguments[name] for name in _SPEEDUPS if name in arguments}
    for name, value in speedups.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} {value!r}; expected true or false")
    if speedups:
        loaded["speedups"] = _chosen_speedups(loaded["model"], speedups)
    return loaded


def _chosen_speedups(model: "PreTrainedModel", given: dict[str, bool]) -> Speedups:
    """Raises UserError where the model, or this device, goes none of ours."""
    names = ", ".join(given)
    try:
        require_known(model)
    except UnsupportedModelError as error:
        raise UserError(
            f"{names}: found a model that lm-eval's hf backend has to score, because {error}; leave {names} out"
        ) from None
    usual = default_speedups(model)
    for name in ("tree_kernel", "row_kernel"):
        if given.get(name) and not getattr(usual, name):
            raise UserError(
                f"{name}: found {model.device}, where our kernels don't run; expected a GPU with Triton; leave it out"
            )
    if given.get("recorded") and not usual.recorded:
        raise UserError(
            "recorded: found a device or a model whose steps can't be recorded; expected a GPU, and no layers of "
            "experts or of LLM.int8's outliers; leave it out"
        )
    return dataclasses.replace(usual, **given)


def _fastest_device() -> str:
    require_usable(describe_gpus())
    return "cuda" if count_cards() else "cpu"
