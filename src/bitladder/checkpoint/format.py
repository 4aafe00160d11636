"""Whether this machine can load a checkpoint's format: transformers' own check, before anything is loaded."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

from bitladder.checkpoint.config import read_config
from bitladder.checkpoint.declared import quantization_of
from bitladder.checkpoint.loading import quiet_libraries
from bitladder.devices import torch_devices
from bitladder.errors import UserError

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
