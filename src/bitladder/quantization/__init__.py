"""A model in, a rung's checkpoint out: quantized once, kept in the cache, placed where it is asked for.

The cache knows a checkpoint by its recipe; ``--out`` gets hard links.
"""

import json
import logging
import os
import shutil
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitladder.auditing import require_sound
from bitladder.checkpoint.config import GENERATION_CONFIG, read_config, read_generation_config
from bitladder.checkpoint.expected import (
    Expected,
    expect,
    expected_bytes,
    require_whole,
)
from bitladder.checkpoint.loading import (
    load_pretrained,
    load_tokenizer,
    require_bytes,
    require_device,
    require_tokenizer,
)
from bitladder.checkpoint.manifest import MANIFEST_NAME, hash_files, library_versions, read_manifest, verify_files
from bitladder.checkpoint.scheme import quantization_of
from bitladder.checkpoint.tensors import bytes_by_dtype, content_hash, read_tensors
from bitladder.checkpoint.weights import require_range, vanishing
from bitladder.errors import BrokenFileError, UserError
from bitladder.files import (
    CACHE_ELSEWHERE,
    cache_directory,
    entry_lock,
    existing_part,
    link_or_copy,
    make_folder,
    naming,
    new_directory,
    remove_tree,
    remove_unfinished,
    require_disk_space,
    require_place,
    write_atomically,
)
from bitladder.machine.cards import cards_of
from bitladder.machine.host import map_large_blocks
from bitladder.methods import Rung, find_rung
from bitladder.methods.method import torch_dtype
from bitladder.models.source import ResolvedModel, resolve_model
from bitladder.records import LoadPolicy, Manifest, Source, hash_json


def require_space(model: ResolvedModel, rungs: Collection[str], folder: Path, policy: LoadPolicy) -> None:
    """Raise UserError where the cache's disk, or that of ``folder``, has too little space for all these rungs.

    What the cache has takes no more there, and none in a ``folder`` on the same disk: it is linked.
    """
    entries = {rung: cache_entry(expected_recipe_hash(model.source, rung)) for rung in rungs}
    new = [rung for rung, entry in entries.items() if not (entry / MANIFEST_NAME).is_file()]
    cache = cache_directory()
    copied = list(rungs) if existing_part(cache).stat().st_dev != existing_part(folder).stat().st_dev else []
    sizes = {rung: expected_bytes(model.directory, rung, policy) for rung in {*new, *copied}}
    for place, written, instead in (
        (cache, new, CACHE_ELSEWHERE),
        (folder, copied, "name an --out on another disk"),
    ):
        what = f" for {', '.join(written)}"
        require_disk_space(place, sum(sizes[rung] for rung in written), instead, what)


__all__ = ["Checkpoint", "expected_bytes", "expected_recipe_hash", "quantize", "require_unquantized"]

log = logging.getLogger(__name__)

MAX_SHARD_SIZE = "5GB"
_OTHER_DISK = "name an --out on another disk"

# History: 1 - first release. 2 - layers whose weights a family's code takes out or keeps in FP32 are left as they are,
# and no source with weights that a rung can't hold is taken. Raise it when the same recipe gives other files.
_RECIPE_VERSION = 2


@dataclass(frozen=True)
class Checkpoint:
    """A directory with a manifest."""

    directory: Path
    manifest: Manifest


def quantize(
    model: str,
    rung: str,
    out: Path | None = None,
    *,
    revision: str | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    replace: bool = False,
    allow_partial: bool = False,
) -> Checkpoint:
    """The checkpoint of ``model`` on ``rung``, at ``out`` or else in the cache. Nothing is quantized twice.

    A checkpoint that is there is checked file by file before it is used, and made again where it was damaged. With
    ``replace``, a checkpoint of another recipe at ``out`` makes way; with ``allow_partial``, a rung is made even where
    its method leaves much of the weights as they are. Raises UserError and its children for what `resolve_model`
    refuses, an unknown rung, a source that is already quantized, weights that are no numbers or that the rung can't
    hold, an ``out`` that holds something else, and too little disk or memory (before writing or loading).
    """
    policy = LoadPolicy(device=device, trust_remote_code=trust_remote_code)
    row = find_rung(rung)
    row.method.require_packages(f"rung {rung}")
    if out is not None:
        _require_writable(out)
        require_place(out)
    resolved = resolve_model(model, revision)
    require_unquantized(resolved)
    expected = expect(resolved.directory, row.scheme, policy)
    require_whole(resolved.source.model, row, expected, allow_partial=allow_partial)
    recipe_hash = expected_recipe_hash(resolved.source, rung, device)
    entry = cache_entry(recipe_hash)
    _require_writable(entry)
    if out is not None:
        _refuse_other_content(out, recipe_hash, replace)
        ready = _intact(out, recipe_hash)
        if ready is not None:
            return Checkpoint(out, ready)
        if existing_part(out).stat().st_dev != existing_part(entry).stat().st_dev:
            require_disk_space(out, expected.stored_bytes, _OTHER_DISK)
    with entry_lock(entry):
        manifest = _intact(entry, recipe_hash)
        if manifest is None:
            _require_fit_source(resolved.directory, row, policy)
            manifest = _make(entry, resolved, row, recipe_hash, policy, expected)
        # Equal content may have been asked for under other names.
        manifest = manifest.model_copy(update={"rung": rung, "source": resolved.source})
        if out is None:
            return Checkpoint(entry, manifest)
        _place(entry, manifest, out)
    return Checkpoint(out, manifest)


