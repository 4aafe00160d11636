"""A study.yaml as keys and values."""

from pathlib import Path
from typing import Any

import yaml

from bitladder.errors import BrokenFileError, UserError


def read_settings_file(path: Path) -> dict[str, Any]:
    """Keys are flags without their dashes in front, and as Python writes them: ``prompt-tokens`` is ``prompt_tokens``,
    and ``no-divergence: true`` is ``divergence: false``.

    Raises UserError for what is no text file and for a key that stands twice, BrokenFileError for what is no YAML of
    keys and values.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {found}; expected a study.yaml")
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file, _UniqueKeys)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; expected a study.yaml") from None
    except yaml.YAMLError as error:
        raise BrokenFileError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        found = "a list" if isinstance(values, list) else "a single value"
        raise BrokenFileError(f"{path}: found {found}, expected keys and values such as `limit: 100`")
    named: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name.startswith("no_") and isinstance(value, bool):
            name, value = name.removeprefix("no_"), not value
        if name in named:
            raise UserError(f"{path}: {name} stands twice, once as {key}; keep one of them")
        named[name] = value
    return named


class _UniqueKeys(yaml.SafeLoader):
    """Of a key that stands twice YAML's own loader takes the last, and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise UserError(f"{self.name}: {name} stands in line {seen[name]} and in line {line}; keep one of them")
            seen[name] = line
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"  # YAML's own loader takes `yes` for true
        return super().construct_mapping(node, deep)
