"""Models that bitladder makes itself: made once, checked whenever they are used, kept in the user's cache."""

import json
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from bitladder.checkpoint.manifest import hash_files
from bitladder.errors import BrokenFileError
from bitladder.files import entry_lock, naming, new_directory, remove_tree, require_disk_space
from bitladder.home import cache_directory
from bitladder.json_files import read_json_object

log = logging.getLogger(__name__)

# History: 1 - first release. Raise it when the same model gets other files.
_VERSION = 1
_HASHES = "builtin.json"
"""SHA-256 of the files that were made, beside them"""


@dataclass(frozen=True)
class CachedModel(ABC):
    """A model that can be made anew wherever it is missing."""

    name: str
    made_bytes: int
    """size on disk"""
    note: str
    """what every report has to say about it"""
    hub_id: str | None
    """the released model that it was made from"""
    license: str | None
    """the released model's, as the Hub names it"""
    speed_only: bool
    """whether its answers mean nothing, so that only its speed and memory can be measured"""

    @abstractmethod
    def make(self, directory: Path) -> None:
        """Write the checkpoint, config.json, SafeTensors and tokenizer, into an empty ``directory``."""

    def cached_directory(self) -> Path:
        """The checkpoint in the user's cache, made when it isn't there or was damaged.

        Safe against other processes doing the same, and against being killed. Raises what ``make`` does.
        """
        directory = cache_directory() / "models" / f"{self.name}-{_VERSION}"
        if _is_intact(directory):
            return directory
        with entry_lock(directory):
            if _is_intact(directory):
                return directory
            if directory.exists():
                log.warning("%s: damaged since it was written; making it again", directory)
                remove_tree(directory)
            require_disk_space(directory, 2 * self.made_bytes)
            log.info("builtin:%s: making it, once", self.name)
            with new_directory(directory) as temporary:
                with naming(directory):
                    self.make(temporary)
                written = {name: file.sha256 for name, file in hash_files(temporary).items()}
                with naming(temporary):
                    (temporary / _HASHES).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        return directory


def _is_intact(directory: Path) -> bool:
    if not (directory / _HASHES).is_file():
        return False
    found = {name: file.sha256 for name, file in hash_files(directory).items() if name != _HASHES}
    try:
        return found == read_json_object(directory / _HASHES, "delete it")
    except BrokenFileError:
        return False
