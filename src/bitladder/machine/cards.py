"""Cards, which are GPUs: their names, what the driver and torch say of them, and a model that is spread over several.

A device is ``cpu``, one card (``cuda:1``) or several (``cuda:0,1``). What the driver refuses to tell is None with its
reason: no question raises.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bitladder.errors import DoesNotFitError, UserError
from bitladder.records import Gpu, Machine

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CARD_SHARE = 0.9
"""of a card's memory that weights may take; the rest is for the CUDA context, the cache and activations"""

_SLICE = "MIG-"
_CARDS = re.compile(r"cuda(?::(\d+(?:,\d+)*))?")


def cards_of(device: str) -> tuple[int, ...]:
    """The numbers of a device's cards, as torch counts them; none for a CPU.

    Raises UserError for what isn't the name of a device, and where a card stands in it twice.
    """
    if device == "cpu":
        return ()
    found = _CARDS.fullmatch(device)
    if found is None:
        raise UserError(f"device {device!r} isn't known; expected cpu, cuda:N for one card, or cuda:N,M for several")
    cards = tuple(int(number) for number in (found[1] or "0").split(","))
    if len(set(cards)) < len(cards):
        raise UserError(f"device {device!r} names a card twice; expected each once, such as cuda:0,1")
    return cards


def device_of(cards: Sequence[int]) -> str:
    """The one name of a set of cards, ``cpu`` of none."""
    return f"cuda:{','.join(map(str, sorted(cards)))}" if cards else "cpu"


def torch_devices(device: str) -> tuple[str, ...]:
    """torch's names of the devices that make up one of ours, in order."""
    return tuple(f"cuda:{card}" for card in cards_of(device)) or ("cpu",)


def choose_device(card_bytes: Sequence[int], needed_bytes: int, limit_bytes: int | None = None) -> str:
    """The first card that holds the weights, else all of them; ``cpu`` without a card.

    ``card_bytes``: all memory of each card. ``needed_bytes``: of the largest weights to be loaded. ``limit_bytes``:
    as if no card had more.
    """
    usable_bytes = [CARD_SHARE * min(size, limit_bytes or size) for size in card_bytes]
    fitting = [card for card, size in enumerate(usable_bytes) if needed_bytes <= size]
    return device_of(fitting[:1] or range(len(card_bytes)))


def visible_cards(uuids: Sequence[str], visible: str | None) -> tuple[int, ...]:
    """The driver's numbers of the cards that a process sees, in its order.

    ``uuids``: of all cards, as the driver counts them. ``visible``: the value of ``CUDA_VISIBLE_DEVICES``, which names
    cards by number or by the beginning of a UUID and ends at the first that isn't there; None where it isn't set.
    """
    if visible is None:
        return tuple(range(len(uuids)))
    found: list[int] = []
    for name in (part.strip() for part in visible.split(",")):
        if name.isdecimal():
            matches = [int(name)] if int(name) < len(uuids) else []
        else:
            matches = [index for index, uuid in enumerate(uuids) if name.startswith("GPU-") and uuid.startswith(name)]
        if len(matches) != 1:
            break
        found += matches
    return tuple(found) if len(set(found)) == len(found) else ()


def is_slice(name: str) -> bool:
    """Whether a value of ``CUDA_VISIBLE_DEVICES`` begins with a slice of a card (MIG), and so names slices alone."""
    return name.strip().startswith(_SLICE)


def visible_slices(visible: str) -> tuple[str, ...]:
    """The slices that ``CUDA_VISIBLE_DEVICES`` names, to the first name of something else; none where one is twice."""
    names = [part.strip() for part in visible.split(",")]
    found = tuple(takewhile(is_slice, names))
    return found if len(set(found)) == len(found) else ()


def count_names(names: Iterable[str]) -> str:
    """Cards in a few words: ``2 x NVIDIA H100, NVIDIA T4``."""
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in Counter(names).items())


