"""What a loaded model holds in memory, what one forward shows, and which number types the device multiplies."""

import platform
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitladder.checkpoint.loading import require_device
from bitladder.checkpoint.skeleton import FORWARD_ERRORS, vocabulary_size
from bitladder.errors import DoesNotFitError, UserError
from bitladder.machine.cards import count_names, torch_devices
from bitladder.machine.host import read
from bitladder.text.words import first_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_CUDA_SINCE = {"F16": (7, 0), "I8": (7, 5), "BF16": (8, 0)}
_X86_FLAGS = {
    "BF16": frozenset({"avx512_bf16", "amx_bf16"}),
    "F16": frozenset({"avx512_fp16", "amx_fp16"}),
    "I8": frozenset({"avx512_vnni", "amx_int8"}),
}
_ARM_FLAGS = {"BF16": frozenset({"bf16"}), "F16": frozenset({"asimdhp"}), "I8": frozenset({"i8mm"})}
_FULL_PRECISION = frozenset({"F32", "F64"})


@dataclass(frozen=True)
class Hardware:
    """A device as the audit names it: a CPU with its instruction flags, or a GPU with its compute capability."""

    name: str
    kind: Literal["cpu", "cuda"]
    compute_capability: tuple[int, int] | None = None
    flags: frozenset[str] | None = None
    """instruction set extensions of a CPU; None where the system doesn't tell"""

    def multiplies(self, number_type: str) -> bool | None:
        """Whether matrix products of this type run in hardware rather than emulated. None: unknown."""
        if number_type in _FULL_PRECISION:
            return True
        if self.compute_capability is not None:
            since = _CUDA_SINCE.get(number_type)
            return None if since is None else self.compute_capability >= since
        if self.flags is None or number_type not in self._wanted_flags:
            return None
        return bool(self._wanted_flags[number_type] & self.flags)

    def requirement(self, number_type: str) -> str:
        """What would run the type natively, in words."""
        if self.compute_capability is not None:
            major, minor = _CUDA_SINCE[number_type]
            return f"compute capability {major}.{minor}"
        return " or ".join(sorted(self._wanted_flags[number_type]))

    @property
    def _wanted_flags(self) -> dict[str, frozenset[str]]:
        return _ARM_FLAGS if "asimd" in (self.flags or ()) else _X86_FLAGS


def find_hardware(device: str) -> Hardware:
    """The hardware behind a device such as ``cpu``, ``cuda:0`` or ``cuda:0,1``. Raises UserError where it isn't there.

    Of several cards it can what the least of them can.
    """
    if device == "cpu":
        flags = _cpuinfo("flags", "Features")
        return Hardware(
            name=_cpuinfo("model name") or platform.processor() or platform.machine(),
            kind="cpu",
            flags=None if flags is None else frozenset(flags.split()),
        )
    require_device(device)
    import torch

    cards = [torch.cuda.get_device_properties(card) for card in torch_devices(device)]
    return Hardware(
        name=count_names(card.name for card in cards),
        kind="cuda",
        compute_capability=min((card.major, card.minor) for card in cards),
    )


