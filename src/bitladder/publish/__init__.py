"""From an audited checkpoint to a model repository on the Hub, with a card written from the results.

What is uploaded is what the manifest names, the manifest and a card, and nothing else of the folder.
"""

import logging
from pathlib import Path, PurePosixPath

from bitladder.auditing import audit
from bitladder.checkpoint.config import read_config
from bitladder.checkpoint.manifest import MANIFEST_NAME, read_manifest
from bitladder.checkpoint.scheme import own_manifest
from bitladder.errors import BrokenFileError, UserError
from bitladder.methods import RUNGS
from bitladder.publish import repository as hub
from bitladder.publish.card import find_measured, find_origin, source_name, to_card, without_path
from bitladder.records import Audit, Manifest, Record
from bitladder.results.store import Store
from bitladder.units import format_bytes

__all__ = ["Publication", "publish_checkpoint"]

log = logging.getLogger(__name__)


class Publication(Record):
    """What was published, or in a dry run would be."""

    repository: str
    private: bool
    files: dict[str, int]
    """path in the repository -> bytes"""
    card: str
    url: str | None = None
    """None in a dry run"""
    commit: str | None = None
    """None in a dry run"""
    changed: bool | None = None
    """whether the Hub had anything of it yet to get; None in a dry run"""


def publish_checkpoint(
    directory: Path,
    repository: str,
    *,
    public: bool = False,
    results: Path | None = None,
    dry_run: bool = False,
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> Publication:
    """Audit the checkpoint in ``directory`` and upload it to the Hub's model repository ORG/NAME.

    ``results`` is a study whose figures for it go into the card. Nothing is sent before the audit has passed; the same
    checkpoint again changes nothing. With ``dry_run`` no login is needed and nothing is sent. Raises UserError where
    there is no login, the repository holds something else, the directory no checkpoint with a manifest, the study no
    figures for it, and where the audit fails.
    """
    directory = Path(directory)
    hub.require_name(repository)
    manifest = _require_manifest(directory)
    measured = find_measured(Path(results), manifest) if results is not None else None
    present = None
    if not dry_run:
        hub.require_login()
        present = hub.look(repository)
        if present is not None:
            hub.refuse_other_content(repository, present, manifest, public)
    audited = _require_passed(directory, manifest, device, trust_remote_code)
    card = to_card(repository, manifest, audited, find_origin(manifest.source), measured)
    content = _content(directory, manifest, card)
    publication = Publication(
        repository=repository,
        private=not public,
        files={name: _size_bytes(source) for name, source in content.items()},
        card=card,
    )
    if dry_run:
        return publication
    present = present or hub.create(repository, public=public)
    log.info("%s: sending %d files, %s", repository, len(content), format_bytes(sum(publication.files.values())))
    commit = hub.commit(repository, present, content, f"{manifest.rung} of {source_name(manifest)}")
    return publication.model_copy(
        update={"url": hub.url(repository), "commit": commit, "changed": commit != present.head}
    )


def _require_manifest(directory: Path) -> Manifest:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; expected a checkpoint's")
    store = Store(directory)
    if store.has_study():
        made = [
            path for rung in store.read_study().settings.rungs if (path := store.checkpoint_directory(rung)).is_dir()
        ]
        one_of = ", ".join(map(str, made)) or "none is made yet"
        raise UserError(
            f"{directory}: a study's folder, expected one checkpoint ({one_of}); its figures go along with "
            f"--results {directory}"
        )
    read_config(directory)
    manifest = own_manifest(directory)
    if manifest is None:
        none = f"{MANIFEST_NAME} is of another checkpoint" if read_manifest(directory) else f"no {MANIFEST_NAME}"
        raise UserError(f"{directory}: {none}; expected a checkpoint made by `bitladder quantize` or `bitladder study`")
    for name in manifest.files:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or name in (MANIFEST_NAME, hub.CARD_NAME):
            raise BrokenFileError(f"{directory / MANIFEST_NAME}: names {name!r}, which is no file of a checkpoint")
    return manifest


def _require_passed(directory: Path, manifest: Manifest, device: str, trust_remote_code: bool) -> Audit:
    """Held to the rung that the card will name, where it is one of the ladder's."""
    as_rung = manifest.rung if manifest.rung in RUNGS else None
    for load in (False, True):  # a damaged file is named before a library fails on it
        audited = audit(directory, as_rung=as_rung, device=device, load=load, trust_remote_code=trust_remote_code)
        if not audited.passed:
            first = audited.errors[0]
            raise UserError(
                f"{directory}: the audit fails, so nothing is published: {first.check}: {first.message}; "
                "`bitladder audit` shows all of it"
            )
    return audited


def _content(directory: Path, manifest: Manifest, card: str) -> dict[str, Path | bytes]:
    published = manifest.model_copy(update={"source": without_path(manifest.source)})
    return {
        **{name: directory / name for name in sorted(manifest.files)},
        MANIFEST_NAME: (published.model_dump_json(indent=2) + "\n").encode(),
        hub.CARD_NAME: card.encode(),
    }


def _size_bytes(source: Path | bytes) -> int:
    return source.stat().st_size if isinstance(source, Path) else len(source)