DIVIDED = "the card is divided into slices (MIG), and the driver's figures are of all; name one in CUDA_VISIBLE_DEVICES"

_ABSENT = frozenset(("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded", "NVMLError_FunctionNotFound"))
"""NVML's errors where there is no driver; CUDA's packages bring a library of stubs, without functions"""

_DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvhost-ctrl-gpu", "/dev/nvgpu", "/dev/dxg", "/dev/kfd")
"""of the driver, and of Tegra's, of Windows's under Linux and of AMD's, whose cards NVML may not know"""


class DriverAnswer(NamedTuple):
    """What the driver said, or why it did not."""

    value: Any
    reason: str | None = None
    absent: bool = False
    """whether that is for want of a driver"""


def ask(nvml: Any, question: str, *arguments: Any) -> DriverAnswer:
    """The answer of one of NVML's functions."""
    function = getattr(nvml, question, None)
    if function is None:  # an old pynvml, or another package of that name
        return DriverAnswer(None, f"NVML: this pynvml has no {question}")
    try:
        return DriverAnswer(function(*arguments))
    except nvml.NVMLError as error:
        return DriverAnswer(None, f"NVML: {error}", type(error).__name__ in _ABSENT)
    except (OSError, ValueError) as error:  # a library that can't be loaded; text that is no UTF-8
        return DriverAnswer(None, f"NVML: {question}: {error}", isinstance(error, OSError))


def open_nvml() -> tuple[Any, str | None]:
    """NVML, to be asked, and why it can't be: then each of its answers has a reason too."""
    import pynvml

    return pynvml, ask(pynvml, "nvmlInit").reason


def failure() -> str | None:
    """Why a driver that is there doesn't tell its cards; None where it does, and where there is no driver."""
    import pynvml

    answer = ask(pynvml, "nvmlInit")
    if answer.reason is None:
        answer = ask(pynvml, "nvmlDeviceGetCount")
    return None if answer.absent else answer.reason


def could_have_cards() -> bool:
    """Whether a process may come to use a GPU: as the driver says, or as its device files do where it doesn't."""
    nvml, _ = open_nvml()
    if ask(nvml, "nvmlDeviceGetCount").reason is None:
        return bool(visible_gpus(nvml))
    return any(Path(file).exists() for file in _DEVICE_FILES)


def visible_gpus(nvml: Any) -> tuple[str, ...]:
    """NVML's names of the GPUs that this process sees, in torch's order: numbers of cards, or names of slices.

    Names as ``CUDA_VISIBLE_DEVICES`` has them where the driver doesn't tell what they would be held against.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and is_slice(visible):
        return visible_slices(visible)
    count = ask(nvml, "nvmlDeviceGetCount").value or 0
    uuids = [ask_of(nvml, str(index), "nvmlDeviceGetUUID").value for index in range(count)]
    names = [name.strip() for name in (visible or "").split(",")]
    if visible is not None and (not count or (None in uuids and not all(map(str.isdecimal, names)))):
        return tuple(name for name in names if name.isdecimal() or name.startswith("GPU-"))
    return tuple(map(str, visible_cards([uuid or "" for uuid in uuids], visible)))


def find_handle(nvml: Any, gpu: str) -> DriverAnswer:
    """NVML's handle of a card, by its number, or of a card or slice, by its UUID."""
    if gpu.isdecimal():
        return ask(nvml, "nvmlDeviceGetHandleByIndex", int(gpu))
    return ask(nvml, "nvmlDeviceGetHandleByUUID", gpu)


def ask_of(nvml: Any, gpu: str, question: str) -> DriverAnswer:
    """The answer of a function that takes a handle alone."""
    handle = find_handle(nvml, gpu)
    return ask(nvml, question, handle.value) if handle.reason is None else handle


def is_divided(nvml: Any, handle: Any) -> bool:
    """Whether this is a whole card that is divided, of which a process has one slice. Of a slice the driver refuses."""
    mode = ask(nvml, "nvmlDeviceGetMigMode", handle).value
    return bool(mode and mode[0])


