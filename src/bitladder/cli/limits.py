"""The flags that ``recommend`` and ``report`` share: what the deployment can't exceed, and what to make best."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from bitladder.errors import UnknownNameError, UserError
from bitladder.units import parse_bytes, parse_percent, parse_points

if TYPE_CHECKING:
    from bitladder.recommendation import Limits

Value = TypeVar("Value")

MaxMemory = Annotated[
    str | None,
    typer.Option(
        help="Most peak memory at batch 1, such as 2GiB: of the device minus its idle use; "
        "on a CPU the process's resident size, libraries included."
    ),
]
MaxDrop = Annotated[str | None, typer.Option(help="Most points of the aggregate below the baseline, such as 1pt.")]
MinRecovery = Annotated[
    str | None,
    typer.Option(help="Instead of --max-drop: least aggregate as a share of the baseline's own, such as 99%."),
]
OnMachine = Annotated[
    str | None, typer.Option("--machine", help="Part of the name of the machine to decide on, where there are several.")
]
Optimize = Annotated[str | None, typer.Option(help="latency, throughput or memory (peak at batch 1); by default each.")]


def parse_limits(
    max_memory: str | None, max_drop: str | None, optimize: str | None, min_recovery: str | None = None
) -> "Limits":
    """Raises UserError for a flag that is no size, no number of points, no number of per cent or no goal, and for two
    that say how much may be lost."""
    from bitladder.recommendation import Limits
    from bitladder.summary.goals import CRITERIA

    goals = {str(goal): goal for goal in CRITERIA}
    if optimize is not None and optimize not in goals:
        raise UnknownNameError("goal", optimize, goals)
    if min_recovery is not None and max_drop is not None:
        raise UserError("--min-recovery and --max-drop both say how much may be lost; give one of them")
    return Limits(
        max_memory_bytes=_parsed("--max-memory", max_memory, parse_bytes),
        max_drop_points=_parsed("--max-drop", max_drop, parse_points),
        min_recovery_percent=_parsed("--min-recovery", min_recovery, parse_percent),
        optimize=None if optimize is None else goals[optimize],
    )


def _parsed(flag: str, text: str | None, parse: Callable[[str], Value]) -> Value | None:
    """A limit of more than 0, or None where the flag is absent."""
    if text is None:
        return None
    try:
        value = parse(text)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from None
    if not value:
        raise UserError(f"{flag}: found {text!r}, expected more than 0")
    return value
