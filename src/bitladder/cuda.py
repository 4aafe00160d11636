"""Whether this torch can use the cards that the driver shows, and if not, why, in one line."""

import warnings
from typing import Any

from bitladder import driver
from bitladder.driver import ask
from bitladder.errors import UserError
from bitladder.records import Gpu, Machine

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
    """Raise UserError where the driver shows GPUs, or fails to, and torch can use none of them."""
    failure = None if gpus else driver.failure()
    if not (gpus or failure) or count_cards():
        return
    if not gpus:
        raise UserError(
            f"the NVIDIA driver doesn't tell its GPUs ({failure}) and torch finds none; see what nvidia-smi says, and "
            f"start the machine anew after an update of the driver, {_WITHOUT}"
        )
    import torch

    nvml, _ = driver.open_nvml()
    raise UserError(refusal(gpus[0], torch.__version__, torch.version.cuda, driver_cuda_version(nvml)))


def with_torchs_figures(machine: Machine) -> Machine:
    """The machine with torch's figures of the cards that the driver doesn't tell of. Starts CUDA where it asks torch.

    Raises UserError where torch can't use a card.
    """
    count = count_cards()
    gpus = machine.gpus
    if not count or (len(gpus) >= count and not any(gpu.unknown.keys() & _TORCH_KNOWS for gpu in gpus)):
        return machine
    if len(gpus) != count:  # nothing says which of them are which of torch's
        version = next((gpu.driver for gpu in gpus if gpu.driver), None)
        why = machine.gpus_unknown or "the driver tells of other GPUs than torch"
        unknown = dict.fromkeys(("name", "total_memory_bytes", "compute_capability", "serial"), why)
        if version is None:
            unknown["driver"] = why
        gpus = (
            Gpu(name=None, total_memory_bytes=None, compute_capability=None, driver=version, unknown=unknown),
        ) * count
    found = tuple(_with_torchs_figures(gpu, card) for card, gpu in enumerate(gpus))
    return machine.model_copy(update={"gpus": found, "gpus_unknown": None})


_TORCH_KNOWS = frozenset(("name", "total_memory_bytes", "compute_capability"))


def _with_torchs_figures(gpu: Gpu, card: int) -> Gpu:
    import torch

    try:
        properties = torch.cuda.get_device_properties(card)
    except RuntimeError as error:
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"cuda:{card} ({gpu.title}): torch can't use it ({first_line}); take another --device, {_WITHOUT}"
        ) from None
    known = {
        "name": gpu.name or properties.name,
        "total_memory_bytes": gpu.total_memory_bytes or properties.total_memory,
        "compute_capability": gpu.compute_capability or f"{properties.major}.{properties.minor}",
    }
    unknown = {field: why for field, why in gpu.unknown.items() if field not in known}
    return gpu.model_copy(update={**known, "unknown": unknown})


def refusal(gpu: Gpu, torch_version: str, torch_cuda: str | None, driver_cuda: tuple[int, int] | None) -> str:
    """Why torch can't use the GPU, and what to do.

    ``torch_cuda``: the CUDA version that torch was built for, None for one without CUDA; ``driver_cuda``: the newest
    that the driver has, None where it doesn't say. A driver runs every minor version of its CUDA major version, so
    that only the major one tells whether it is too old.
    """
    name = gpu.title
    built = f"torch {torch_version}, built for CUDA {torch_cuda}"
    if torch_cuda is None:
        return f"{name}: torch {torch_version} is built without CUDA; install one that is built with it, {_WITHOUT}"
    installed = f"the NVIDIA driver {gpu.driver or 'of unknown version'}"
    major = int(torch_cuda.partition(".")[0])
    if driver_cuda is None or driver_cuda[0] >= major:
        return (
            f"{name}: {built}, can't use it through {installed}; run `python -c 'import torch; torch.cuda.init()'` to "
            f"see why, {_WITHOUT}"
        )
    least = f", which needs driver {LEAST_DRIVERS[major]} or later" if major in LEAST_DRIVERS else ""
    return (
        f"{name}: {installed} (CUDA {driver_cuda[0]}.{driver_cuda[1]}) is too old for {built}{least}; update the "
        f"driver, install a torch built for CUDA {driver_cuda[0]}, {_WITHOUT}"
    )


def driver_cuda_version(nvml: Any) -> tuple[int, int] | None:
    """The newest CUDA version that the installed driver has, as (major, minor); None where it doesn't say."""
    ask(nvml, "nvmlInit")
    version = ask(nvml, "nvmlSystemGetCudaDriverVersion_v2").value
    return None if version is None else (version // 1000, version % 1000 // 10)
