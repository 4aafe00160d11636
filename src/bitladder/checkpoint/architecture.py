"""The model that config.json describes, and how the stored tensors fit it, without reading a single weight.

transformers itself does the matching, renaming and merging as it would when loading, on tensors of the meta device.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitladder.checkpoint.loading import quiet_libraries
from bitladder.checkpoint.renaming import loaded_names
from bitladder.checkpoint.skeleton import build_skeleton, fp32_plan, has_tied_head, linear_weights
from bitladder.checkpoint.tensors import TensorInfo
from bitladder.methods.kinds import module_of
from bitladder.records import LoadPolicy, Scheme
from bitladder.rungs import method_of


@dataclass(frozen=True)
class Architecture:
    """What the config's model is made of, and what of it the files lack, have besides or have in another shape."""

    name: str
    linear: Mapping[str, int]
    """number of weights by name, of `linear_weights`"""
    loaded_names: Mapping[str, str]
    """what the model calls each stored tensor, scales and maps by the weight that they belong to"""
    tied_head: bool
    """whether the model has one tensor for head and embedding"""
    in_fp32: frozenset[str]
    """stored tensors that the family keeps in FP32, whatever type is asked for"""
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    """``name: stored shape, expected shape``"""


def read_architecture(
    directory: Path, tensors: Mapping[str, TensorInfo], found: Scheme, policy: LoadPolicy = LoadPolicy()
) -> Architecture:
    """Build the config's model without memory and hold the tensors against it.

    Raises UserError as `load_config`, and BrokenFileError for a config that no model can be built from.
    """
    import torch

    skeleton = build_skeleton(directory, policy)
    method = method_of(found)
    weights = {name: method.weight_name(name) for name in tensors}
    names = loaded_names(skeleton, set(weights.values()))
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    wanted = {name: shapes.get(names[weight]) for name, weight in weights.items()}
    logical = {
        name: torch.empty(shape, device="meta") for name, shape in method.decoded_shapes(tensors, wanted).items()
    }
    in_fp32 = fp32_plan(skeleton, torch.bfloat16)
    model_class: Any = type(skeleton)
    with _silent_transformers():
        model, info = model_class.from_pretrained(
            None,
            config=skeleton.config,
            state_dict=logical,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    stored_modules = {module_of(names[weights[name]]) for name in tensors} if method.quantizes else set()
    missing = sorted(name for name in info["missing_keys"] if not _is_packed(name, stored_modules))
    mismatched = sorted(info["mismatched_keys"])
    return Architecture(
        name=type(model).__name__,
        linear={name: weight.numel() for name, weight in linear_weights(skeleton).items()},
        loaded_names={name: names[weights[name]] for name in tensors},
        tied_head=has_tied_head(skeleton),
        in_fp32=frozenset(name for name in tensors if in_fp32(names[weights[name]])),
        missing=tuple(missing),
        unexpected=tuple(sorted(info["unexpected_keys"])),
        mismatched=tuple(f"{name}: {list(stored)}, not {list(expected)}" for name, stored, expected in mismatched),
    )


def _is_packed(name: str, stored_modules: set[str]) -> bool:
    """Whether a weight that wasn't matched is stored in another library's format: at its module or below it."""
    module = module_of(name)
    return module in stored_modules or any(stored.startswith(f"{module}.") for stored in stored_modules)


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """transformers prints what it finds missing; here that comes back as data."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    quiet_libraries()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
