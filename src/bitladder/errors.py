"""What can go wrong by the user's hand or the machine's limits; everything else is a bug and keeps its traceback.

UserError                 exit 2: bad input or a missing prerequisite
├── UnknownNameError      a model, rung, task or suite that doesn't exist; names the nearest
├── BrokenFileError       a file that can't be parsed, or isn't what its manifest says
├── NotCausalError        a model of another kind, such as an encoder
└── DoesNotFitError       predicted or seen not to fit memory or disk; in a study an outcome, not an end
"""

import difflib
import errno
import os
from collections.abc import Iterable

_AGAIN = "then run the same command again to go on"
_OF_A_PLACE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS),
)
_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_A_DISK = (
    *(errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV),
    *(getattr(errno, name, errno.EIO) for name in ("EREMOTEIO", "ENOMEDIUM", "EUCLEAN")),  # Linux's own
    *(errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EBUSY, errno.ETXTBSY),
)
_REMEDIES = {
    **dict.fromkeys(_OF_A_PLACE, "expected a place to read and write in"),
    **dict.fromkeys(_OF_SPACE, f"make room there, {_AGAIN}"),
    **dict.fromkeys(_OF_A_DISK, f"see to the disk or its connection, {_AGAIN}"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), f"allow more open files (ulimit -n), {_AGAIN}"),
    errno.ENOMEM: f"free some memory, {_AGAIN}",
    errno.EAGAIN: f"end other processes or allow more (ulimit -u), {_AGAIN}",  # what a fork is refused with
}


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what was found, what was expected, what to do."""


def describe_machine_error(error: OSError) -> str | None:
    """One line for what the machine or the user's place on it refuses; None for what only a bug of ours asks for."""
    remedy = _REMEDIES.get(error.errno or 0)
    name = error.filename2 or error.filename  # the second is what was to be made
    if remedy is None or error.errno is None or (name is None and error.errno in _OF_A_PLACE):
        return None
    reason = os.strerror(error.errno).lower()
    if name is None:
        return f"{reason}; {remedy}"
    return f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {reason}; {remedy}"


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


class NotCausalError(UserError):
    """A model of another kind than those that say after each token what comes next."""


class DoesNotFitError(UserError):
    """Predicted (before loading) or seen not to fit the memory or the disk."""
