"""What a study's folder has already: checkpoints that stand, and measurements that need not be made again."""

from collections.abc import Iterable, Mapping
from itertools import product

from bitladder.checkpoint.manifest import read_manifest, suspect_files, verify_files
from bitladder.records import AccuracyTask, Divergence, Item, RungRecord, Status, StudyRecord, measurement_id
from bitladder.results import place_key, place_of
from bitladder.store import Store

RETRIED: tuple[Status, ...] = ("failed", "timeout", "does_not_fit")
"""Outcomes that a second run tries again: their cause may have gone."""


class Kept:
    """What counts of a folder's records for the plan ``study``."""

    def __init__(self, store: Store, study: StudyRecord) -> None:
        self._store = store
        self._study = study
        self._finished: set[str] = set()
        self.place = place_key(study.calibration.machine, study.calibration.device)
        """where this run measures"""

    def rung(self, name: str) -> RungRecord | None:
        """The stored record, if it is of the present recipe and needs no second try."""
        from bitladder.quantization.quantize import expected_recipe_hash

        record = self._store.read_rung(name)
        if name in self._study.added:  # an audit costs little, and what it refused may be put right by another library
            same = record is not None and record.source == self._study.added[name]
            return record if record is not None and same and record.status == "ok" else None
        if record is None or record.status in RETRIED or record.manifest is None:
            return None
        recipe = expected_recipe_hash(self._study.source, name)
        return record if record.manifest.recipe_hash == recipe else None

    def has_weights(self, record: RungRecord) -> bool:
        """Whether the checkpoint is there, and still what was audited."""
        directory = self._store.checkpoint_directory(record.rung)
        found = read_manifest(directory)
        return found is not None and found.content_hash == record.content_hash and not verify_files(directory, found)

    def damages(self, record: RungRecord) -> list[str]:
        """In what a checkpoint that nothing needs any more is not what was audited. One that was removed is not there
        to be deployed; of one that is, only what seems to have changed is read."""
        directory = self._store.checkpoint_directory(record.rung)
        if record.manifest is None or record.rung in self._study.added or not directory.is_dir():
            return []
        suspects = suspect_files(directory, record.manifest, self._store.rung_written_ns(record.rung))
        differences = verify_files(directory, record.manifest, suspects)
        if suspects and not differences:
            self._store.write_rung(record)  # later than what was written, so that it is not read again
        return differences

    def missing(
        self, record: RungRecord | None, items: tuple[Item, ...], rungs: Mapping[str, RungRecord | None]
    ) -> tuple[Item, ...]:
        """Items without a record that counts; ``rungs``: all of the study, as far as they are known."""
        if record is None or record.content_hash is None:
            return items
        return tuple(
            item
            for item in items
            if self._is_missing(measurement_id(record.content_hash, item)) or self._lacks_reference(record, item, rungs)
        )

    def _lacks_reference(self, record: RungRecord, item: Item, rungs: Mapping[str, RungRecord | None]) -> bool:
        """Whether this is the baseline, and what a divergence is from has to be made again for another rung."""
        if not isinstance(item, Divergence) or record.rung != self._study.baseline:
            return False
        if self._store.reference_file(item).is_file():
            return False
        others = [one for name, one in rungs.items() if name != record.rung]
        return any(
            one is None or one.content_hash is None or self._is_missing(measurement_id(one.content_hash, item))
            for one in others
        )

    def remove_unbound(self, rungs: Iterable[RungRecord | None]) -> None:
        """Remove what was recorded of a divergence while there was no baseline: nothing asks for its name again."""
        contents = {one.content_hash for one in rungs if one is not None and one.content_hash is not None}
        divergences = (item for item in self._study.items if isinstance(item, Divergence))
        for item, content_hash in product(divergences, contents):
            unbound = item.model_copy(update={"baseline_hash": None})
            self._store.remove_measurement(measurement_id(content_hash, unbound))

    def _is_missing(self, identity: str) -> bool:
        if identity not in self._finished:
            record = self._store.read_measurement(identity)
            if record is None or record.status in RETRIED:
                return True
            chunk = isinstance(record.item, AccuracyTask) and record.item.order is not None
            if chunk and place_of(record) != self.place:
                return True  # the stages of a rung are of one machine
            self._finished.add(identity)
        return False
