"""The parts of a run, each alone, over studies that never ran."""

from pathlib import Path

import pytest

from bitladder.records import AccuracyTask, RungRecord, hash_json, measurement_id
from bitladder.results.stages import stage_item
from bitladder.results.store import Store
from bitladder.study.messages import StudyProgress
from bitladder.study.plan import Kept, Missing
from bitladder.study.run import Asking
from bitladder.study.time_left import Telling, TimeLeft
from replay import RUNGS, write_replay
from staged_replay import answer, write_plan


@pytest.fixture(autouse=True)
def replayed_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of a replay were made by its own recipes."""
    recipe = "bitladder.quantization.expected_recipe_hash"
    monkeypatch.setattr(recipe, lambda source, name: hash_json([name, source.content_hash]))


def missing_of(store: Store) -> Missing:
    study = store.read_study()
    return Missing(study, Kept(store, study))


def lose(store: Store, record: RungRecord | None, task: int) -> AccuracyTask:
    """Remove what a rung answered to a task of the plan, counted from 0."""
    item = [one for one in store.read_study().items if isinstance(one, AccuracyTask)][task]
    assert record is not None and record.content_hash is not None
    store.remove_measurement(measurement_id(record.content_hash, item))
    return item


def test_what_is_missing_follows_from_plan_records_and_rungs(tmp_path: Path) -> None:
    store = Store(write_replay(tmp_path))
    finished = missing_of(store)
    assert not any(finished.by_rung.values()) and finished.identities == set() and finished.tasks == ()
    assert [record.rung for record in finished.baseline_first] == list(RUNGS)

    nf4 = finished.rungs["nf4"]
    item = lose(store, nf4, 1)
    missing = missing_of(store)
    assert {name for name, items in missing.by_rung.items() if items} == {"nf4"}
    assert missing.of(nf4, missing.whole_items) == missing.tasks == (item,)
    assert nf4 is not None and nf4.content_hash is not None
    assert missing.identities == {measurement_id(nf4.content_hash, item)}

    unmade = missing_of(store)
    unmade.rungs["fp4"] = None
    assert unmade.of(None, unmade.whole_items) == unmade.whole_items
    assert unmade.identities is None, "nobody knows what a checkpoint would go on from that isn't made"
    unmade.rungs["fp4"] = nf4.model_copy(update={"rung": "fp4"})
    assert unmade.same == {"nf4": "fp4"} and "nf4" not in {one.rung for one in unmade.baseline_first}


def test_who_is_asked_next_is_whom_the_first_open_stage_asks(tmp_path: Path) -> None:
    store = write_plan(tmp_path)
    missing = missing_of(store)
    place = Kept(store, missing.study).place
    asked = Asking(store, missing, place)
    everybody = asked.by(0)
    assert asked.next() == everybody and not asked.is_done(0, everybody)
    answer(store, stages=1)
    assert asked.is_done(0, everybody) and asked.next() == asked.by(1) < everybody
    assert len(asked.items_until(1)) == 2 * len(asked.items_until(0))
    assert Asking(store, missing, ("another", "machine")).by(1) != asked.by(1), "where nothing is answered"

    fp16 = missing.rungs["fp16"]
    assert fp16 is not None and fp16.content_hash is not None and "fp16" in everybody
    chunk = stage_item(next(one for one in missing.study.items if isinstance(one, AccuracyTask) and one.order), 0)
    assert chunk is not None
    store.remove_measurement(measurement_id(fp16.content_hash, chunk))
    again = Asking(store, missing_of(store), place)
    assert again.next() == everybody, "a stage that lost an answer is open again"


class Plans(StudyProgress):
    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        self.warnings: list[str] = []

    def planned(self, measurements: int, finished: int) -> None:
        self.told.append((measurements, finished))

    def warn(self, what: str) -> None:
        self.warnings.append(what)


def test_what_is_told_is_counted_from_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = write_plan(tmp_path)
    missing, seen = missing_of(store), Plans()
    telling = Telling(seen, TimeLeft(missing.study, (), {}), store, missing)
    telling.plan()
    answer(store, stages=1)
    telling.plan()
    telling.plan(staged=False)
    rungs, whole, stage = 4, 1, 3
    assert seen.told == [
        (rungs * (whole + 3 * stage), rungs * whole),
        (rungs * (whole + 3 * stage), rungs * (whole + stage)),
        (rungs * (whole + stage), rungs * (whole + stage)),
    ]
    monkeypatch.setattr("bitladder.study.time_left.busy_share", lambda: 0.5)
    assert [telling.busy_share() for _ in range(2)] == [0.5, 0.5] and len(seen.warnings) == 1
    other = missing.study.source.model_copy(update={"content_hash": "c"})
    missing.study = missing.study.model_copy(update={"added": {"fp16": other}})
    telling.changed()
    assert seen.warnings[1].startswith("fp16: its files have changed")
