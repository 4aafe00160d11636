"""What is unknown has a kind: whatever words stand for it, the same is asked, told apart, decided and ended with."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import pytest
import typer

from bitladder.cli.study import _answer
from bitladder.decide import recommend
from bitladder.errors import UserError
from bitladder.records import Order
from bitladder.records import base as unknown
from bitladder.records.base import BadStatus, Unknown, UnknownKind, known, reason_of
from bitladder.report.published_tables import machine_pages
from bitladder.results import Results, read_outcomes
from bitladder.results.merge import merge_results
from bitladder.results.stages import staged_tasks
from bitladder.results.store import Store, load_results
from bitladder.summary.coverage import read_coverage, rungs_to_ask
from bitladder.summary.summarize import summarize
from replay import BUILTIN_GROUPS, BUILTIN_TASKS, write_replay
from replay import RUNGS as LADDER
from staged_replay import RUNGS as STAGED
from staged_replay import SEED, STOPS, write_chunk, write_plan

KINDS: tuple[UnknownKind, ...] = (*unknown._WORDS, *get_args(BadStatus))
FEW = {name: LADDER[name] for name in ("bf16", "int8", "nf4")}


def small(directory: Path, **changes: Any) -> Path:
    settings = {"rungs": FEW, "tasks": BUILTIN_TASKS[:2], "groups": BUILTIN_GROUPS[:2]} | changes
    return write_replay(directory, **settings)


def interrupted(directory: Path) -> Path:
    """In the middle of its second stage, the first that asks the last task, with a rung that is still to be made."""
    store = write_plan(directory)
    study = store.read_study()
    *first, last = staged_tasks(study)
    late = last.model_copy(update={"order": Order(seed=SEED, stops=(0, *STOPS[1:]))})
    items = tuple(late if item == last else item for item in study.items)
    one, other, third, *others = study.groups
    pooled = other.model_copy(update={"tasks": other.tasks + third.tasks})
    store.write_study(study.model_copy(update={"items": items, "groups": (one, pooled, third, *others)}))
    for name, replay in STAGED.items():
        for task in first:
            write_chunk(store, name, replay, task, 0)
    write_chunk(store, "bf16", STAGED["bf16"], first[0], 1)
    (directory / "rungs" / "fp16.json").unlink()
    return directory


def begun(directory: Path) -> Path:
    """After the first task of the first stage."""
    store = write_plan(directory)
    for name, replay in STAGED.items():
        write_chunk(store, name, replay, staged_tasks(store.read_study())[0], 0)
    return directory


def ended(directory: Path) -> Path:
    """In every way that a measurement and a checkpoint can end, and one that something else held up."""
    names = ("bitladder_knowledge", "bitladder_language", "batch1", "max-batch")
    ends = {("int8", name): (end, "why") for name, end in zip(names, get_args(BadStatus), strict=True)}
    ends["fp4", "max-batch"] = ("failed", "why")
    broken = {"nf4": ("refused", "found FP4"), "fp16": ("does_not_fit", "too large")}
    rungs = {**FEW, "fp16": LADDER["fp16"], "fp4": LADDER["fp4"]}
    small(directory, rungs=rungs, ends=ends, broken_rungs=broken, divergence=True, absent={("fp4", "batch1")})
    store = Store(directory)
    held_up = next(one for one in store.load().of("int8") if one.reason == "why" and one.item.kind == "performance")
    store.write_measurement(held_up.model_copy(update={"disturbed": True}))
    return directory


def copied(directory: Path) -> Path:
    """One rung has the content of another."""
    store = Store(small(directory, absent={("nf4", name) for name in ("batch1", "max-batch")}, only="performance"))
    bf16, nf4 = store.read_rung("bf16"), store.read_rung("nf4")
    assert bf16 is not None and nf4 is not None
    store.write_rung(nf4.model_copy(update={"content_hash": bf16.content_hash}))
    return directory


def merged(directory: Path) -> Path:
    """Of two machines, of which each has what the other lacks."""
    one = small(directory / "one", only="accuracy")
    other = small(directory / "other", only="performance", gpu=True, rungs={"bf16": FEW["bf16"], "fp4": LADDER["fp4"]})
    merge_results([one, other], directory / "merged")
    return directory / "merged"


def spread(directory: Path) -> Path:
    """Of two machines that measured the same task, one of them of all rungs."""
    parts = [small(directory / "all", only="accuracy"), small(directory / "some", gpu=True, rungs={"nf4": FEW["nf4"]})]
    merge_results(parts, directory / "merged")
    return directory / "merged"


MADE: tuple[Callable[[Path], Path], ...] = (interrupted, ended, begun, copied, merged, spread)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    return [load_results(make(tmp_path_factory.mktemp(make.__name__) / "study")) for make in MADE]


def without_words(value: Any, field: str = "") -> Any:
    """The same with nothing of its sentences but how many there are."""
    if isinstance(value, dict):
        return {name: without_words(one, name) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_words(one, field) for one in value]
    is_text = field.removesuffix("s").endswith(("reason", "failure", "note")) or field in ("sentence", "blame", "title")
    return bool(value) if is_text else value


def flow(results: Results) -> list[Any]:
    """All that follows from a study but its words: whom it asks, what it has, what it decides, how the command ends."""
    answered = read_coverage(results, read_outcomes(results))
    found: list[Any] = [rungs_to_ask(results, stage) for stage in range(3) if staged_tasks(results.study)]
    found += [answered.to_ask, answered.unasked, answered.stages]
    summary = summarize(results)
    for one in (summary, *(page.summary for page in machine_pages(results, summary))):
        found += [without_words(one.model_dump()), without_words(recommend(one).model_dump()), one.unfinished]
    said, refused = io.StringIO(), Mock(side_effect=UserError("not here"))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        patch.setattr("bitladder.report.write_report", refused)
        with pytest.raises(typer.Exit) as end:
            _answer(results, json_output=True)
    return [*found, end.value.exit_code, "what was disturbed" in said.getvalue()]


@pytest.fixture(scope="module")
def flows(studies: list[Results]) -> list[list[Any]]:
    return [flow(results) for results in studies]


def test_these_studies_lack_what_they_lack_for_every_reason(
    studies: list[Results], flows: list[list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a test of their words would show nothing."""
    told: set[UnknownKind] = set()

    def reason(end: Unknown) -> str:
        told.add(end.kind)
        return "words"

    monkeypatch.setattr(Unknown, "reason", property(reason))
    assert list(map(flow, studies)) == flows
    assert told == set(KINDS)
    assert flows[1][-1] and not flows[0][-1], "one study was disturbed"
    assert flows[0][-3].startswith("Unfinished"), "and one interrupted"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", ["Knowledge: {}", "another word"])
def test_other_words_change_nothing_else(
    kind: UnknownKind, words: str, studies: list[Results], flows: list[list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(unknown._WORDS, kind, words.format(unknown._WORDS.get(kind, kind)))
    assert list(map(flow, studies)) == flows


def test_its_words_are_made_where_they_are_asked_for() -> None:
    end = Unknown("no answer", "timeout").of("Language").of("bf16")
    assert (end.reason, end.bad_status) == ("bf16: Language: timeout: no answer", "timeout")
    assert Unknown(kind="refused").reason == "refused"
    assert Unknown("{nf4}", "same_content").reason == "same content as {nf4}, not measured"
    assert (known(end), reason_of(end)) == (None, end.reason)
    assert (known(0.0), reason_of(0.0), known(None), reason_of(None)) == (0.0, None, None, None)
