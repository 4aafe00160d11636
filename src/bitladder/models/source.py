"""Where a model comes from: the Hub, a directory or a built-in model; and its outline before anything is downloaded."""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitladder.checkpoint.config import GGUF_SUFFIX, read_config, refuse_gguf
from bitladder.checkpoint.manifest import MANIFEST_NAME, hash_files, read_manifest
from bitladder.checkpoint.scheme import own_manifest
from bitladder.checkpoint.tensors import read_tensors, weight_files
from bitladder.checkpoint.weights import find_dequantized
from bitladder.errors import BrokenFileError, UnknownNameError, UserError
from bitladder.files import expand_user, require_disk_space
from bitladder.models.builtin import BUILTINS, PREFIX, find_builtin
from bitladder.records import Source, hash_json
from bitladder.text.words import first_line

if TYPE_CHECKING:
    from huggingface_hub.utils._safetensors import SafetensorsFileMetadata


def outline_model(
    model: str, revision: str, weights: list[str], others: Path, folder: Path
) -> tuple[Path, dict[str, str]]:
    """A directory inside ``folder`` with the files of ``others`` and the headers of ``weights``; and of these the
    SHA-256 that the Hub knows. ``revision``: a commit.

    Raises what huggingface_hub's client does.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    entries = api.list_repo_tree(model, revision=revision)
    known = {entry.path: entry.lfs.sha256 for entry in entries if isinstance(entry, RepoFile) and entry.lfs}
    directory = folder / revision
    directory.mkdir(parents=True, exist_ok=True)
    for path in others.iterdir():
        if path.is_file() and not (directory / path.name).exists():
            (directory / path.name).symlink_to(path.resolve())
    for name in weights:
        if name in known:
            _write_header(api.parse_safetensors_file_metadata(model, name, revision=revision), directory / name)
        else:  # as small as a file has to be for Git itself
            (directory / name).symlink_to(Path(api.hf_hub_download(model, name, revision=revision)).resolve())
    return directory, {name: known[name] for name in weights if name in known}


def _write_header(found: "SafetensorsFileMetadata", path: Path) -> None:
    entries = {
        name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
        for name, tensor in found.tensors.items()
    }
    header = json.dumps({"__metadata__": found.metadata, **entries}).encode()
    end = max((tensor.data_offsets[1] for tensor in found.tensors.values()), default=0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)


# What a model is made of beside its weights: configuration, tokenizer, chat template, its own code where it has any.
_MODEL_SUFFIXES = (".json", ".model", ".txt", ".tiktoken", ".jinja", ".py")
_WEIGHTS_SUFFIX = ".safetensors"
_HUB_PATTERNS = [f"model*{_WEIGHTS_SUFFIX}", *(f"*{suffix}" for suffix in _MODEL_SUFFIXES)]


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this machine, in transformers' layout: config.json, SafeTensors, tokenizer."""

    source: Source
    directory: Path
    has_weights: bool = True
    """or only their headers"""


def resolve_model(model: str, revision: str | None = None, *, outline: Path | None = None) -> ResolvedModel:
    """Find (and where it must be, fetch) the model the user named.

    ``outline``: a folder to make it in where it would have to be fetched, all but its weights, of which the headers do.

    Raises UnknownNameError for a model that doesn't exist, BrokenFileError naming a truncated or altered file, and
    UserError for a directory that lacks config or SafeTensors, for a gated model, and without network and cache.
    """
    note, speed_only, origin = None, False, None
    known_sha256: dict[str, str] = {}
    if model.startswith(PREFIX):
        _refuse_revision(model, revision)
        builtin = find_builtin(model)
        kind, directory = "builtin", builtin.cached_directory()
        note, speed_only = builtin.note, builtin.speed_only
    elif model and expand_user(model).is_dir():
        _refuse_revision(model, revision)
        kind, directory = "directory", expand_user(model)
    elif model.lower().endswith(GGUF_SUFFIX):
        refuse_gguf(model)
    elif expand_user(model).is_file():
        raise UserError(f"{model}: a file; expected a directory with config.json and model.safetensors, or a Hub id")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model or not model:
        raise UserError(f"{model!r}: no such directory; expected a directory, a Hub id or {PREFIX}NAME")
    else:
        kind, (directory, known_sha256) = "hub", _fetch_from_hub(model, revision, outline)
        revision = directory.name
        if "gguf" in model.lower() and not list(directory.glob(f"*{_WEIGHTS_SUFFIX}")):
            refuse_gguf(model)  # whose file isn't fetched
    read_config(directory)
    if kind != "builtin" and (manifest := read_manifest(directory)) is not None:
        made_from = manifest.source
        note, speed_only, origin = made_from.note, made_from.speed_only, made_from.origin or made_from
    content_hash = source_hash(directory, known_sha256)
    if note is None and not known_sha256 and (before := find_dequantized(directory, read_tensors(directory))):
        note = f"The source's weights had fewer bits before: {before.text}. Drops are against them as they are now."
    source = Source.model_validate(
        {
            "model": model,
            "kind": kind,
            "revision": revision,
            "content_hash": content_hash,
            "note": note,
            "speed_only": speed_only,
            "origin": origin,
        }
    )
    return ResolvedModel(source, directory, has_weights=not known_sha256)


