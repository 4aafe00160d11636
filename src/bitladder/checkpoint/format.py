"""Whether this machine can load a checkpoint's format: transformers' own check, before anything is loaded."""

from pathlib import Path

from bitladder.checkpoint.config import read_config
from bitladder.checkpoint.declared import quantization_of
from bitladder.devices import torch_devices
from bitladder.errors import UserError


def require_format(directory: Path, device: str) -> None:
    """Raise UserError where the checkpoint's format needs a package or hardware that isn't here; one line says which.

    A plain checkpoint needs nothing. ``device``: the one it would be loaded to.
    """
    quantization = quantization_of(read_config(directory))
    if quantization is None:
        return
    from transformers.quantizers.auto import AutoHfQuantizer

    method = quantization.get("quant_method")
    try:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=True)
        quantizer.validate_environment(device_map={"": torch_devices(device)[0]}, weights_only=True)
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0].replace("_", "-")
        raise UserError(
            f"{directory}: its format {method!r} needs a package that is not here; install it with "
            f"`pip install {package}`"
        ) from None
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{directory}: its format {method!r} can't be loaded on {device}: {' '.join(str(error).split())}"
        ) from None
