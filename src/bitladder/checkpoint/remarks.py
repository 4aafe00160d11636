"""What a format's library warns of while it loads a checkpoint, such as of kernels that are slower than it has."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "autoround"
"""of the library that takes whichever kernels are installed, and names what would give faster ones"""


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(" ".join(record.getMessage().split()))


@contextmanager
def library_warnings() -> Iterator[list[str]]:
    """The warnings that are logged inside the block, in order."""
    logger, listener = logging.getLogger(_LOGGER), _Listener()
    logger.addHandler(listener)
    try:
        yield listener.heard
    finally:
        logger.removeHandler(listener)
