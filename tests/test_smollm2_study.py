"""The main job on the real built-in model: NF4 comes back bit for bit, and a study by the command line takes it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit_checkpoints import WEIGHTS
from bitladder.quantization import Checkpoint, quantize
from reloading import forward, made_models, reloaded_logits

pytestmark = pytest.mark.smollm2

H100 = Path(__file__).parent / "h100" / "smollm2-135m.tar.gz"
"""packed records of performance of the same precisions, which were quantized on that machine"""
COMMAND = (
    "study builtin:smollm2-135m --rungs bf16,nf4 --tasks bitladder_knowledge --backend bitladder --limit 4 "
    "--divergence-windows 2 --scenarios batch1 --requests 2 --prompt-tokens 8 --new-tokens 3 --device cpu --json"
)


def bitladder(*arguments: str, code: int = 0) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "bitladder", *arguments], capture_output=True, text=True, timeout=390, check=False
    )
    assert ran.returncode == code, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def cache(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One without checkpoints, where the converted model is that of the user's."""
    place = tmp_path_factory.mktemp("cache")
    (place / "models").symlink_to(smollm2.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITLADDER_CACHE", str(place))
        yield place


@pytest.fixture(scope="module")
def nf4(smollm2: Path, cache: Path) -> tuple[Checkpoint, Any]:
    """The checkpoint, and the model that it was saved from."""
    with made_models() as models:
        made = quantize("builtin:smollm2-135m", "nf4")
    assert made.directory.is_relative_to(cache)
    (model,) = models
    return made, model


@pytest.mark.slow
def test_nf4_comes_back_bit_for_bit(nf4: tuple[Checkpoint, Any], tmp_path: Path) -> None:
    import torch

    made, model = nf4
    (reloaded,) = reloaded_logits([made], tmp_path / "reloaded")
    assert torch.equal(forward(model), reloaded)


@pytest.mark.slow
def test_study_answers_and_a_second_one_measures_nothing(nf4: tuple[Checkpoint, Any], tmp_path: Path) -> None:
    made, _ = nf4
    out = tmp_path / "study"
    answer = json.loads(bitladder(*COMMAND.split(), "--out", str(out)))
    rungs = {rung["rung"]: rung for rung in answer["summary"]["rungs"]}
    assert {name: rung["status"] for name, rung in rungs.items()} == {"bf16": "ok", "nf4": "ok"}
    assert any("Q4_1" in note for note in answer["summary"]["notes"]), "the source was 4-bit: every report says so"
    assert rungs["nf4"]["stored_bytes"] < 0.45 * rungs["bf16"]["stored_bytes"]
    assert 0.9 < rungs["nf4"]["loaded_bytes"] / rungs["nf4"]["stored_bytes"] < 1.1
    for rung in rungs.values():
        (task,) = rung["tasks"]
        assert task["questions"] == 4
        assert task["score"]["low"] < task["score"]["high"]
        (scenario,) = rung["scenarios"]
        assert (scenario["requests"], scenario["prompt_tokens"], scenario["new_tokens"]) == (2, 8, 3)
        assert scenario["metrics"]["requests_per_s"]["value"] > 0
        assert rung["divergence"]["tokens"] == 2 * 127
        assert scenario["metrics"]["latency_s"]["value"] > scenario["metrics"]["ttft_s"]["value"] > 0
    assert (made.directory / WEIGHTS).samefile(out / "checkpoints" / "nf4" / WEIGHTS), "never quantized twice"
    assert rungs["bf16"]["divergence"]["kl_max"]["value"] == 0.0, "its logits made anew are its own, bit for bit"
    assert rungs["nf4"]["divergence"]["kl_mean"]["low"] > 0.05
    assert answer["recommendation"]["sentence"]
    assert (out / "report" / "report.html").stat().st_size > 100_000

    stamps = {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    assert len(stamps) == 6
    bitladder(*COMMAND.split(), "--out", str(out))
    assert {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()} == stamps

    merged = json.loads(bitladder("merge", str(out), str(H100), "--out", str(tmp_path / "merged"), "--json"))
    assert merged["studies"] == 2, "what was quantized here and there is the same, byte for byte"
    assert len(merged["machines"]) == 2 and any("H100" in machine for machine in merged["machines"])
