"""Records as one file: the same bytes for the same records, and nothing unpacked that could do harm."""

import io
import tarfile
from pathlib import Path

import pytest

from bitladder.errors import BrokenFileError, UserError
from bitladder.results import merge
from bitladder.results.merge import merge_results, pack, unpack
from bitladder.results.store import Store
from replay import BUILTIN_GROUPS, BUILTIN_TASKS, RUNGS, write_replay

ROOT = "records-of-bitladder"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with all that an archive leaves out."""
    rungs = {"bf16": RUNGS["bf16"]}
    made = write_replay(
        tmp_path_factory.mktemp("root") / "study", rungs=rungs, tasks=BUILTIN_TASKS[:1], groups=BUILTIN_GROUPS[:1]
    )
    for name in (
        "checkpoints/bf16/model.safetensors",
        "checkpoints/bf16/config.json",
        "logs/a.log",
        "report/results.json",
    ):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text("{}")
    (made / ".lock").touch()
    return made


def write_archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for member, data in members:
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b"{}" if kind == tarfile.REGTYPE else b""


def test_records_alone_are_packed_into_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    first = pack(directory, tmp_path / "one.tar.gz")
    (directory / "study.json").touch()
    assert pack(directory, tmp_path / "two.tar.gz").read_bytes() == first.read_bytes()
    assert pack(directory, first) == first
    unpack(first, tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name.partition("/")[0] for name in names} == {"study.json", "rungs", "records", "documents"}
    assert all((tmp_path / "out" / name).read_bytes() == (directory / name).read_bytes() for name in names)
    assert Store(tmp_path / "out").load().records == Store(directory).load().records


def test_default_name_stands_beside_the_folder_and_nothing_is_overwritten(directory: Path) -> None:
    path = pack(directory)
    assert path == directory.parent / "study.tar.gz"
    path.write_bytes(b"another")
    with pytest.raises(UserError, match=r"study\.tar\.gz: is there already, with other content"):
        pack(directory)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (member(f"{ROOT}/../../evil.json"), "holds the file"),
        (member(f"{ROOT}/records/../../evil.json"), "holds the file"),
        (member("/etc/evil.json"), "holds the file"),
        (member("study.json"), "holds the file"),
        (member(f"{ROOT}/checkpoints/bf16/model.safetensors"), "holds the file"),
        (member(f"{ROOT}/records/link.json", tarfile.SYMTYPE, "/etc/passwd"), "holds the link or device"),
        (member(f"{ROOT}/records/link.json", tarfile.LNKTYPE, f"{ROOT}/study.json"), "holds the link or device"),
        (member(f"{ROOT}/records/pipe.json", tarfile.FIFOTYPE), "holds the link or device"),
        (member(f"{ROOT}/records", tarfile.DIRTYPE), "holds the folder"),
        (member(f"{ROOT}/study.json"), "twice"),
    ],
)
def test_unsafe_archives_are_refused(bad: tuple[tarfile.TarInfo, bytes], says: str, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "bad.tar.gz", member(f"{ROOT}/study.json"), bad)
    with pytest.raises(UserError, match=says) as raised:
        merge_results([path], tmp_path / "inner" / "merged")
    assert "\n" not in str(raised.value)
    assert {found.name for found in tmp_path.rglob("*")} == {"bad.tar.gz"}


def test_an_archive_without_a_study_a_broken_one_and_a_huge_one(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no study in it"):
        merge_results([write_archive(tmp_path / "empty.tar.gz")], tmp_path / "merged")
    whole = pack(directory, tmp_path / "whole.tar.gz")
    cut = tmp_path / "cut.tar.gz"
    for data in (whole.read_bytes()[: whole.stat().st_size // 2], b"not an archive", b"", b"\x1f\x8b" + bytes(40)):
        cut.write_bytes(data)
        with pytest.raises(BrokenFileError, match=r"cut\.tar\.gz: not a whole \.tar\.gz"):
            merge_results([cut], tmp_path / "merged")
    broken = write_archive(tmp_path / "broken.tar.gz", member(f"{ROOT}/study.json"))
    with pytest.raises(BrokenFileError, match=r"broken\.tar\.gz/study\.json"):
        merge_results([broken], tmp_path / "merged")
    monkeypatch.setattr(merge, "LARGEST_BYTES", 1000)
    with pytest.raises(UserError, match="unpacks to more than"):
        merge_results([whole], tmp_path / "merged")


@pytest.mark.parametrize("field", ["rung", "documents_hash"])
def test_names_inside_records_lead_nowhere(field: str, directory: Path, tmp_path: Path) -> None:
    """A packed record that names a file outside is refused before anything is written."""
    unpack(pack(directory, tmp_path / "good.tar.gz"), tmp_path / "study")
    folder = "rungs" if field == "rung" else "documents"
    path = next((tmp_path / "study" / folder).iterdir())
    known = '"bf16"' if field == "rung" else f'"{path.stem}"'
    path.write_text(path.read_text().replace(f'"{field}":{known}', f'"{field}":"../../../../evil"', 1))
    evil = pack(tmp_path / "study", tmp_path / "evil.tar.gz")
    with pytest.raises(BrokenFileError, match="is no name in"):
        merge_results([evil], tmp_path / "a" / "b" / "merged")
    assert not list(tmp_path.rglob("evil.json"))
    assert not (tmp_path / "a" / "b" / "merged").exists()
