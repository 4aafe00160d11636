"""What an audit check looks at, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bitladder.checkpoint.architecture import Architecture
from bitladder.checkpoint.declared import DeclaredBy
from bitladder.checkpoint.forward import Loaded
from bitladder.checkpoint.hardware import Hardware
from bitladder.checkpoint.tensors import TensorInfo, content_hash
from bitladder.records import Finding, LoadPolicy, Manifest, Scheme
from bitladder.unknown import Unknown


@dataclass(frozen=True)
class Subject:
    """A checkpoint as its files show it, and the device it is to run on."""

    directory: Path
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    manifest: Manifest | None
    carried: Manifest | None
    """of the checkpoint that this one was made from, where another library took it along"""
    declared: Scheme
    declared_by: DeclaredBy
    found: Scheme
    architecture: Architecture | Unknown
    """or why transformers can't build it here"""
    hardware: Hardware
    policy: LoadPolicy = field(default_factory=LoadPolicy)

    @cached_property
    def content_hash(self) -> str:
        """Of all weights, which reading takes a while; a look at what has no manifest goes without."""
        return content_hash(self.directory)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all stored tensors, the files' headers not counted."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())


Check = Callable[[Subject, Loaded | None], list[Finding]]