def cache_entry(recipe_hash: str) -> Path:
    """Where the cache has the checkpoint of a recipe, or would have it."""
    return cache_directory() / "checkpoints" / recipe_hash[:32]


def expected_recipe_hash(source: Source, rung: str, device: str = "cpu") -> str:
    """The recipe hash that a checkpoint made here and now would have: source content, scheme, versions, device."""
    row = find_rung(rung)
    versions = library_versions(row.scheme)
    del versions["python"]
    return hash_json(
        {
            "recipe_version": _RECIPE_VERSION,
            "source": source.content_hash,
            "scheme": row.scheme.model_dump(mode="json"),
            "versions": versions,
            "device": _quantizing_device(row, device),
        }
    )


def _quantizing_device(rung: Rung, device: str) -> str:
    """The device's name as far as it could matter: a cast gives the same bytes everywhere."""
    if not rung.method.quantizes or device == "cpu":
        return "cpu"
    import torch

    require_device(device)
    if len(cards_of(device)) > 1:
        raise UserError(f"device {device!r}: found several cards; quantizing takes one, such as cuda:0, or cpu")
    return f"cuda ({torch.cuda.get_device_name(device)})"


def require_unquantized(resolved: ResolvedModel) -> None:
    """Raise UserError for a model that some library has quantized."""
    found = quantization_of(read_config(resolved.directory))
    if found is not None:
        raise UserError(
            f"{resolved.source.model}: already quantized ({found.get('quant_method')}), expected a model that isn't; "
            "`bitladder audit` tells what it is"
        )


def _require_fit_source(directory: Path, rung: Rung, policy: LoadPolicy) -> None:
    """Raise UserError for a source whose files don't fit each other, or whose texts or weights the rung can't do with;
    its weights are read once. What is in the cache was made from the same bytes and need not be asked again."""
    require_sound(directory, policy)
    require_tokenizer(directory, policy)
    require_range(directory, rung.name)
    if vanished := vanishing(directory, rung.scheme):
        log.warning("%s: %s", rung.name, vanished)


def _require_writable(directory: Path) -> None:
    existing = existing_part(directory)
    if not os.access(existing, os.W_OK):
        raise UserError(f"{directory}: no permission to write in {existing}; give another --out or BITLADDER_CACHE")


def _refuse_other_content(out: Path, recipe_hash: str, replace: bool) -> None:
    if not out.is_dir() or not any(out.iterdir()):
        return
    found = read_manifest(out)
    if found is not None and found.recipe_hash == recipe_hash:
        return
    if found is not None and replace:
        remove_tree(out)
        return
    what = "other files" if found is None else f"another checkpoint ({found.rung} of {found.source.model})"
    raise UserError(f"{out}: holds {what}, and nothing is overwritten; give another --out, or delete it")


def _intact(directory: Path, recipe_hash: str) -> Manifest | None:
    """The manifest of a checkpoint made by that recipe whose files are all as they were written; else None."""
    if not directory.is_dir() or not any(directory.iterdir()):
        return None
    try:
        manifest = read_manifest(directory)
        differences = verify_files(directory, manifest) if manifest else [f"{MANIFEST_NAME}: missing"]
    except BrokenFileError as error:
        manifest, differences = None, [str(error)]
    if manifest is not None and manifest.recipe_hash != recipe_hash:
        differences.append(f"{MANIFEST_NAME}: of another recipe")
    if differences:
        log.warning("%s: damaged since it was written (%s); making it again", directory, "; ".join(differences))
        return None
    return manifest