def source_hash(directory: Path, known_sha256: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the names and SHA-256 of the files that make the model: equal for equal files, wherever they lie.

    ``known_sha256``: of files that are here in outline. Raises BrokenFileError where a weight file can't be read, or a
    file isn't what the directory's manifest says.
    """
    read_tensors(directory)
    known_sha256 = known_sha256 or {}
    names = [path.name for path in weight_files(directory) if path.name not in known_sha256]
    for path in directory.iterdir():
        if path.suffix in _MODEL_SUFFIXES and path.is_file() and path.name != MANIFEST_NAME:
            names.append(path.name)
    files = hash_files(directory, names)
    manifest = own_manifest(directory)
    recorded = manifest.files if manifest else {}
    for name, file in files.items():
        if file != recorded.get(name, file):
            raise BrokenFileError(f"{directory / name}: altered, its SHA-256 isn't the manifest's; make it again")
    return hash_json({**known_sha256, **{name: file.sha256 for name, file in files.items()}})


def _refuse_revision(model: str, revision: str | None) -> None:
    if revision is not None:
        raise UserError(f"{model}: found --revision {revision}, but only Hub models have revisions; leave it out")


def _fetch_from_hub(model: str, revision: str | None, outline: Path | None) -> tuple[Path, dict[str, str]]:
    """The model's directory, and the SHA-256 of weights that are there in outline."""
    from huggingface_hub import constants, errors, snapshot_download

    with _naming_hub_errors(model, revision):
        try:
            planned = snapshot_download(model, revision=revision, allow_patterns=_HUB_PATTERNS, dry_run=True)
        except errors.DryRunError:
            planned = []  # the Hub gives no answer; what follows says why, or finds the model in its cache
        missing = [file for file in planned if file.will_download]
        weights = [file.filename for file in missing if file.filename.endswith(_WEIGHTS_SUFFIX)]
        if outline is not None and weights:
            others = [pattern for pattern in _HUB_PATTERNS if not pattern.endswith(_WEIGHTS_SUFFIX)]
            directory = Path(snapshot_download(model, revision=revision, allow_patterns=others))
            return outline_model(model, planned[0].commit_hash, weights, directory, outline)
        missing_bytes = sum(file.file_size or 0 for file in missing)
        require_disk_space(Path(constants.HF_HUB_CACHE), missing_bytes, "set HF_HOME to another disk")
        return Path(snapshot_download(model, revision=revision, allow_patterns=_HUB_PATTERNS)), {}


@contextmanager
def _naming_hub_errors(model: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import constants, errors

    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except errors.SafetensorsParsingError as error:
        raise BrokenFileError(f"{model}{at}: a weight file's header can't be read ({first_line(error)})") from None
    except errors.GatedRepoError:
        raise UserError(
            f"{model}: gated on the Hub, and this login has no access; "
            f"accept its licence at {constants.ENDPOINT}/{model}, then `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{model}: no revision {revision!r} on the Hub; expected a branch, tag or commit") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        hint = "expected a directory, a Hub id (`hf auth login` for private ones) or a built-in model"
        raise _unknown(model, hint) from None
    except errors.LocalEntryNotFoundError:
        if "/" not in model:
            raise _unknown(model, "not a directory, and the Hub can't be reached to look there") from None
        raise UserError(
            f"{model}{at}: the Hub can't be reached, and its cache lacks (some of) the model; "
            f"connect once (and unset HF_HUB_OFFLINE), or give a directory or {PREFIX}NAME"
        ) from None
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # httpx's, whichever httpx the Hub's client uses
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{model}{at}: asking the Hub failed ({reason}); check the network and its proxy, or try again later"
        ) from None


def _unknown(model: str, hint: str) -> UnknownNameError:
    return UnknownNameError("model", model, [PREFIX + name for name in BUILTINS], hint)
