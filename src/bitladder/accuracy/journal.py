"""What finished batches of an evaluation gave, so that one that is killed doesn't compute them again.

A batch is known by its plan, which is made anew and must be the same, and its number in it.
"""

import base64
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from bitladder.records import JournalEntry

INTERVAL_S = 10.0
"""between entries' being written: until then what the device has computed stays there, so that nothing waits for it"""

Values = npt.NDArray[np.float32]


class Journal:
    """Entries of one measurement: those of an earlier run, and new ones, handed to ``write``.

    ``key`` says with what batches are computed; entries of another are not used.
    """

    def __init__(
        self,
        entries: Iterable[JournalEntry],
        key: str,
        write: Callable[[JournalEntry], None],
    ) -> None:
        self._known = {(one.plan, one.batch): one for one in entries if one.key == key}
        self._key = key
        self._write = write
        self._started_s = self._written_s = time.monotonic()
        self.earlier_s = 0.0
        """that earlier runs took for what was found"""

    def find(self, plan: str, batch: int, targets: int) -> Values | None:
        """What the batch gave, (2, targets), or None where it has to be computed, as of an entry that is damaged."""
        entry = self._known.get((plan, batch))
        if entry is None:
            return None
        try:
            data = base64.b64decode(entry.values, validate=True)
        except ValueError:
            return None
        if len(data) != 2 * targets * 4:
            return None
        self.earlier_s = max(self.earlier_s, entry.elapsed_s)
        return np.frombuffer(data, np.float32).reshape(2, targets)

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._written_s >= INTERVAL_S

    def add(self, batches: Iterable[tuple[str, int, Values]]) -> None:
        """Write what (plan, batch) gave."""
        elapsed_s = self.earlier_s + time.monotonic() - self._started_s
        for plan, batch, values in batches:
            text = base64.b64encode(values.astype(np.float32).tobytes()).decode()
            self._write(JournalEntry(key=self._key, plan=plan, batch=batch, values=text, elapsed_s=elapsed_s))
        self._written_s = time.monotonic()


def read_entries(path: Path) -> Iterator[JournalEntry]:
    """Entries of a file, one a line; the last one may be cut off where its writer was killed. None without a file."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            yield JournalEntry.model_validate_json(line)
        except ValidationError:
            continue
