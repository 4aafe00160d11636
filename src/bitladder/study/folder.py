"""A study's folder: one study, written by one process."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bitladder.errors import UserError
from bitladder.files import make_folder, naming, require_own_folder
from bitladder.store import MERGE_FILE

BEGUN = (".lock", "logs", "prompts", ".study.json.*.tmp")
"""what a study leaves that ended before its plan was made"""


def require_study_folder(out: Path) -> None:
    """Raise UserError for a file, and for a folder that holds something else than a study."""
    require_own_folder(out, "study", ("study.json", MERGE_FILE), BEGUN)


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Make the folder, and keep other studies out of it. Raises UserError for another's, or one that is in use."""
    require_study_folder(out)
    make_folder(out)
    path = out / ".lock"
    lock = path.open("w", encoding="utf-8")
    try:
        try:
            with naming(path):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another study is writing here; wait for it, or use another --out") from None
        yield
    finally:
        with suppress(OSError):  # nothing is in it, and what went wrong before is to be told
            lock.close()
