"""How fast this hardware runs one linear layer on each rung: what a dry run's times are made of."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import TypeAdapter

from bitladder.executors.table import open_executor
from bitladder.methods.types import torch_dtype
from bitladder.records import LayerRate, Record
from bitladder.rungs import find_rung

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

    from bitladder.accuracy.backend.products import widened_products
    from bitladder.checkpoint.loading import quiet_libraries

    quiet_libraries()
    rates = []
    with _threads(threads):
        for name in job.rungs:
            rung = find_rung(name)
            layer = rung.method.make_layer(rung.scheme, job.in_features, job.out_features, job.device)
            rates += [_rate(name, layer, rows, job.device, widened=False) for rows in ROWS]
            with widened_products(torch.device(job.device)):
                rates.append(_rate(name, layer, ROWS[-1], job.device, widened=True))
    return tuple(rates)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
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
