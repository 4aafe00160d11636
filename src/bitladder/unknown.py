"""What isn't known, and why: one type for it, and names for the ends that code asks for.

Control flow asks for the type or the kind, never for words: these are made where they are printed or stored.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

BadEnd = Literal["failed", "timeout", "does_not_fit", "refused"]
"""how a checkpoint or a measurement ended that did not end well"""
Kind = Literal[
    "underivable",  # what was measured gives no such figure
    "not_made",  # the study has not come to the checkpoint
    "not_measured",  # nor to the measurement
    "unplanned",  # none of the merged studies plans it
    "elsewhere",  # another machine measured it
    "same_content",  # it is measured as another rung's
    "not_asked",  # the stages so far ask no document of the task
    BadEnd,
]
Value = TypeVar("Value")

_WORDS: dict[Kind, str] = {  # of a bad end its name
    "underivable": "{detail}",
    "not_made": "not made yet; run the study again to go on",
    "not_measured": "not measured yet; run the study again to go on",
    "unplanned": "measured by none of the merged studies",
    "elsewhere": "not measured on this machine",
    "same_content": "same content as {detail}, not measured",
    "not_asked": "none of its documents were asked yet",
}


@dataclass(frozen=True)
class Unknown:
    """Stands where a figure or an answer would."""

    detail: str = ""
    """of a figure all that is said of it, of a bad end what its record says, of ``same_content`` the other rung"""
    kind: Kind = "underivable"
    subject: str = ""
    """whose it is, before everything else that is said"""

    def of(self, subject: str) -> "Unknown":
        """The same, told of something that lacks its figure for want of this one."""
        return replace(self, subject=f"{subject}: {self.subject}")

    @property
    def bad_end(self) -> BadEnd | None:
        """None where there is nothing that ended."""
        return self.kind if self.kind in get_args(BadEnd) else None  # type: ignore[return-value]  # one of them

    @property
    def reason(self) -> str:
        """For people."""
        words = _WORDS.get(self.kind, self.kind.replace("_", " ")).format(detail=self.detail)
        return self.subject + (": ".join(filter(None, (words, self.detail))) if self.bad_end else words)


def known(value: Value | Unknown | None) -> Value | None:
    """The first of the two fields in which a record has what may be unknown."""
    return None if isinstance(value, Unknown) else value


def all_known(values: Iterable[Value | Unknown]) -> list[Value] | Unknown:
    """The values where all are known, else the first that isn't."""
    found: list[Value] = []
    for value in values:
        if isinstance(value, Unknown):
            return value
        found.append(value)
    return found


def reason_of(value: Any) -> str | None:
    """The second: why there is none."""
    return value.reason if isinstance(value, Unknown) else None
