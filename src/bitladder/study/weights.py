"""Which checkpoints have to be made, or made again."""

from collections.abc import Collection
from dataclasses import dataclass, field

from bitladder.quantization.space import require_space
from bitladder.records import Item, RungRecord
from bitladder.store import Store
from bitladder.study.kept import Kept
from bitladder.study.missing import Missing
from bitladder.study.prepare import Prepared
from bitladder.study.progress import StudyProgress


@dataclass
class Weights:
    """Knows of each rung whether its checkpoint is there, and still what was audited."""

    prepared: Prepared
    store: Store
    kept: Kept
    missing: Missing
    there: set[str] = field(default_factory=set)
    """whose checkpoint this run has made, or found to be what was audited"""

    def absent(self, asked: Collection[str], progress: StudyProgress) -> list[str]:
        """What has to be made before anything is measured; ``asked``: whom the next stage asks."""
        return [
            name
            for name, known in self.missing.rungs.items()
            if known is None
            or self.are_needed(known, self.missing.all_items if name in asked else self.missing.whole_items)
            or self.is_damaged(known, progress)
        ]

    def are_needed(self, record: RungRecord, items: tuple[Item, ...]) -> bool:
        """Whether something is left to measure and the checkpoint isn't there, or is no longer what was audited."""
        if record.status != "ok" or record.rung in self.there or not self.missing.of(record, items):
            return False
        self.there.add(record.rung)  # now, or when it is made
        return record.rung not in self.prepared.added and not self.kept.has_weights(record)

    def is_damaged(self, record: RungRecord, progress: StudyProgress) -> bool:
        differences = self.kept.damages(record)
        if differences:
            directory = self.store.checkpoint_directory(record.rung)
            progress.warn(f"{directory}: changed since its audit ({'; '.join(differences)}); making it again")
        return bool(differences)

    def require_space(self, names: Collection[str]) -> None:
        """For all at once: a disk that is too small ends a study before hours of it."""
        made = [name for name in names if name not in self.prepared.added]
        require_space(self.prepared.model, made, self.store.directory, self.prepared.wanted.policy)
