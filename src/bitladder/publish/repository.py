"""A model repository on the Hub, through huggingface_hub, which finds the login: no token passes through here."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    enable_progress_bars,
    get_session,
    hf_raise_for_status,
    validate_repo_id,
)

from bitladder.checkpoint.manifest import MANIFEST_NAME
from bitladder.errors import BrokenFileError, UserError
from bitladder.files import sha256_file
from bitladder.records import Manifest, Source, parse_record

CARD_NAME = "README.md"
_HUB_OWN = ".gitattributes"
_DOCUMENTS = (".md", ".png", ".jpg", ".svg")
"""what else a repository may hold beside a checkpoint: nothing that a model loads"""

Content = Mapping[str, Path | bytes]
"""path in the repository -> a file here, or its bytes"""


@dataclass(frozen=True)
class Present:
    """What a repository holds at its head."""

    head: str
    private: bool
    files: frozenset[str]
    manifest: Manifest | None
    """None: no bitladder.json that can be read"""


def require_name(name: str) -> None:
    """Raise UserError for anything but ORG/NAME as the Hub allows it."""
    try:
        validate_repo_id(name)
        valid = "/" in name
    except errors.HFValidationError:
        valid = False
    if not valid:
        raise UserError(f"--repo: found {name!r}, expected ORG/NAME of letters, digits, '-', '_' and '.'")


def url(name: str) -> str:
    return f"{constants.ENDPOINT}/{name}"


def require_login() -> None:
    """Raise UserError where there is no login, or the Hub doesn't take it."""
    try:
        with _hub_errors("login"):
            HfApi().whoami()
    except errors.LocalTokenNotFoundError:
        raise UserError(
            "not logged in to the Hub: run `hf auth login` with a token that may write, or set HF_TOKEN"
        ) from None


def look(name: str) -> Present | None:
    """What the repository holds; None where there is none that this login can see."""
    with _hub_errors(name):
        try:
            info = HfApi().model_info(name)
        except errors.RepositoryNotFoundError:
            return None
        assert info.sha is not None
        files = frozenset(HfApi().list_repo_files(name, revision=info.sha))
        manifest = None
        if MANIFEST_NAME in files:
            response = get_session().get(f"{url(name)}/resolve/{info.sha}/{MANIFEST_NAME}", headers=build_hf_headers())
            hf_raise_for_status(response)
            try:
                manifest = parse_record(Manifest, response.content, Path(MANIFEST_NAME), "replace it")
            except BrokenFileError:
                manifest = None  # another program's file of that name
    return Present(info.sha, bool(info.private), files, manifest)


def refuse_other_content(name: str, present: Present, manifest: Manifest, public: bool) -> None:
    """Raise UserError unless it is empty or holds this rung of this source, and is as public as was asked for."""
    if present.private == public:
        found, flag = ("private", "leave --public out") if public else ("public", "give --public")
        raise UserError(f"{name}: is {found}, and publishing doesn't change that; {flag}, or change it in its settings")
    known = present.manifest
    files = present.files - {_HUB_OWN}
    if not files:
        return
    if known is None:
        raise UserError(f"{name}: holds {_some(files)}, and no checkpoint of bitladder's; give another --repo")
    if known.rung != manifest.rung or not _same_source(known.source, manifest.source):
        raise UserError(f"{name}: holds {_describe(known)}, and this is {_describe(manifest)}; give another --repo")
    foreign = {path for path in files - set(known.files) - {MANIFEST_NAME, CARD_NAME} if not _is_document(path)}
    if foreign:
        raise UserError(
            f"{name}: holds {_some(foreign)} beside its checkpoint, which a model could be loaded from; "
            "delete it there, or give another --repo"
        )


def create(name: str, *, public: bool) -> Present:
    """Make the repository, empty."""
    with _hub_errors(name):
        HfApi().create_repo(name, private=not public)
    created = look(name)
    if created is None:
        raise UserError(f"{name}: made, and now not to be seen; run the same command again")
    return created


def commit(name: str, present: Present, content: Content, message: str) -> str:
    """Upload in one commit, on top of what was looked at, and hold the Hub's own hashes to it; returns the commit.

    Files of the checkpoint that was there before go. Raises UserError where the Hub refuses or can't be reached,
    BrokenFileError where what it has then isn't what was sent.
    """
    if sys.stderr.isatty():
        enable_progress_bars()  # loading the model for its audit hid them

    # As strings: huggingface_hub opens them, and sends bytes as they are.
    added = [
        CommitOperationAdd(path, str(source) if isinstance(source, Path) else source)
        for path, source in content.items()
    ]
    outdated = (present.files & set(present.manifest.files if present.manifest else ())) - set(content)
    deleted = [CommitOperationDelete(path) for path in sorted(outdated)]
    with _hub_errors(name):
        made = HfApi().create_commit(name, [*added, *deleted], commit_message=message, parent_commit=present.head)
        _verify(name, made.oid, content)
    return str(made.oid)


def _verify(name: str, revision: str, content: Content) -> None:
    tree = HfApi().list_repo_tree(name, recursive=True, revision=revision)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    for path, source in content.items():
        entry = there.get(path)
        if entry is None:
            raise BrokenFileError(f"{name}: {path} isn't there after the commit {revision}; is it in its .gitignore?")
        if entry.lfs:
            same = entry.lfs.sha256 == (sha256_file(source) if isinstance(source, Path) else _sha256(source))
        else:
            same = entry.blob_id == _git_hash(source.read_bytes() if isinstance(source, Path) else source)
        if not same:
            raise BrokenFileError(f"{name}: {path} isn't what was sent, by the Hub's hash; run the same command again")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    """Git's name for a file: SHA-1 of its header and bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _same_source(there: Source, here: Source) -> bool:
    """Equal files, or another revision of the same named model."""
    if there.content_hash == here.content_hash:
        return True
    return here.kind != "directory" and (there.kind, there.model) == (here.kind, here.model)


def _is_document(path: str) -> bool:
    return path.lower().endswith(_DOCUMENTS) or PurePosixPath(path).name in ("LICENSE", "NOTICE")


def _describe(manifest: Manifest) -> str:
    return f"{manifest.rung} of {manifest.source.title}"


def _some(files: frozenset[str] | set[str]) -> str:
    names = sorted(files)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """What the Hub or the way to it refuses, as a UserError of one line."""
    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:  # type: ignore[attr-defined]  # httpx's own
        raise UserError(_failed(what, error)) from None
    except (RuntimeError, PermissionError, ValueError) as error:
        # What huggingface_hub and hf_xet raise for an upload that failed, a full quota, a header the Hub won't have.
        raise UserError(_failed(what, error.__cause__ or error)) from None


def _failed(what: str, error: BaseException) -> str:
    reason = " ".join((getattr(error, "server_message", None) or str(error) or type(error).__name__).split())
    return f"{what}: the Hub refused or can't be reached ({reason[:300]}); mend that and run the same command again"
