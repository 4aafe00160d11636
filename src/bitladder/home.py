"""The user's home, which a container's user may not have, and the cache's place in it."""

import os
from pathlib import Path

from bitladder.errors import UserError


def cache_directory() -> Path:
    """``$BITLADDER_CACHE``, else ``$XDG_CACHE_HOME/bitladder``, else ``~/.cache/bitladder``; absolute.

    Raises UserError where that is in a home that there isn't.
    """
    explicit = os.environ.get("BITLADDER_CACHE")
    if explicit:
        return expand_user(explicit).absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared:
        return expand_user(shared).absolute() / "bitladder"
    try:
        return Path.home() / ".cache" / "bitladder"
    except RuntimeError:
        raise UserError(
            f"user {os.getuid()} has no home for the cache: HOME isn't set and the system knows none; set "
            "BITLADDER_CACHE to a folder to write in"
        ) from None


def expand_user(path: str | Path) -> Path:
    """The path with ``~`` or ``~NAME`` in full. Raises UserError for a home that there isn't."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such home; give the path from / on, or one from here as ./~") from None


def lend_home_to_libraries() -> None:
    """Without a home let the Hub's libraries keep their files in our cache: they would in a folder called ``~``."""
    try:
        Path.home()
    except RuntimeError:
        if os.environ.get("BITLADDER_CACHE") and not os.environ.get("XDG_CACHE_HOME"):
            os.environ.setdefault("HF_HOME", str(cache_directory() / "huggingface"))
