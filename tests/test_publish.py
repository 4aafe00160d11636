"""Publishing: to the Hub's stand-in and back, and everything that is refused before anything is sent."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit_checkpoints import WEIGHTS, CopyRung, flip_byte
from bitladder.checkpoint.manifest import MANIFEST_NAME, read_manifest
from bitladder.errors import BrokenFileError, UserError
from bitladder.publish import publish_checkpoint
from bitladder.records import Manifest
from hub_server import ORGANISATION, TOKEN, USER, Blob, Hub, Repository, serve
from replay import write_replay

pytest_plugins = ("audit_fixtures",)

NAME = f"{ORGANISATION}/tiny-nf4"
PROMPT = list(range(40, 72))

PUBLISH_AND_DOWNLOAD = """
import sys
from bitladder.cli import main

name, prompt, directory, out = sys.argv[1:]
sys.argv = ["bitladder", "publish", directory, "--repo", name]
try:
    main.run()
except SystemExit as ended:
    assert ended.code == 0

import torch
from pathlib import Path
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM
from bitladder import audit

directory = Path(snapshot_download(name))
found = audit(directory, as_rung="nf4")
assert found.passed, found.errors
assert found.loaded_bytes
model = AutoModelForCausalLM.from_pretrained(name).eval()
with torch.no_grad():
    torch.save(model(torch.tensor([eval(prompt)])).logits, out)
print(directory)
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, with this process and those it starts logged in to it and to nothing else."""
    from huggingface_hub import constants

    home = tmp_path / "hf-home"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    with serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        for name, value in {
            "HF_ENDPOINT": server.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "NO_PROXY": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def nf4(made_rungs: CopyRung) -> Path:
    return made_rungs("nf4")


@pytest.fixture
def copy(nf4: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(nf4, tmp_path / "copy"))


def manifest_of(directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    assert manifest is not None
    return manifest


def fill(hub: Hub, files: dict[str, str], *, private: bool = True) -> Repository:
    """A repository that is there before."""
    hub.repositories[NAME] = repository = Repository(private)
    repository.add({path: Blob(text.encode(), False) for path, text in files.items()})
    return repository


def refusal(directory: Path, *, public: bool = False, results: Path | None = None, name: str = NAME) -> str:
    """The one line that publishing ends with."""
    with pytest.raises(UserError) as raised:
        publish_checkpoint(directory, name, public=public, results=results)
    line = str(raised.value)
    assert "\n" not in line
    assert TOKEN not in line
    return line


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_published_downloaded_audited_and_equal(hub: Hub, nf4: Path, tmp_path: Path) -> None:
    import torch

    from bitladder.checkpoint.loading import load_model

    ran = run("-c", PUBLISH_AND_DOWNLOAD, NAME, str(PROMPT), str(nf4), str(tmp_path / "logits.pt"))
    assert ran.returncode == 0, ran.stderr
    repository = hub.repositories[NAME]
    said, downloaded = ran.stdout.splitlines()
    assert said == f"{hub.url}/{NAME} (private): published, commit {repository.head}"
    assert repository.private
    manifest = manifest_of(nf4)
    assert set(repository.files) == {*manifest.files, MANIFEST_NAME, "README.md", ".gitattributes"}
    assert repository.files[WEIGHTS].lfs
    assert any(path.startswith("/parts/") for _, path in hub.requests), "the weights should have gone in parts"
    for name in manifest.files:
        assert repository.files[name].content == (nf4 / name).read_bytes()

    assert tmp_path in Path(downloaded).parents
    with torch.no_grad():
        logits = load_model(nf4)(torch.tensor([PROMPT])).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits)

    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    published = [blob.content for blob in repository.files.values()]
    assert TOKEN not in ran.stdout + ran.stderr
    assert not any(TOKEN.encode() in content for content in (*written, *published))


def test_only_what_the_manifest_names_and_no_path(hub: Hub, copy: Path) -> None:
    (copy / "notes.txt").write_text("not for others")
    (copy / ".env").write_text("SECRET=1")
    source = Path(manifest_of(copy).source.model)
    assert source.is_absolute()
    publish_checkpoint(copy, NAME)
    files = hub.repositories[NAME].files
    assert set(files) == {*manifest_of(copy).files, MANIFEST_NAME, "README.md", ".gitattributes"}
    assert json.loads(files[MANIFEST_NAME].content)["source"]["model"] == source.name
    assert not any(str(source).encode() in blob.content for blob in files.values())


def test_again_changes_nothing(hub: Hub, nf4: Path) -> None:
    first = publish_checkpoint(nf4, NAME)
    hub.requests.clear()
    again = publish_checkpoint(nf4, NAME)
    assert (first.changed, again.changed) == (True, False)
    assert again.commit == first.commit == hub.repositories[NAME].head
    assert not any("/commit/" in path or verb == "PUT" for verb, path in hub.requests)


def test_a_newer_checkpoint_replaces_the_older(hub: Hub, nf4: Path) -> None:
    """Shards of the checkpoint before go, or a model would be loaded from both; the owner's documents stay."""
    manifest = manifest_of(nf4)
    shard = "model-00001-of-00002.safetensors"
    older = manifest.model_copy(update={"files": {shard: manifest.files[WEIGHTS]}, "content_hash": "00" * 32})
    fill(hub, {MANIFEST_NAME: older.model_dump_json(), shard: "old", "README.md": "old", "LICENSE": "theirs"})
    publish_checkpoint(nf4, NAME)
    assert set(hub.repositories[NAME].files) == {*manifest.files, MANIFEST_NAME, "README.md", "LICENSE"}


