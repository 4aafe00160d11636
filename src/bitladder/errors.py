"""What can go wrong by the user's hand or the machine's limits; everything else is a bug and keeps its traceback.

UserError                 exit 2: bad input or a missing prerequisite
├── UnknownNameError      a model, rung, task or suite that doesn't exist; names the nearest
├── BrokenFileError       a file that can't be parsed, or isn't what its manifest says
└── DoesNotFitError       predicted or seen not to fit memory or disk; in a study an outcome, not an end
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what was found, what was expected, what to do."""


class UnknownNameError(UserError):
    """A name that is not in the set of known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = list(known)
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if nearest:
            help_text = f"nearest: {', '.join(nearest)}"
        else:
            help_text = f"known: {', '.join(known[:12])}{', …' if len(known) > 12 else ''}"
        super().__init__(f"unknown {kind} {name!r}; {help_text}{'; ' + hint if hint else ''}")


class BrokenFileError(UserError):
    """A file that cannot be parsed, or that parses and is not what the manifest or config says."""


class DoesNotFitError(UserError):
    """Predicted (before loading) or seen not to fit the memory or the disk."""