def _make(
    entry: Path,
    resolved: ResolvedModel,
    rung: Rung,
    recipe_hash: str,
    policy: LoadPolicy,
    expected: Expected,
) -> Manifest:
    scheme = rung.scheme
    device = policy.device if rung.method.quantizes else "cpu"
    policy = policy.model_copy(update={"device": device})
    if entry.exists():
        remove_tree(entry)
    require_disk_space(entry, expected.stored_bytes)
    require_bytes(f"{rung.name} of {resolved.source.model}", device, expected.quantizing_bytes)
    with new_directory(entry) as temporary:
        architecture = _save(temporary, resolved, rung, policy, expected.skipped)
        with ThreadPoolExecutor(1) as pool:
            hashing = pool.submit(content_hash, temporary)
            files = hash_files(temporary)
        manifest = Manifest(
            rung=rung.name,
            scheme=scheme,
            source=resolved.source,
            architecture=architecture,
            quantizing_device=_quantizing_device(rung, device),
            versions=library_versions(scheme),
            recipe_hash=recipe_hash,
            content_hash=hashing.result(),
            files=files,
            bytes_by_dtype=bytes_by_dtype(read_tensors(temporary)),
            parameters=expected.parameters,
            unquantized_share=expected.left_share,
        )
        _write_manifest(temporary, manifest)
    return manifest


def _save(
    directory: Path,
    resolved: ResolvedModel,
    rung: Rung,
    policy: LoadPolicy,
    skipped: tuple[str, ...],
) -> str:
    """Write model and tokenizer; returns the architecture's name.

    Nothing runs the model first: on CPUs with BF16 instructions bitsandbytes repacks a 4-bit weight at its first
    forward, and what is saved after that is wrong.
    """
    from transformers import GenerationConfig

    # Written and dropped first: it fails early, and takes no memory while the weights do.
    pad_token_id = _save_tokenizer(directory, resolved, policy)
    map_large_blocks()
    config = rung.method.quantization_config(rung.scheme, skipped)
    options: dict[str, Any] = {} if config is None else {"quantization_config": config}
    model = load_pretrained(resolved.directory, policy, dtype=torch_dtype(rung.scheme.rest_type), **options)
    # Many published generation configs can't be saved (a temperature without sampling): theirs is written as it is.
    published = read_generation_config(resolved.directory)
    if published is not None:
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    with naming(directory):
        model.save_pretrained(directory, max_shard_size=MAX_SHARD_SIZE)
    settings = published or read_generation_config(directory)
    if settings is not None:
        if settings.get("pad_token_id") is None:
            settings["pad_token_id"] = pad_token_id
        target = directory / GENERATION_CONFIG
        with naming(target):
            target.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    mode = (directory / "config.json").stat().st_mode
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)  # SafeTensors writes 0600, whatever the umask
    return type(model).__name__


def _save_tokenizer(directory: Path, resolved: ResolvedModel, policy: LoadPolicy) -> int:
    tokenizer = load_tokenizer(resolved.directory, policy)
    with naming(directory):
        tokenizer.save_pretrained(directory)
    return int(tokenizer.pad_token_id)


def _place(entry: Path, manifest: Manifest, out: Path) -> None:
    """Hard-link the cache's files to ``out``, or copy them to another file system; the manifest is ``out``'s own."""
    make_folder(out.parent)
    if out.parent.stat().st_dev != entry.stat().st_dev:
        size_bytes = sum(file.size_bytes for file in manifest.files.values())
        require_disk_space(out, size_bytes, _OTHER_DISK)
    remove_unfinished(out)
    remove_unfinished(out.parent, out.name)
    if out.is_dir() and any(out.iterdir()):  # the same checkpoint, damaged
        for name in manifest.files:
            (out / name).unlink(missing_ok=True)
            _link(entry, out, name)
        _write_manifest(out, manifest)
        return
    with new_directory(out) as temporary:
        for name in manifest.files:
            _link(entry, temporary, name)
        _write_manifest(temporary, manifest)


def _link(entry: Path, directory: Path, name: str) -> None:
    (directory / name).parent.mkdir(exist_ok=True)
    # what people edit is their own; an edit of weights is found by the manifest's hashes
    with naming(directory / name):
        (link_or_copy if name.endswith(".safetensors") else shutil.copyfile)(entry / name, directory / name)


def _write_manifest(directory: Path, manifest: Manifest) -> None:
    write_atomically(directory / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
