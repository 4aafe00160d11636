"""Whether this torch can use the cards that the driver shows, and if not, why, in one line."""

import warnings
from typing import Any

from bitladder.errors import UserError
from bitladder.records import Gpu

LEAST_DRIVERS = {11: "450", 12: "525", 13: "580"}
"""CUDA's major version -> the oldest driver for any of its minor ones (NVIDIA's CUDA compatibility guide)"""

_WITHOUT = "or give --device cpu to go on without the GPU"


def count_cards() -> int:
    """Cards that torch can use. Its warning where it can't is kept back: `refusal` says more."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def require_usable(gpus: tuple[Gpu, ...]) -> None:
    """Raise UserError where the driver shows GPUs and torch can use none of them."""
    if gpus and not count_cards():
        import pynvml
        import torch

        raise UserError(refusal(gpus[0], torch.__version__, torch.version.cuda, driver_cuda_version(pynvml)))


def refusal(gpu: Gpu, torch_version: str, torch_cuda: str | None, driver_cuda: tuple[int, int] | None) -> str:
    """Why torch can't use the GPU, and what to do.

    ``torch_cuda``: the CUDA version that torch was built for, None for one without CUDA; ``driver_cuda``: the newest
    that the driver has, None where it doesn't say. A driver runs every minor version of its CUDA major version, so
    that only the major one tells whether it is too old.
    """
    built = f"torch {torch_version}, built for CUDA {torch_cuda}"
    if torch_cuda is None:
        return f"{gpu.name}: torch {torch_version} is built without CUDA; install one that is built with it, {_WITHOUT}"
    driver = f"the NVIDIA driver {gpu.driver or 'of unknown version'}"
    major = int(torch_cuda.partition(".")[0])
    if driver_cuda is None or driver_cuda[0] >= major:
        return (
            f"{gpu.name}: {built}, can't use it through {driver}; run `python -c 'import torch; torch.cuda.init()'` to "
            f"see why, {_WITHOUT}"
        )
    least = f", which needs driver {LEAST_DRIVERS[major]} or later" if major in LEAST_DRIVERS else ""
    return (
        f"{gpu.name}: {driver} (CUDA {driver_cuda[0]}.{driver_cuda[1]}) is too old for {built}{least}; update the "
        f"driver, install a torch built for CUDA {driver_cuda[0]}, {_WITHOUT}"
    )


def driver_cuda_version(nvml: Any) -> tuple[int, int] | None:
    """The newest CUDA version that the installed driver has, as (major, minor); None where it doesn't say."""
    try:
        nvml.nvmlInit()
        version = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
    except nvml.NVMLError:
        return None
    return version // 1000, version % 1000 // 10
