"""Engines: a checkpoint's directory, token ids and a number of new tokens in, the time of every step out."""

from collections.abc import Mapping

from bitladder.errors import UserError
from bitladder.methods import method_of
from bitladder.perf.engines.eager import EAGER
from bitladder.perf.engines.engine import EngineRow
from bitladder.records import Scheme

ENGINES: dict[str, EngineRow] = {row.name: row for row in (EAGER,)}
DEFAULT = EAGER


def find_engine(name: str | None) -> EngineRow:
    """None: the default. Raises UserError, with all that there are."""
    if name is None:
        return DEFAULT
    if name not in ENGINES:
        known = ", ".join(f"{row.name} ({row.title})" for row in ENGINES.values())
        raise UserError(f"unknown engine {name!r}; expected one of {known}")
    return ENGINES[name]


def require_runs(engine: EngineRow, schemes: Mapping[str, Scheme], *, with_questions: bool) -> None:
    """Raise UserError for what an engine can't do: a rung of ``schemes``, by name, or answer questions."""
    for name, scheme in schemes.items():
        if (why := _refusal(engine, scheme)) is not None:
            raise UserError(f"--engine {engine.name} can't run {name}: {why}; leave {name} out, or take another engine")
    if with_questions and engine.answering is None:
        raise UserError(f"--engine {engine.name} answers no questions; add --only performance, or take another engine")


def _refusal(engine: EngineRow, scheme: Scheme) -> str | None:
    if engine.refusal is not None:
        return engine.refusal(scheme)
    method = method_of(scheme)
    return None if engine.name in (method.engines or (DEFAULT.name,)) else f"it {method.why_no_other}"
