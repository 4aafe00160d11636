"""Which number types a device multiplies in hardware.

Sources: NVIDIA's compute capability table (tensor cores: FP16 from 7.0, INT8 from 7.5, BF16 from 8.0); Intel's and
Arm's instruction set extensions as the processor names them.
"""

import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bitladder.cgroup import read
from bitladder.checkpoint.loading import require_device
from bitladder.devices import count_names, torch_devices

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
