"""A checkpoint's config.json, read without transformers."""

import json
from pathlib import Path
from typing import Any

from bitladder.errors import BrokenFileError, UserError


def read_config(directory: Path) -> dict[str, Any]:
    """The fields of config.json. Raises UserError where there is none, BrokenFileError where it can't be parsed."""
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory}: no config.json; expected a model saved with save_pretrained")
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise BrokenFileError(f"{path}: not JSON ({error}); fetch or make it again") from None
    if not isinstance(config, dict):
        raise BrokenFileError(f"{path}: not a JSON object; fetch or make it again")
    return config
