"""What this machine can do: found once, before the plan, and stored with the settings."""

import json
from pathlib import Path

from bitladder.defaults import CPU_MAX_BATCH
from bitladder.environment import describe_machine
from bitladder.errors import UserError
from bitladder.records import Calibration, LayerRate, Machine, Settings
from bitladder.rungs import BASELINE


def calibrate(settings: Settings, model_directory: Path, stored: Calibration | None) -> Calibration:
    """The stored calibration where machine and device are the same, completed for rungs that it lacks; else a new one.

    Raises UserError for a device that isn't there.
    """
    machine = describe_machine()
    if stored is not None and stored.machine == machine and settings.device in ("auto", stored.device):
        device, threads, rates = stored.device, stored.threads, stored.layer_rates
    else:
        device, threads = find_device(settings.device, machine)
        rates = ()
    return Calibration(
        device=device,
        threads=threads,
        max_batch_cap=settings.max_batch_cap or (CPU_MAX_BATCH if device == "cpu" else None),
        machine=machine,
        layer_rates=rates + _missing_rates(settings.rungs, rates, device, model_directory),
    )


def _missing_rates(
    rungs: tuple[str, ...], known: tuple[LayerRate, ...], device: str, model_directory: Path
) -> tuple[LayerRate, ...]:
    wanted = dict.fromkeys((BASELINE, *rungs))
    missing = tuple(rung for rung in wanted if all(rate.rung != rung for rate in known))
    if not missing:
        return ()
    from bitladder.study.layer_timing import time_layers

    config = json.loads((model_directory / "config.json").read_text())
    hidden = int(config.get("hidden_size", 1024))
    return time_layers(missing, device, hidden, int(config.get("intermediate_size", 4 * hidden)))


def find_device(wanted: str, machine: Machine) -> tuple[str, int | None]:
    """Resolved device name, and threads on a CPU. Raises UserError for a device that isn't there."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    cards = tuple(f"cuda:{index}" for index in range(count))
    device = {"auto": cards[0] if cards else "cpu", "cuda": "cuda:0"}.get(wanted, wanted)
    if device not in ("cpu", *cards):
        why = "" if cards or not machine.gpus else "; the driver shows a GPU that this torch cannot use"
        raise UserError(f"device {wanted!r} is not here; expected auto, {', '.join(('cpu', *cards))}{why}")
    return device, torch.get_num_threads() if device == "cpu" else None
