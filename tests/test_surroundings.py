"""What a command finds around it: it works, or says so in one line and ends with 2."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from bitladder.cli.main import describe_name, is_text, name_in
from bitladder.errors import UserError
from bitladder.files import cache_directory, expand_user, lend_home_to_libraries
from bitladder.records import hash_json
from replay import RUNGS, write_replay

LATIN = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("around") / "a 'study' with \"quotes\" and é"
    return write_replay(folder, rungs={name: RUNGS[name] for name in ("bf16", "nf4")})


def run(
    *arguments: str,
    shell: str = 'exec "$@"',
    cwd: Path | None = None,
    environment: Mapping[str, str | None] | None = None,
) -> subprocess.CompletedProcess[str]:
    changed: Mapping[str, str | None] = {**os.environ, **(environment or {})}
    return subprocess.run(
        ["bash", "-c", shell, "sh", sys.executable, "-m", "bitladder", *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env={name: value for name, value in changed.items() if value is not None},
        cwd=cwd,
        check=False,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ("report", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "TMPDIR": "/nonexistent"}),
        ("recommend", {"PYTHONIOENCODING": "ascii", "TERM": None, "COLUMNS": "1"}),
        ("recommend", {"TERM": "dumb", "COLUMNS": "x", "LINES": "-1", "HOME": None}),
    ],
)
def test_a_study_is_read_and_reported(
    command: str, environment: dict[str, str | None], study: Path, tmp_path: Path
) -> None:
    place = tmp_path / "study"  # names beyond ASCII are refused in an ASCII locale, see below
    place.symlink_to(study)
    ran = run(command, str(place), environment=environment)
    assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
    assert ran.stdout


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, study: Path) -> None:
    ran = run("recommend", str(study), "--json", shell=f'exec "$@" {closed}')
    assert (ran.returncode, ran.stderr) == (0, "")


def test_what_a_closed_stream_would_have_been_is_no_other_file(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from bitladder.cli.main import open_streams\nopen_streams()\n"
        "file = open('first', 'w'); print('lost'); print('lost', file=sys.stderr); os.system('echo lost')\n"
        "Path('told').write_text(str(file.fileno()))"
    )
    subprocess.run(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert int((tmp_path / "told").read_text()) > 2
    assert (tmp_path / "first").read_text() == ""


def refused(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    return line


def test_names_that_are_no_text(study: Path, tmp_path: Path) -> None:
    (tmp_path / LATIN).mkdir()
    line = refused(run("recommend", str(tmp_path / LATIN)))
    assert line == (f"error: argument '{tmp_path}/caf\\xe9': not UTF-8; rename it, or give a link of another name")
    assert refused(run("recommend", str(study), cwd=tmp_path / LATIN)).startswith(
        f"error: the folder that this runs in '{tmp_path}/caf\\xe9': not UTF-8"
    )
    assert refused(run("recommend", str(study), environment={"BITLADDER_CACHE": LATIN})).startswith(
        "error: BITLADDER_CACHE 'caf\\xe9'"
    )
    ascii_names = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    assert refused(run("recommend", str(study), environment=ascii_names)).endswith(
        "not ascii, the encoding of names here; set LC_ALL=C.UTF-8, or give a link of another name"
    )


def test_a_folder_that_was_deleted(tmp_path: Path, study: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    ran = run("recommend", str(study), shell='rmdir "$PWD"; exec "$@"', cwd=gone)
    assert refused(ran) == "error: the folder that this runs in was deleted; change to another one"


def test_a_name_inside_a_record_is_found() -> None:
    with pytest.raises(UnicodeEncodeError) as raised:
        hash_json({"config.json": "1", f"{LATIN}.json": "2"})
    assert describe_name(name_in(raised.value)) == (
        "'caf\\xe9.json': not UTF-8; rename it, or give a link of another name"
    )
    assert is_text("café \n") and not is_text(LATIN)


def test_a_file_inside_the_model_that_is_no_text(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for file in tiny_llama.iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    (tmp_path / "model" / f"{LATIN}.json").write_text("{}")
    line = refused(run("quantize", str(tmp_path / "model"), "--rung", "nf4", "--out", str(tmp_path / "out")))
    assert line == "error: file 'caf\\xe9.json': not UTF-8; rename it, or give a link of another name"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without a passwd entry, as a container may run under, and no HOME."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("HOME", "BITLADDER_CACHE", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("homeless")
def test_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^user \d+ has no home for the cache: .*; set BITLADDER_CACHE to a folder"):
        cache_directory()
    with pytest.raises(UserError, match=r"^~/model: there is no such home"):
        expand_user("~/model")
    lend_home_to_libraries()
    assert "HF_HOME" not in os.environ
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", "to be put back")
    monkeypatch.delenv("HF_HOME")
    lend_home_to_libraries()
    assert os.environ["HF_HOME"] == str(tmp_path / "huggingface")
    assert cache_directory() == tmp_path


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("BITLADDER_CACHE", "relative", "{cwd}/relative"),
        ("BITLADDER_CACHE", "~/cache", "{home}/cache"),
        ("XDG_CACHE_HOME", "relative", "{cwd}/relative/bitladder"),
        ("XDG_CACHE_HOME", "", "{home}/.cache/bitladder"),
    ],
)
def test_place_of_the_cache(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("BITLADDER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("HOME", "/some/home")
    assert str(cache_directory()) == expected.format(cwd=tmp_path, home="/some/home")


@pytest.mark.parametrize("path", ["~nobody-of-that-name/model", "~nobody-of-that-name"])
def test_the_home_of_nobody(path: str) -> None:
    with pytest.raises(UserError, match=f"^{path}: there is no such home"):
        expand_user(path)
    assert expand_user("a/~") == Path("a/~")
