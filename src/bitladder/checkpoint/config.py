"""A checkpoint's config.json, read without transformers."""

from pathlib import Path
from typing import Any

from bitladder.errors import UserError
from bitladder.json_files import read_json_object


def read_config(directory: Path) -> dict[str, Any]:
    """The fields of config.json. Raises UserError where there is none, BrokenFileError where it isn't a JSON object."""
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: no config.json; expected a model saved with save_pretrained")
    return read_json_object(path, "fetch or make it again")
