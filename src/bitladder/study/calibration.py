"""What this machine can do: found once before the plan, with the time of one linear layer on each rung."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import TypeAdapter

from bitladder.errors import UserError
from bitladder.executors.table import open_executor
from bitladder.machine.cards import (
    cards_of,
    choose_device,
    count_cards,
    device_of,
    require_usable,
    torch_devices,
    with_torchs_figures,
)
from bitladder.machine.host import describe_machine, usable_processors
from bitladder.methods import BASELINE, find_rung
from bitladder.methods.method import torch_dtype
from bitladder.records import Calibration, LayerRate, LoadPolicy, Machine, Record
from bitladder.records.study import CPU_MAX_BATCH

if TYPE_CHECKING:
    from torch import nn

ROWS = (1, 8, 256)
"""decoding one request, decoding a batch, prefill"""
_REPEATS = 10


_RATES = TypeAdapter(tuple[LayerRate, ...])


class LayerJob(Record):
    """What a process gets that times layers on a card."""

    rungs: tuple[str, ...]
    device: str
    in_features: int
    out_features: int


def time_layers_apart(job: LayerJob, *, trust_remote_code: bool = False) -> tuple[LayerRate, ...]:
    """`time_layers` in a process that ends: one that used a card keeps hundreds of MiB of it for as long as it lives.

    Raises RuntimeError where that process does; its traceback is on stderr.
    """
    with open_executor(__name__, None, with_gpu=True, trust_remote_code=trust_remote_code) as executor:
        answer, code = executor.ask(job.model_dump_json())
    if code:
        raise RuntimeError(f"timing a layer of each rung on {job.device} ended with {code}")
    return _RATES.validate_json(answer)


def work(job: str, answers: TextIO) -> None:
    """Do this `LayerJob`, and answer with its rates."""
    print(_RATES.dump_json(time_layers(LayerJob.model_validate_json(job))).decode(), file=answers)


def time_layers(job: LayerJob, *, threads: int | None = None) -> tuple[LayerRate, ...]:
    """Seconds per weight of a (out_features, in_features) layer, for every rung and number of rows in ROWS.

    The most rows are timed again as the backend ``bitladder`` runs them. ``threads``: as many as workers will use.
    """
    import torch

    from bitladder.accuracy.backend.compiling import widened_products
    from bitladder.checkpoint.loading import quiet_libraries

    quiet_libraries()
    rates = []
    with _timing_threads(threads):
        for name in job.rungs:
            rung = find_rung(name)
            layer = rung.method.make_layer(rung.scheme, job.in_features, job.out_features, job.device)
            rates += [_rate(name, layer, rows, job.device, widened=False) for rows in ROWS]
            with widened_products(torch.device(job.device)):
                rates.append(_rate(name, layer, ROWS[-1], job.device, widened=True))
    return tuple(rates)


@contextmanager
def _timing_threads(count: int | None) -> Iterator[None]:
    """torch with so many threads, and afterwards with as many as before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rate(rung: str, layer: "nn.Linear", rows: int, device: str, *, widened: bool) -> LayerRate:
    import torch

    inputs = torch.randn(rows, layer.in_features, device=device).to(torch_dtype(find_rung(rung).scheme.rest_type))
    with torch.inference_mode():
        layer(inputs)
        # the fastest: what else the machine did can only have made a call slower
        seconds = min(_call(layer, inputs, device) for _ in range(_REPEATS))
    weights = layer.in_features * layer.out_features
    return LayerRate(rung=rung, rows=rows, s_per_weight=seconds / weights, widened=widened)


def _call(layer: "nn.Module", inputs: Any, device: str) -> float:
    import torch

    started = time.perf_counter()
    layer(inputs)
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


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