def test_public_only_when_said(hub: Hub, nf4: Path) -> None:
    assert not publish_checkpoint(nf4, NAME, public=True).private
    assert not hub.repositories[NAME].private
    before = hub.repositories[NAME].head
    assert "is public, and publishing doesn't change that; give --public" in refusal(nf4)
    assert hub.repositories[NAME].head == before
    fill(hub, {})
    assert "is private, and publishing doesn't change that" in refusal(nf4, public=True)


def test_dry_run_shows_all_and_asks_nothing(
    hub: Hub, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitladder.cli.checkpoints import publish_command

    monkeypatch.delenv("HF_TOKEN")
    publish_command(copy, NAME, dry_run=True)
    shown = capsys.readouterr().out
    manifest = manifest_of(copy)
    for name in (*manifest.files, MANIFEST_NAME, "README.md"):
        assert name in shown
    assert "116,370" in shown
    assert f'from_pretrained("{NAME}"' in shown
    assert "dry run: nothing was sent" in shown
    publish_command(copy, NAME, dry_run=True, json_output=True)
    published = json.loads(capsys.readouterr().out)
    assert published["card"] in shown
    assert (published["commit"], published["url"]) == (None, None)
    assert published["files"]["README.md"] == len(published["card"].encode())
    assert hub.requests == []


@pytest.mark.slow
def test_without_login(hub: Hub, nf4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    ran = run("-m", "bitladder", "publish", str(nf4), "--repo", NAME)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "error: not logged in to the Hub: run `hf auth login` with a token that may write, or set HF_TOKEN\n"
    )
    assert hub.requests == []


def test_login_that_the_hub_refuses(hub: Hub, nf4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    line = refusal(nf4)
    assert "Invalid user token. The token from HF_TOKEN environment variable is invalid" in line
    assert "hf_expired" not in line
    assert hub.writes() == []


def test_no_right_to_the_namespace(hub: Hub, nf4: Path) -> None:
    assert "You don't have the rights to create a model under the namespace" in refusal(nf4, name="others/tiny")
    assert hub.repositories == {}


def test_hub_out_of_reach(hub: Hub, nf4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "can't be reached" in refusal(nf4)


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "a/b c", "", "../x", "a/--b"])
def test_name_of_the_repository(name: str, hub: Hub, nf4: Path) -> None:
    assert "expected ORG/NAME" in refusal(nf4, name=name)
    assert hub.requests == []


def test_repository_with_something_else(hub: Hub, nf4: Path, made_rungs: CopyRung) -> None:
    manifest = manifest_of(nf4)
    mine = dict.fromkeys(manifest.files, "")
    other_source = manifest.source.model_copy(update={"model": "another", "content_hash": "ab" * 32})
    bf16 = manifest_of(made_rungs("bf16"))
    for files, says in (
        ({"pytorch_model.bin": "x", "README.md": "x"}, "holds README.md, pytorch_model.bin, and no checkpoint"),
        ({"README.md": "mine"}, "holds README.md, and no checkpoint"),
        ({MANIFEST_NAME: '{"name": "another tool"}', "a": "x"}, "holds a, bitladder.json, and no checkpoint"),
        ({MANIFEST_NAME: bf16.model_dump_json()}, "holds bf16 of "),
        (
            {MANIFEST_NAME: manifest.model_copy(update={"source": other_source}).model_dump_json()},
            "holds nf4 of another (files abababababab), and this is nf4 of",
        ),
        (
            {MANIFEST_NAME: manifest.model_dump_json(), **mine, "adapter_config.json": "{}"},
            "holds adapter_config.json beside its checkpoint",
        ),
    ):
        repository = fill(hub, files)
        before = dict(repository.commits)
        assert says in refusal(nf4)
        assert repository.commits == before
    assert hub.writes() == []


def test_failed_audit_names_its_check(hub: Hub, copy: Path) -> None:
    flip_byte(copy / WEIGHTS, -1)
    assert "the audit fails, so nothing is published: manifest: " in refusal(copy)
    assert hub.writes() == []


def test_manifest_that_calls_itself_another_rung(hub: Hub, copy: Path) -> None:
    """The card would call it so."""
    manifest = manifest_of(copy).model_copy(update={"rung": "bf16"})
    (copy / MANIFEST_NAME).unlink()
    (copy / MANIFEST_NAME).write_text(manifest.model_dump_json())
    assert re.search("the audit fails, so nothing is published: [a-z_]+: ", refusal(copy))
    assert hub.writes() == []


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "README.md"])
def test_manifest_that_names_no_file_of_its_folder(name: str, hub: Hub, copy: Path) -> None:
    manifest = manifest_of(copy)
    files = {**manifest.files, name: manifest.files[WEIGHTS]}
    (copy / MANIFEST_NAME).unlink()
    (copy / MANIFEST_NAME).write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    assert f"names {name!r}, which is no file of a checkpoint" in refusal(copy)
    assert hub.requests == []


