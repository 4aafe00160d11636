"""What this machine can do: found once, before the plan, and stored with the settings."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bitladder.cuda import count_cards, require_usable, with_torchs_figures
from bitladder.defaults import CPU_MAX_BATCH
from bitladder.devices import cards_of, choose_device, device_of, torch_devices
from bitladder.environment import describe_machine
from bitladder.errors import UserError
from bitladder.processors import usable_processors
from bitladder.records import Calibration, LoadPolicy, Machine
from bitladder.rungs import BASELINE, find_rung


@dataclass(frozen=True)
class WantedDevice:
    """Where a study is to run, and what the choice depends on."""

    name: str
    """``auto``, ``cpu``, ``cuda``, or cards such as ``cuda:0,1``"""
    max_batch_cap: int | None = None
    memory_limit_bytes: int | None = None
    """of each card, as if it had no more"""
    rungs: tuple[str, ...] = ()
    """the largest of which has to fit"""


def calibrate(
    wanted: WantedDevice, model_directory: Path, stored: Calibration | None, policy: LoadPolicy = LoadPolicy()
) -> Calibration:
    """The stored calibration where machine and device are the same, else a new one; `time_rungs` completes it.

    Raises as `find_device`.
    """
    machine = describe_machine()
    if wanted.name != "cpu":
        machine = with_torchs_figures(machine)
    known = stored if stored is not None and stored.machine == machine else None
    device = known.device if known and _still_meant(wanted.name, known) else None
    device = device or find_device(wanted, machine, model_directory, policy)
    if known is not None and known.device == device:
        threads, rates = known.threads, known.layer_rates
    else:
        threads, rates = _threads(device), ()
    return Calibration(
        device=device,
        threads=threads,
        max_batch_cap=wanted.max_batch_cap or (CPU_MAX_BATCH if device == "cpu" else None),
        machine=machine,
        layer_rates=rates,
    )


def untimed_rungs(calibration: Calibration, rungs: tuple[str, ...]) -> tuple[str, ...]:
    """The baseline and the rungs whose layer times it lacks."""
    timed = {rate.rung for rate in calibration.layer_rates}
    return tuple(rung for rung in dict.fromkeys((BASELINE, *rungs)) if rung not in timed)


def time_rungs(
    calibration: Calibration, rungs: tuple[str, ...], model_directory: Path, policy: LoadPolicy = LoadPolicy()
) -> Calibration:
    """With times of the model's widest layer on these rungs, which takes seconds."""
    from bitladder.checkpoint.skeleton import build_skeleton, widest_layer
    from bitladder.study.layer_timing import LayerJob, time_layers, time_layers_apart

    in_features, out_features = widest_layer(build_skeleton(model_directory, policy))
    card = torch_devices(calibration.device)[0]
    job = LayerJob(rungs=rungs, device=card, in_features=in_features, out_features=out_features)
    if card == "cpu":
        rates = time_layers(job, threads=calibration.threads)
    else:
        rates = time_layers_apart(job, trust_remote_code=policy.trust_remote_code)
    return calibration.model_copy(update={"layer_rates": calibration.layer_rates + rates})


def find_device(
    wanted: WantedDevice, machine: Machine, model_directory: Path, policy: LoadPolicy = LoadPolicy()
) -> str:
    """The device that is meant: for ``auto`` the first card that holds the largest rung, else all cards.

    Raises UserError for a device that isn't there, and for GPUs that this torch can't use: no study goes to the CPU
    unasked.
    """
    if wanted.name == "cpu":
        return wanted.name
    count = require_cards(wanted.name, machine)
    if wanted.name == "auto":
        figures = [gpu.total_memory_bytes for gpu in with_torchs_figures(machine).gpus] if count > 1 else []
        sizes = [size for size in figures[:count] if size is not None]
        if len(sizes) < max(count, 2):  # nothing to choose, or cards that the driver calls otherwise than torch
            return device_of(range(count)[:1])
        return choose_device(
            sizes, largest_load_bytes(wanted.rungs, model_directory, policy), wanted.memory_limit_bytes
        )
    return device_of(cards_of(wanted.name))


def require_cards(wanted: str, machine: Machine) -> int:
    """How many cards torch can use. Raises UserError where it can't use the machine's, or hasn't one that is wanted."""
    require_usable(machine.gpus)
    count = count_cards()
    if wanted != "auto" and max(cards_of(wanted)) >= count:
        known = ", ".join(["auto", "cpu", *(device_of([card]) for card in range(count))])
        several = ", or several of them as cuda:0,1" if count > 1 else ""
        raise UserError(f"device {wanted!r} is not here; expected {known}{several}")
    return count


def largest_load_bytes(planned: Iterable[str], model_directory: Path, policy: LoadPolicy) -> int:
    """Memory that loading the largest of the planned rungs takes, the baseline among them."""
    from bitladder.checkpoint.expected import expect

    rungs = dict.fromkeys((BASELINE, *planned))
    return max(expect(model_directory, find_rung(rung).scheme, policy).quantizing_bytes for rung in rungs)


def _still_meant(wanted: str, known: Calibration) -> bool:
    """Whether the stored device is meant; what ``auto`` is among several cards depends on the rungs too."""
    cards = range(len(known.machine.gpus))
    return wanted == known.device or (wanted == "auto" and len(cards) < 2 and known.device == device_of(cards))


def _threads(device: str) -> int | None:
    import torch

    return min(torch.get_num_threads(), usable_processors()) if device == "cpu" else None
