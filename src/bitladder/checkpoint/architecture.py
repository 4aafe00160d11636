"""The network that config.json describes: how stored tensors fit it, and whether this machine can load its format.

Nothing here reads a weight.
"""

import logging
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitladder.checkpoint.config import read_config
from bitladder.checkpoint.loading import load_config, quiet_libraries
from bitladder.checkpoint.scheme import quantization_of
from bitladder.checkpoint.skeleton import build_skeleton, fp32_plan, has_tied_head, linear_weights
from bitladder.checkpoint.tensors import TensorInfo
from bitladder.errors import UserError
from bitladder.machine.cards import torch_devices
from bitladder.methods import method_of
from bitladder.methods.method import module_of
from bitladder.records import LoadPolicy, Scheme

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def loaded_names(model: "PreTrainedModel", stored: Iterable[str]) -> dict[str, str]:
    """The name of each stored tensor in the model; several may have one there. What the model lacks keeps its name.

    The steps are those of transformers' own loading (``convert_and_load_state_dict_in_model``).
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    prefix, known = model.base_model_prefix, model.state_dict()
    names = {}
    for name in stored:
        renamed, _ = rename_source_key(name, renamings, converters, prefix, known)
        if renamed not in known and name in known:
            renamed, _ = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=known)
        names[name] = renamed
    return names


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


_FIRST = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
    "rope_parameters",
)
"""named before any other that differs"""
_INCIDENTAL = frozenset(
    {
        "attention_dropout",
        "auto_map",
        "compression_config",
        "initializer_range",
        "pretraining_tp",
        "quantization_config",
    }
    | {"use_cache"}
)
"""fields that make no other network; those that transformers keeps for every architecture are left out too"""
_SAME = 1e-6
"""relative: a float that went through FP32 is the same"""


def require_same_network(baseline: Path, directory: Path, policy: LoadPolicy = LoadPolicy()) -> None:
    """Raise UserError naming the first field in which ``directory`` is another network than the baseline."""
    expected = _fields(load_config(baseline, policy))
    found = _fields(load_config(directory, policy))
    for name in dict.fromkeys((*_FIRST, *expected, *found)):
        if not _equal(found.get(name), expected.get(name)):
            raise UserError(
                f"{directory}: another architecture than the baseline's: {name} {found.get(name)}, expected "
                f"{expected.get(name)}; give a checkpoint of the same model"
            )


def _fields(config: "PretrainedConfig") -> dict[str, Any]:
    from transformers import PretrainedConfig

    text = config.get_text_config()
    general = PretrainedConfig().to_dict().keys() - {"tie_word_embeddings"}
    ours = {name: value for name, value in text.to_dict().items() if name not in general | _INCIDENTAL}
    return {**ours, "model_type": config.model_type}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    numbers = list(_numbers(one, other))
    return math.isclose(*numbers, rel_tol=_SAME) if len(numbers) == 2 else bool(one == other)


def _numbers(*values: Any) -> Iterator[float]:
    return (value for value in values if isinstance(value, int | float) and not isinstance(value, bool))


_LOGGER = "autoround"
"""of the library that takes whichever kernels are installed, and names what would give faster ones"""


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(" ".join(record.getMessage().split()))


@contextmanager
def library_warnings() -> Iterator[list[str]]:
    """The warnings that are logged inside the block, in order."""
    logger, listener = logging.getLogger(_LOGGER), _Listener()
    logger.addHandler(listener)
    try:
        yield listener.heard
    finally:
        logger.removeHandler(listener)


_COMMAND = re.compile(r"`pip install ([^`]+)`")
"""how transformers says what to install, not always so that a shell takes it: a bare ``>`` writes a file"""

_PACKAGES = {"gptq": ("optimum", "gptqmodel")}
"""what a format needs whose library, where only some of it is here, fails with a bug of its own"""


def require_format(directory: Path, device: str) -> None:
    """Raise UserError where the checkpoint's format needs a package or hardware that isn't here; one line says which.

    A plain checkpoint needs nothing. ``device``: the one it would be loaded to.
    """
    quantization = quantization_of(read_config(directory))
    if quantization is None:
        return
    method = quantization.get("quant_method")
    missing = [package for package in _PACKAGES.get(str(method), ()) if find_spec(package) is None]
    if missing:
        raise UserError(f"{directory}: its format {method!r} {_needs(' '.join(missing))}")
    quiet_libraries()
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=True)
        quantizer.validate_environment(device_map={"": torch_devices(device)[0]}, weights_only=True)
    except (AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{directory}: its format {method!r} {describe_refusal(error, device)}") from None


def is_known_format(method: object) -> bool:
    """Whether transformers has a loader for checkpoints of that ``quant_method``."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    return method in AUTO_QUANTIZATION_CONFIG_MAPPING


def describe_refusal(error: Exception, device: str) -> str:
    """Of a format, in one line: which package it needs, else what its library has against ``device``."""
    command = _COMMAND.search(str(error)) if isinstance(error, ImportError) else None
    package = shlex.join(shlex.split(command[1])) if command else None
    if package is None and isinstance(error, ModuleNotFoundError):
        package = (error.name or str(error)).partition(".")[0].replace("_", "-")
    if package is not None:
        return _needs(package)
    return f"can't be loaded on {device}: {' '.join(str(error).split())}"


def _needs(packages: str) -> str:
    return f"needs what this environment lacks; install it with `pip install {packages}`"