def test_directories_that_hold_no_checkpoint(hub: Hub, tiny_llama: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no such directory" in refusal(tmp_path / "absent")
    assert "no config.json" in refusal(empty)
    assert "no bitladder.json; expected a checkpoint made by" in refusal(tiny_llama)
    study = write_replay(tmp_path / "study")
    assert "a study's folder, expected one checkpoint (none is made yet)" in refusal(study)
    (study / "checkpoints" / "nf4").mkdir(parents=True)
    assert f"expected one checkpoint ({study / 'checkpoints' / 'nf4'}); its figures go along with" in refusal(study)
    assert hub.requests == []


def test_results_of_another_checkpoint(hub: Hub, nf4: Path, tmp_path: Path) -> None:
    line = refusal(nf4, results=write_replay(tmp_path / "study"))
    assert f"and this is nf4 {manifest_of(nf4).content_hash[:12]}; give the study that measured this" in line
    assert "no study.json" in refusal(nf4, results=tmp_path)
    assert hub.requests == []


def test_upload_that_is_damaged_leaves_no_commit(hub: Hub, nf4: Path) -> None:
    hub.damages_uploads = True
    assert "its SHA-256 is" in refusal(nf4)
    assert set(hub.repositories[NAME].files) == {".gitattributes"}
    hub.damages_uploads = False
    assert publish_checkpoint(nf4, NAME).changed


def test_commit_that_lacks_a_file_is_told(hub: Hub, nf4: Path) -> None:
    hub.ignored = {"generation_config.json"}
    with pytest.raises(BrokenFileError, match=r"generation_config\.json isn't there after the commit"):
        publish_checkpoint(nf4, NAME)


def test_a_change_in_between_is_refused(hub: Hub, nf4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else commits between the look and the commit."""
    from bitladder.publish import repository

    repository_there = fill(hub, {})
    looked = repository.look(NAME)
    repository_there.add({"theirs.bin": Blob(b"x", False)})
    monkeypatch.setattr(repository, "look", lambda name: looked)
    assert "changed since the parent commit" in refusal(nf4)
    assert set(repository_there.files) == {"theirs.bin"}


def test_user_is_a_namespace_too(hub: Hub, nf4: Path) -> None:
    assert publish_checkpoint(nf4, f"{USER}/tiny").url == f"{os.environ['HF_ENDPOINT']}/{USER}/tiny"
