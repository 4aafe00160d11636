"""What the machine refuses: one line, nothing left behind, and the same command goes on."""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitladder import files
from bitladder.cli import main
from bitladder.errors import UserError, describe_machine_error
from bitladder.files import entry_lock, naming, new_directory, new_file, remove_unfinished, write_atomically
from bitladder.records import Divergence, JournalEntry, measurement_id
from bitladder.report.output import mark_begun, require_report_folder
from bitladder.results.store import Store
from bitladder.study.plan import Kept
from bitladder.study.run import only_writer, require_study_folder
from replay import write_replay


def refusal(number: int, name: str | None = None) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), name)

    return refuse


@pytest.mark.parametrize(
    ("number", "name", "line"),
    [
        (
            errno.EIO,
            "out/.lock",
            "out/.lock: input/output error; see to the disk or its connection, then run the ",
        ),
        (
            errno.EIO,
            None,
            "input/output error; see to the disk or its connection, then run the same command ",
        ),
        (errno.EDQUOT, "out", "out: disk quota exceeded; make room there, then run the same command again to go on"),
        (errno.EMFILE, None, "too many open files; allow more open files (ulimit -n), then run the same command again"),
        (errno.ENOLCK, "out/.lock", "out/.lock: no locks available; expected a place to read and write in"),
        (errno.EACCES, None, None),
        (errno.EBADF, "out", None),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    number: int,
    name: str | None,
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bitladder.cli.main.app", refusal(number, name))
    with pytest.raises(SystemExit) as ended:
        main.run()
    printed = capsys.readouterr().err
    assert ended.value.code == (main.EXIT_BUG if line is None else main.EXIT_BAD_INPUT)
    assert line is None or (printed.startswith(f"error: {line}") and printed.count("\n") == 1)


def test_of_two_names_the_one_to_be_made_is_said() -> None:
    error = OSError(errno.EIO, "", "from", None, "to")
    assert str(describe_machine_error(error)).startswith("to: input/output error")


@pytest.mark.parametrize("call", ["fsync", "replace", "close", "chmod"])
def test_a_write_that_fails_leaves_what_was_there_and_says_where(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, "old")
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(os, call, refusal(errno.EIO))
        write_atomically(path, "new")
    assert caught.value.filename == str(path)
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"]
    assert path.read_text() == "old"


def test_a_file_that_cannot_be_removed_hides_no_earlier_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(os, "fsync", refusal(errno.ENOSPC))
        patch.setattr(Path, "unlink", refusal(errno.EIO))
        write_atomically(tmp_path / "record.json", "new")
    assert caught.value.errno == errno.ENOSPC
    remove_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "told"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_folder_is_flushed_where_that_can_be_done(
    number: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    def flush(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        flushed.append(path)
        if path == str(tmp_path):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", flush)
    try:
        write_atomically(tmp_path / "a", "text")
    except OSError as error:
        assert told and error.filename == str(tmp_path)
    else:
        assert not told
    assert flushed[-1] == str(tmp_path)
    assert (tmp_path / "a").read_text() == "text"


@pytest.mark.parametrize("write", [new_file, new_directory])
def test_what_was_abandoned_long_ago_is_removed_by_the_next_who_writes_it(write: object, tmp_path: Path) -> None:
    for name in (".a[1].x.tmp", ".a[1].y.tmp", ".other.x.tmp"):
        (tmp_path / name).touch()
    long_ago_s = time.time() - 2 * files.ABANDONED_S
    for name in (".a[1].x.tmp", ".other.x.tmp"):
        os.utime(tmp_path / name, (long_ago_s, long_ago_s))
    with write(tmp_path / "a[1]"):  # type: ignore[operator]
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"a[1]", ".a[1].y.tmp", ".other.x.tmp"}


def test_errors_of_libraries_in_rust_are_the_machines() -> None:
    with pytest.raises(OSError) as caught, naming(Path("model.safetensors")):
        raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "model.safetensors")
    with pytest.raises(ValueError, match="another"), naming(Path("model.safetensors")):
        raise ValueError("another")


def test_locks_and_journals_that_cannot_be_had_say_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = JournalEntry(key="k", plan="p", batch=0, values="", elapsed_s=1)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refusal(errno.EIO))
        for lock, path in (
            (only_writer(tmp_path), tmp_path / ".lock"),
            (entry_lock(tmp_path / "a"), tmp_path / "a.lock"),
        ):
            with pytest.raises(OSError) as caught, lock:
                pass
            assert caught.value.filename == str(path)
    with pytest.raises(OSError) as caught, monkeypatch.context() as patch:
        patch.setattr(JournalEntry, "model_dump_json", refusal(errno.EIO))  # as the write beside it does
        Store(tmp_path).add_to_journal("m", entry)
    assert caught.value.filename == str(tmp_path / "journals" / "m.jsonl")


@pytest.mark.parametrize(
    "left", ["prompts/0123.json", "prompts/.0123.json.x.tmp", ".study.json.x.tmp", "logs/a", ".lock"]
)
def test_a_study_that_was_killed_before_its_plan_was_there_goes_on(left: str, tmp_path: Path) -> None:
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).touch()
    require_study_folder(tmp_path)
    Store(tmp_path).remove_unfinished()
    assert not list(tmp_path.rglob("*.tmp"))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        require_study_folder(tmp_path)


def test_a_report_that_was_killed_before_it_was_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "fsync", refusal(errno.EIO))
        patch.setattr(Path, "unlink", refusal(errno.EIO))  # nor is the temporary file removed
        mark_begun(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    require_report_folder(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes\.txt and no report"):
        require_report_folder(tmp_path)


def test_no_record_is_left_of_a_divergence_that_had_no_baseline(tmp_path: Path) -> None:
    write_replay(tmp_path, divergence=True)
    store = Store(tmp_path)
    results = store.load()
    (kept,) = (one for one in results.of("nf4") if isinstance(one.item, Divergence))
    item = kept.item.model_copy(update={"baseline_hash": None})
    stale = kept.model_copy(update={"item": item, "measurement_id": measurement_id(kept.content_hash, item)})
    store.write_measurement(stale)
    assert store.read_measurement(stale.measurement_id) is not None
    Kept(store, results.study).remove_unbound(results.rungs.values())
    assert store.read_measurement(stale.measurement_id) is None
    assert store.load().records == results.records
