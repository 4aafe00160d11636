"""Whether this machine can load a checkpoint's format: transformers' own check, before anything is loaded."""

import re
import shlex
from pathlib import Path

from bitladder.checkpoint.config import read_config
from bitladder.checkpoint.declared import quantization_of
from bitladder.checkpoint.loading import quiet_libraries
from bitladder.devices import torch_devices
from bitladder.errors import UserError

_COMMAND = re.compile(r"`pip install ([^`]+)`")
"""how transformers says what to install, not always so that a shell takes it: a bare ``>`` writes a file"""


def require_format(directory: Path, device: str) -> None:
    """Raise UserError where the checkpoint's format needs a package or hardware that isn't here; one line says which.

    A plain checkpoint needs nothing. ``device``: the one it would be loaded to.
    """
    quantization = quantization_of(read_config(directory))
    if quantization is None:
        return
    quiet_libraries()
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=True)
        quantizer.validate_environment(device_map={"": torch_devices(device)[0]}, weights_only=True)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        method = quantization.get("quant_method")
        raise UserError(f"{directory}: its format {method!r} {describe_refusal(error, device)}") from None


def describe_refusal(error: Exception, device: str) -> str:
    """Of a format, in one line: which package it needs, else what its library has against ``device``."""
    command = _COMMAND.search(str(error)) if isinstance(error, ImportError) else None
    package = shlex.join(shlex.split(command[1])) if command else None
    if package is None and isinstance(error, ModuleNotFoundError):
        package = (error.name or str(error)).partition(".")[0].replace("_", "-")
    if package is not None:
        return f"needs a package that this environment lacks; install it with `pip install {package}`"
    return f"can't be loaded on {device}: {' '.join(str(error).split())}"
