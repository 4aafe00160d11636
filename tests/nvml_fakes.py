"""NVML of cards that aren't here, as a module that this process and its children import, and that refuses what it is
told to."""

import os
import re
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

import pynvml
import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "bitladder"

SOURCE = """
import os
import pynvml_errors
from pynvml_errors import *
NVMLError = pynvml_errors.NVMLError
REFUSED = dict(pair.split("=") for pair in os.environ.get("NVML_REFUSES", "").split(",") if pair)
CARDS = int(os.environ.get("NVML_CARDS", "2"))
MIB = 1 << 20

class Numbers:
    def __init__(self, **numbers): self.__dict__.update(numbers)

def refuse(name):
    how = REFUSED.get(name, REFUSED.get("all"))
    if how == "OSError": raise OSError("libnvidia-ml.so.1: file too short")
    if how == "UnicodeDecodeError": b"\\xff".decode()
    if how: raise getattr(pynvml_errors, how)(pynvml_errors._errorcode(how))

def answering(name, answer):
    def function(*arguments):
        refuse(name)
        return answer(*arguments)
    return function

def by_uuid(uuid):
    if uuid.startswith("MIG-"): return uuid
    found = [card for card in range(CARDS) if uuid == f"GPU-{card}{card}"]
    if not found: raise NVMLError(pynvml_errors.NVML_ERROR_NOT_FOUND)
    return found[0]

def by_index(index):
    if index >= CARDS: raise NVMLError(pynvml_errors.NVML_ERROR_INVALID_ARGUMENT)
    return index

ANSWERS = dict(
    nvmlInit=lambda: None,
    nvmlDeviceGetCount=lambda: CARDS,
    nvmlDeviceGetHandleByIndex=by_index,
    nvmlDeviceGetHandleByUUID=by_uuid,
    nvmlDeviceGetUUID=lambda card: f"GPU-{card}{card}",
    nvmlDeviceGetMigMode=lambda card: [int(os.environ.get("NVML_DIVIDED", "0")), 0],
    nvmlDeviceGetName=lambda card: f"Card {card}",
    nvmlDeviceGetCudaComputeCapability=lambda card: (9, 0),
    nvmlDeviceGetSerial=lambda card: "7",
    nvmlDeviceGetMemoryInfo=lambda card: Numbers(used=500 * MIB, total=8000 * MIB),
    nvmlDeviceGetUtilizationRates=lambda card: Numbers(gpu=90),
    nvmlDeviceGetPowerUsage=lambda card: 60_000,
    nvmlDeviceGetTotalEnergyConsumption=lambda card: 1000,
    nvmlDeviceGetClockInfo=lambda card, kind: 1500,
    nvmlDeviceGetCurrentClocksEventReasons=lambda card: 4,
    nvmlDeviceGetComputeRunningProcesses=lambda card: [Numbers(pid=os.getppid(), usedGpuMemory=70)],
    nvmlSystemGetDriverVersion=lambda: "580.65",
    nvmlSystemGetCudaDriverVersion_v2=lambda: 13000,
)
for name, answer in ANSWERS.items():
    if REFUSED.get(name) != "missing":
        globals()[name] = answering(name, answer)
"""

ERRORS = """
import sys
from importlib import util
_spec = util.spec_from_file_location("pynvml_real", {real!r})
_real = util.module_from_spec(_spec)
sys.modules["pynvml_real"] = _real
_spec.loader.exec_module(_real)
globals().update({{name: value for name, value in vars(_real).items() if name.startswith(("NVMLError", "NVML_ERROR"))}})

def _errorcode(name):
    return next(code for code, kind in _real.NVMLError._valClassMapping.items() if kind.__name__ == name)
"""

ERROR_NAMES = tuple(kind.__name__ for kind in pynvml.NVMLError._valClassMapping.values())
WAYS = (*ERROR_NAMES, "OSError", "UnicodeDecodeError", "missing")
"""how a function of NVML may refuse: every error of the library, what isn't one, and a pynvml without the function"""


def used_functions() -> tuple[str, ...]:
    """NVML's functions that bitladder names."""
    found = {name for path in PACKAGE.rglob("*.py") for name in re.findall(r"\bnvml[A-Z]\w+", path.read_text("utf-8"))}
    return tuple(sorted(found))


def install_nvml(
    patch: pytest.MonkeyPatch, folder: Path, *, refuses: dict[str, str], cards: int = 2, divided: bool = False
) -> None:
    """Let this process and its children find this NVML. ``refuses``: function, or ``all``, to one of WAYS."""
    assert pynvml.__file__
    (folder / "pynvml_errors.py").write_text(ERRORS.format(real=pynvml.__file__), encoding="utf-8")
    (folder / "pynvml.py").write_text(SOURCE, encoding="utf-8")
    patch.setenv("NVML_REFUSES", ",".join(f"{name}={how}" for name, how in refuses.items()))
    patch.setenv("NVML_CARDS", str(cards))
    patch.setenv("NVML_DIVIDED", str(int(divided)))
    patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    patch.syspath_prepend(folder)
    if "pynvml_errors" not in sys.modules:  # it takes a tenth of a second
        _import(folder, "pynvml_errors")
    patch.setitem(sys.modules, "pynvml", sys.modules["pynvml"])  # and back at the end
    _import(folder, "pynvml")


def _import(folder: Path, name: str) -> ModuleType:
    spec = util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
