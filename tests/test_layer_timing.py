"""Where layers are timed: on a card in a process that ends, so that none but the measured one holds it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitladder.machine.host import describe_machine
from bitladder.records import Calibration, LayerRate, LoadPolicy
from bitladder.study import calibration
from bitladder.study.calibration import LayerJob, time_layers_apart, time_rungs


def calibration_on(device: str) -> Calibration:
    return Calibration(device=device, threads=1, max_batch_cap=None, machine=describe_machine())


def test_a_card_is_left_to_a_process_that_ends(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[LayerJob] = []
    rate = LayerRate(rung="bf16", rows=1, s_per_weight=1e-9)

    def apart(job: LayerJob, *, trust_remote_code: bool) -> tuple[LayerRate, ...]:
        jobs.append(job)
        return (rate,)

    monkeypatch.setattr(calibration, "time_layers_apart", apart)
    monkeypatch.setattr(calibration, "time_layers", lambda *_, **__: pytest.fail("this process would keep the card"))
    assert time_rungs(calibration_on("cuda:1"), ("bf16",), tiny_llama, LoadPolicy()).layer_rates == (rate,)
    assert [(job.rungs, job.device) for job in jobs] == [(("bf16",), "cuda:1")]


@pytest.mark.slow
def test_a_process_of_its_own_times_the_same_layers() -> None:
    job = LayerJob(rungs=("bf16", "fp32"), device="cpu", in_features=64, out_features=32)
    rates = time_layers_apart(job)
    assert {(rate.rung, rate.rows) for rate in rates} == {(rung, rows) for rung in job.rungs for rows in (1, 8, 256)}
    assert all(rate.s_per_weight > 0 for rate in rates)
    with pytest.raises(RuntimeError, match="timing a layer of each rung on no-card ended with 70"):
        time_layers_apart(job.model_copy(update={"device": "no-card"}))


@pytest.mark.gpu
def test_a_plan_leaves_the_card_as_it_was(tiny_llama: Path) -> None:
    """In a fresh process, which the tests before have not made use the card."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    code = (
        "import sys, time, torch; from pathlib import Path; from test_layer_timing import calibration_on; "
        "from bitladder.perf.resources import used_bytes, gpus_of; from bitladder.study.calibration import time_rungs; "
        "gpus = gpus_of('cuda:0'); before = used_bytes(gpus)[0]; "
        "rates = time_rungs(calibration_on('cuda:0'), ('bf16', 'int8', 'nf4'), Path(sys.argv[1])).layer_rates; "
        "time.sleep(1); assert len(rates) == 12, rates; "
        "left = used_bytes(gpus)[0] - before; print(left); assert left < 64 << 20, left"
    )
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
    subprocess.run([sys.executable, "-c", code, str(tiny_llama)], check=True, env=environment)