def describe_gpu(nvml: Any, gpu: str) -> Gpu:
    """What the driver tells of one GPU."""
    handle = find_handle(nvml, gpu)
    divided = handle.reason is None and is_divided(nvml, handle.value)

    def tell(question: str) -> DriverAnswer:
        return ask(nvml, question, handle.value) if handle.reason is None else handle

    memory, capability = tell("nvmlDeviceGetMemoryInfo"), tell("nvmlDeviceGetCudaComputeCapability")
    if memory.reason is None:
        memory = DriverAnswer(memory.value.total) if memory.value.total else DriverAnswer(None, "NVML: 0 bytes")
    if capability.reason is None:
        capability = DriverAnswer("{}.{}".format(*capability.value))
    answers = {
        "name": DriverAnswer(None, DIVIDED) if divided else tell("nvmlDeviceGetName"),
        "total_memory_bytes": DriverAnswer(None, DIVIDED) if divided else memory,
        "compute_capability": capability,
        "driver": ask(nvml, "nvmlSystemGetDriverVersion"),
        "serial": tell("nvmlDeviceGetSerial"),
    }
    unknown = {field: answer.reason for field, answer in answers.items() if answer.reason is not None}
    return Gpu(**{field: answer.value for field, answer in answers.items()}, unknown=unknown)


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
    silence = None if gpus else failure()
    if not (gpus or silence) or count_cards():
        return
    if not gpus:
        raise UserError(
            f"the NVIDIA driver doesn't tell its GPUs ({silence}) and torch finds none; see what nvidia-smi says, and "
            f"start the machine anew after an update of the driver, {_WITHOUT}"
        )
    import torch

    nvml, _ = open_nvml()
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


NO_ROOM = "dispatched on the CPU or the disk"
"""what transformers' quantizers say where weights would be left over"""

_NAMES = {"disk": "meta"}
"""accelerate's name of where torch has tensors without data"""


def placement_options(cards: tuple[int, ...], limit_bytes: int | None) -> dict[str, Any]:
    """from_pretrained's arguments that share a model evenly among the cards, a layer whole on one of them."""
    import torch

    free_bytes = {card: int(torch.cuda.mem_get_info(card)[0]) for card in cards}
    return {"device_map": "balanced", "max_memory": card_budgets(free_bytes, limit_bytes)}


def card_budgets(free_bytes: Mapping[int, int], limit_bytes: int | None) -> dict[int, int]:
    """Most bytes of weights on each card, from what is free there and from the limit of each."""
    return {card: int(CARD_SHARE * min(free, limit_bytes or free)) for card, free in free_bytes.items()}


def require_placed(directory: Path, model: "PreTrainedModel", device: str) -> None:
    """Raise DoesNotFitError where a part of the model is elsewhere than on the device's cards."""
    elsewhere = {str(place) for place in model_devices(model)} - set(torch_devices(device))
    if elsewhere:
        raise no_room(directory, device, f"a part of it was put on {', '.join(sorted(elsewhere))}")


def no_room(directory: Path, device: str, why: str) -> DoesNotFitError:
    """The error for a model that the cards together have no place for."""
    return DoesNotFitError(
        f"{directory}: does not fit the memory of {device} ({why}); free some, or take another rung, more cards or a "
        "smaller model"
    )


def model_devices(model: "PreTrainedModel") -> "tuple[torch.device, ...]":
    """Where the model's parts run, each device once, the one that takes the input first."""
    import torch

    places = dict.fromkeys((getattr(model, "hf_device_map", None) or {}).values())
    if len(places) < 2:
        return (model.device,)
    named = (torch.device(f"cuda:{place}" if isinstance(place, int) else _NAMES.get(place, place)) for place in places)
    return tuple(dict.fromkeys([model.device, *named]))