def _cpuinfo(*keys: str) -> str | None:
    text = read(Path("/proc/cpuinfo")) or ""
    found = re.search(rf"^(?:{'|'.join(keys)})\s*:(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else None


_NOT_WALKED = frozenset({"builtins", "collections", "enum", "functools", "torch", "transformers", "types"})
"""packages whose objects hold no weights of their own"""


def loaded_bytes(model: "torch.nn.Module") -> int:
    """Bytes of parameters, buffers and quantization state in memory; what is shared (a tied head) counts once."""
    return sum(loaded_bytes_by_dtype(model).values())


def loaded_bytes_by_dtype(model: "torch.nn.Module", *, stored_alone: bool = False) -> dict[str, int]:
    """`loaded_bytes` by type, largest first, under SafeTensors' names of the types.

    ``stored_alone``: of what a checkpoint stores, which buffers that aren't persistent are no part of.
    """
    totals: Counter[str] = Counter()
    seen: set[tuple[str, int, int]] = set()
    for tensor in _reachable_tensors(model, stored_alone):
        size_bytes = tensor.numel() * tensor.element_size()
        key = (str(tensor.device), tensor.data_ptr(), size_bytes)
        if tensor.device.type != "meta" and key not in seen:
            seen.add(key)
            totals[dtype_name(tensor.dtype)] += size_bytes
    return {dtype: size_bytes for dtype, size_bytes in totals.most_common() if size_bytes}


def dtype_name(dtype: "torch.dtype") -> str:
    """SafeTensors' name of a torch type, such as BF16; torch's own where SafeTensors has none."""
    name = str(dtype).removeprefix("torch.")
    for word, short in (("bfloat", "BF"), ("float", "F"), ("uint", "U"), ("int", "I"), ("complex", "C")):
        if name.startswith(word):
            return (short + name.removeprefix(word)).upper().removesuffix("FN")
    return name.upper()


def _reachable_tensors(model: "torch.nn.Module", stored_alone: bool) -> Iterator["torch.Tensor"]:
    seen: set[int] = set()
    for module in model.modules():
        if stored_alone:
            seen.update(id(module._buffers[name]) for name in module._non_persistent_buffers_set)
        yield from _tensors_of(module._parameters, seen)
        yield from _tensors_of(module._buffers, seen)
        for value in list(vars(module).values()):
            yield from _tensors_of(value, seen)


def _tensors_of(value: Any, seen: set[int]) -> Iterator["torch.Tensor"]:
    import torch

    if id(value) in seen or isinstance(value, torch.nn.Module | type):
        return
    if isinstance(value, torch.Tensor):
        seen.add(id(value))
        if hasattr(value, "__tensor_flatten__"):
            names, _ = value.__tensor_flatten__()
            for name in names:
                yield from _tensors_of(getattr(value, name), seen)
            return
        yield value.detach()
    elif isinstance(value, dict):
        for inner in list(value.values()):
            yield from _tensors_of(inner, seen)
        return
    elif type(value).__module__.partition(".")[0] in _NOT_WALKED:
        return
    seen.add(id(value))
    for inner in list(getattr(value, "__dict__", {}).values()):
        yield from _tensors_of(inner, seen)


PROMPT_TOKENS = 16


class FailingModelError(UserError):
    """A model that loads and can't be run."""


@dataclass(frozen=True)
class Loaded:
    """A model that was loaded and run once. Bytes by type are those of `loaded_bytes_by_dtype`."""

    device: str
    bytes_before: Mapping[str, int]
    stored_bytes_before: Mapping[str, int]
    """without buffers that are made anew at every loading, such as masks and rotary tables"""
    bytes_after: Mapping[str, int]
    operators: frozenset[str]
    """as the torch profiler names them, such as ``aten::_int_mm``"""
    looks_ahead: float = 0.0
    """how far the last token moves the logits of the first half, in their standard deviations: 0 of a causal model"""
    remarks: tuple[str, ...] = ()
    """what the format's library warned of"""


def observe_forward(model: "PreTrainedModel") -> Loaded:
    """One forward over a fixed prompt of 16 tokens, under the profiler. Some formats unpack their weights here.

    Raises FailingModelError where the model's own code fails, as some families' does in 16 bits.
    """
    import torch

    before = loaded_bytes_by_dtype(model)
    stored = loaded_bytes_by_dtype(model, stored_alone=True)
    token_ids = (torch.arange(PROMPT_TOKENS, device=model.device) * 97 % vocabulary_size(model))[None]  # (1, 16)
    mask = torch.ones_like(token_ids)
    other = token_ids.clone()
    other[0, -1] = (other[0, -1] + 1) % vocabulary_size(model)
    try:
        with torch.inference_mode():
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
                logits = model(input_ids=token_ids, attention_mask=mask).logits
            moved = model(input_ids=other, attention_mask=mask).logits - logits
    except torch.OutOfMemoryError as error:
        raise DoesNotFitError(f"out of memory in a forward of {PROMPT_TOKENS} tokens ({first_line(error)})") from None
    except FORWARD_ERRORS as error:
        raise FailingModelError(f"its own forward fails: {type(error).__name__}: {first_line(error)}") from error
    first = slice(0, PROMPT_TOKENS // 2)
    return Loaded(
        device=str(model.device),
        bytes_before=before,
        stored_bytes_before=stored,
        looks_ahead=float(moved[0, first].abs().max() / logits[0, first].float().std()),
        bytes_after=loaded_bytes_by_dtype(model),
        operators=frozenset(event.name for event in profiler.events() if "::" in event.name),
    )
