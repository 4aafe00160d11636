"""A Hub model without its weights, for what only asks how large they are: SafeTensors of headers alone.

The files that stand for weights have their sizes and no content: holes, which take no space on a disk.
"""

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

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
