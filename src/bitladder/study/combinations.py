"""Settings that do nothing beside another one: given together they are a mistake, and each hides it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bitladder.errors import UserError
from bitladder.records import Settings

_ASKING = (
    *("suite", "tasks", "limit", "limits", "num_fewshot", "batch_size", "backend", "token_budget", "chat_template"),
    *("max_drop", "divergence", "divergence_windows", "until_decided", "batch_dependence"),
)
_RUNNING = (
    *("scenarios", "requests", "prompt_tokens", "new_tokens", "max_batch_cap", "half_width_target", "time_limit_s"),
    "memory_limit",
)


@dataclass(frozen=True)
class _Idle:
    """``settings`` do nothing where ``other`` has such a value."""

    settings: tuple[str, ...]
    other: str
    is_such: Callable[[Any], bool]
    why: str


_IDLE = (
    _Idle(_ASKING, "only", lambda value: value == "performance", "--only performance, which asks no questions"),
    _Idle(_RUNNING, "only", lambda value: value == "accuracy", "--only accuracy, which runs no scenario"),
    _Idle(("divergence_windows",), "divergence", lambda value: value is False, "--no-divergence"),
    _Idle(
        ("max_batch_cap",),
        "scenarios",
        lambda value: "max-batch" not in value,
        "--scenarios without max-batch, which alone is searched for",
    ),
    _Idle(
        ("batch_size",),
        "backend",
        lambda value: value == "bitladder",
        "the backend bitladder, which packs by --token-budget; --backend hf takes it",
    ),
    _Idle(("token_budget",), "backend", lambda value: value == "hf", "--backend hf, which takes --batch-size"),
)


def require_use(named: Mapping[str, Any], values: Mapping[str, Any], where: Callable[[str], str]) -> None:
    """Raise UserError for a setting of ``named`` (the flags, or the file) that does nothing beside another of them, or
    beside that one's default. ``values``: all that are in force."""
    for idle in _IDLE:
        default = None if idle.other in values else Settings.model_fields[idle.other].default
        beside = named.get(idle.other, default)
        if beside is None or not idle.is_such(beside):
            continue
        for name in idle.settings:
            value = named.get(name)
            if value is not None and value is not False:  # what is switched off asks for nothing; 0 is a number
                raise UserError(f"{where(name)}: found {idle.why}; leave out one of the two")
