"""The main job on the real built-in model, by the command line: bf16 and nf4, a few questions, two requests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.smollm2

COMMAND = (
    "study builtin:smollm2-135m --rungs bf16,nf4 --tasks bitladder_knowledge --backend bitladder --limit 4 "
    "--scenarios batch1 --requests 2 --prompt-tokens 16 --new-tokens 4 --device cpu --json"
)


def bitladder(*arguments: str, code: int = 0) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "bitladder", *arguments], capture_output=True, text=True, timeout=390, check=False
    )
    assert ran.returncode == code, ran.stderr
    return ran.stdout


def test_study_answers_and_a_second_one_measures_nothing(smollm2: Path, tmp_path: Path) -> None:
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
        assert (scenario["requests"], scenario["prompt_tokens"], scenario["new_tokens"]) == (2, 16, 4)
        assert scenario["metrics"]["requests_per_s"]["value"] > 0
        assert scenario["metrics"]["latency_s"]["value"] > scenario["metrics"]["ttft_s"]["value"] > 0
    assert answer["recommendation"]["sentence"]
    assert (out / "report" / "report.html").stat().st_size > 100_000

    stamps = {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()}
    assert len(stamps) == 4
    bitladder(*COMMAND.split(), "--out", str(out))
    assert {path: path.stat().st_mtime_ns for path in (out / "records").iterdir()} == stamps
