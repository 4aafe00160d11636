"""Data sets of the Hub where there may be no network: its cache at once, rather than after half a minute of retries."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from bitladder.patches import patched

_TIMEOUT_S = 5.0


@contextmanager
def offline_without_network() -> Iterator[None]:
    """Inside the block ``datasets`` reads nothing but its cache, where the Hub can't be reached."""
    from huggingface_hub import constants

    if _is_reachable(constants.ENDPOINT):
        yield
        return
    with (
        patched("huggingface_hub.constants:HF_HUB_OFFLINE", True),
        patched("datasets.config:HF_HUB_OFFLINE", True),
    ):
        yield


@functools.cache
def _is_reachable(endpoint: str) -> bool:
    """Whether anything answers there, through the proxy where there is one; asked once a process."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]  # httpx's own

    try:
        get_session().head(endpoint, timeout=_TIMEOUT_S)
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True
