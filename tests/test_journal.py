"""A killed evaluation goes on within its task, and leaves what it would have left."""

import json
from pathlib import Path
from typing import Any

import pytest

from bitladder.accuracy import samples
from bitladder.accuracy.backend import scoring
from bitladder.accuracy.backend.attention import PrefixCache
from bitladder.accuracy.backend.plan import Pack, plan_packs
from bitladder.accuracy.backend.scoring import score
from bitladder.accuracy.backend.speedups import Speedups
from bitladder.accuracy.samples import Journal, read_entries
from bitladder.records import AccuracyTask, JournalEntry, LoadPolicy, Settings, measurement_id
from bitladder.results.store import Store
from bitladder.study.messages import BatchDone, Job, Measured
from bitladder.study.resolved import task_request, task_sources
from bitladder.study.worker import _measure_accuracy
from bitladder.tasks.tasks import resolve_tasks
from test_backend import make_model, make_requests, one_thread
from test_study_run import write_tasks
from test_study_settings import MACHINE

__all__ = ["one_thread"]  # a fixture


class KilledError(Exception):
    pass


@pytest.fixture(autouse=True)
def every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "INTERVAL_S", 0.0)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every forward."""
    counted: list[int] = []
    own = scoring.forward_batch

    def counting(model: Any, pack: Pack, prefixes: PrefixCache, speedups: Speedups) -> Any:
        counted.append(len(pack.tokens))
        return own(model, pack, prefixes, speedups)

    monkeypatch.setattr(scoring, "forward_batch", counting)
    return counted


@pytest.mark.parametrize("token_budget", [16, 64])
def test_finished_batches_are_not_computed_again(token_budget: int, forwards: list[int]) -> None:
    """With the small budget, batches attend to keys and values of earlier ones, which must be computed again."""
    model, plan = make_model("llama"), plan_packs(make_requests(), seed=0, token_budget=token_budget)
    expected = score(model, [plan])
    assert len(forwards) == len(plan.packs) > 3
    written: list[JournalEntry] = []
    stop_after = len(plan.packs) // 2

    def write(entry: JournalEntry) -> None:
        if len(written) == stop_after:
            raise KilledError
        written.append(entry)

    with pytest.raises(KilledError):
        score(model, [plan], journal=Journal([], "machine", write))
    forwards.clear()
    more: list[JournalEntry] = []
    resumed = score(model, [plan], journal=Journal(written, "machine", more.append))
    assert resumed.loglikelihood.tolist() == expected.loglikelihood.tolist()
    assert resumed.greedy.tolist() == expected.greedy.tolist()
    assert [entry.batch for entry in (*written, *more)] == list(range(len(plan.packs)))
    kept = sum(bool(pack.keep) for pack in plan.packs[:stop_after])
    assert len(more) <= len(forwards) <= len(more) + kept
    assert kept or token_budget > 16
    forwards.clear()
    score(model, [plan], journal=Journal([*written, *more], "machine", more.append))
    assert not forwards


def test_a_damaged_entry_is_computed_again(forwards: list[int]) -> None:
    model, plan = make_model("llama"), plan_packs(make_requests(), seed=0, token_budget=64)
    written: list[JournalEntry] = []
    expected = score(model, [plan], journal=Journal([], "one", written.append))
    for spoil in (lambda text: text[:-3], lambda text: text[:-8], lambda text: "no base64", lambda text: "\u00e9"):
        damaged = [written[0].model_copy(update={"values": spoil(written[0].values)}), *written[1:]]
        forwards.clear()
        found = score(model, [plan], journal=Journal(damaged, "one", lambda entry: None))
        assert len(forwards) == 1
        assert found.loglikelihood.tolist() == expected.loglikelihood.tolist()


def test_entries_of_other_batches_or_machines_are_not_used(forwards: list[int]) -> None:
    model, requests = make_model("llama"), make_requests()
    written: list[JournalEntry] = []
    score(model, [plan_packs(requests, seed=0, token_budget=64)], journal=Journal([], "one", written.append))
    for seed, key in ((1, "one"), (0, "other")):
        plan = plan_packs(requests, seed=seed, token_budget=64)
        forwards.clear()
        score(model, [plan], journal=Journal(written, key, lambda entry: None))
        assert len(forwards) == len(plan.packs)


def test_a_line_that_was_cut_off_is_no_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = (JournalEntry(key="k", plan="p", batch=number, values="", elapsed_s=0) for number in (0, 1))
    store.add_to_journal("a", first)
    path = store.journals / "a.jsonl"
    path.write_bytes(path.read_bytes() + first.model_dump_json().encode()[:20])
    store.add_to_journal("a", second)
    assert list(read_entries(path)) == [first, second]
    store.remove_journal("a")
    store.remove_journal("a")
    assert list(read_entries(path)) == []


class Pipe:
    """Puts batches where a study does, as if each had taken long, until it is killed."""

    LONG_S = 1000.0

    def __init__(self, store: Store, batches: int) -> None:
        self.store = store
        self.most = batches
        self.batches: list[JournalEntry] = []
        self.record: Any = None

    def send(self, message: Any) -> None:
        if isinstance(message, Measured):
            self.record = message.record
        if isinstance(message, BatchDone):
            if len(self.batches) == self.most:
                raise KilledError
            self.batches.append(message.entry)
            entry = message.entry.model_copy(update={"elapsed_s": self.LONG_S})
            self.store.add_to_journal(message.measurement_id, entry)

    def progress(self, done: int, total: int) -> None:
        assert done <= total


def test_a_killed_worker_s_task_goes_on(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_tasks(folder)
    rows = [{"question": f"What is {i} and {i}?", "choices": ["yes", "no"], "answer": 0} for i in range(40)]
    (folder / "left.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Settings(
        model="any",
        tasks=(str(folder / "left.yaml"),),
        datasets=str(folder),
        backend="bitladder",
        token_budget=64,
    )
    items = resolve_tasks(task_request(settings, "paper"), "cpu").items
    assert isinstance(items[0], AccuracyTask)

    def work(store: Store, batches: int) -> Any:
        job = Job(
            phase="accuracy",
            rung="bf16",
            directory=str(tiny_llama),
            policy=LoadPolicy(),
            sources=task_sources(settings),
            threads=1,
            machine=MACHINE,
            content_hash="c",
            items=items,
            journals=str(store.journals),
        )
        pipe: Any = Pipe(store, batches)
        _measure_accuracy(job, pipe)
        return pipe

    whole = work(Store(tmp_path), 99)
    assert len(whole.batches) > 1
    other = Store(tmp_path / "other")
    other.directory.mkdir()
    with pytest.raises(KilledError):
        work(other, 1)
    resumed = work(other, 99)
    assert [entry.values for entry in resumed.batches] == [entry.values for entry in whole.batches[1:]]
    assert resumed.record.duration_s > resumed.batches[-1].elapsed_s > Pipe.LONG_S > whole.record.duration_s
    assert resumed.record.outcome == whole.record.outcome
    scoring = whole.record.outcome.scoring
    assert (scoring.attention, scoring.shared, scoring.kernels) == (("SDPA by units of the tree",), True, ())
    assert scoring.forwards == len(whole.batches) and scoring.most_rows <= 64
    assert resumed.record.measurement_id == measurement_id("c", items[0]) == whole.record.measurement_id


def test_a_hole_in_the_journal_spoils_nothing() -> None:
    """Kept keys and values of one plan are gone before the next, whichever batches of it were known."""
    model, requests = make_model("llama"), make_requests()
    half = len(requests) // 2
    plans = [plan_packs(part, seed=0, token_budget=8) for part in (requests[:half], requests[half:])]
    written: list[JournalEntry] = []
    expected = score(model, plans, journal=Journal([], "one", written.append))
    first = len(plans[0].packs)
    for hole in range(0, first, 7):
        known = [entry for number, entry in enumerate(written[:first]) if number != hole]
        found = score(model, plans, journal=Journal(known, "one", lambda entry: None))
        assert found.loglikelihood.tolist() == pytest.approx(expected.loglikelihood.tolist(), abs=1e-5), hole
