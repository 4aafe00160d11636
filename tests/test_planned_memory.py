"""The planned peak of Gemma 3 270M's shape, beside peaks that were measured at batch 1; and the study's own."""

from pathlib import Path

import pytest

from bitladder.checkpoint.expected import expect
from bitladder.checkpoint.skeleton import build_skeleton
from bitladder.methods import find_rung
from bitladder.perf.memory import predict_working_memory
from bitladder.units import MIB

LIBRARIES_MIB = {("bf16", "cuda"): 725.6, ("int8", "cuda"): 790.0, ("fp32", "cpu"): 357}
"""what the plan's own measurement found without any model, on an H200 and on the CPU"""


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Gemma3TextConfig

    directory = tmp_path_factory.mktemp("gemma")
    config = Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        num_hidden_layers=18,
        intermediate_size=2048,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        tie_word_embeddings=True,
        architectures=["Gemma3ForCausalLM"],
    )
    config.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    ("rung", "device", "measured_mib"),
    [
        ("bf16", "cuda", 1270),
        ("int8", "cuda", 1260),
        ("bf16", "cpu", 895),
        ("int8", "cpu", 887),
        ("nf4", "cpu", 780),
    ],
)
def test_planned_peaks_are_within_a_tenth_of_measured_ones(
    rung: str, device: str, measured_mib: int, gemma: Path
) -> None:
    scheme = find_rung(rung).scheme
    expected = expect(gemma, scheme)
    working = predict_working_memory(build_skeleton(gemma), 2, 128, 128).total_bytes
    libraries = MIB * LIBRARIES_MIB.get((rung, device), LIBRARIES_MIB["fp32", "cpu"])
    copies = find_rung(rung).method.loading_copies(device)
    planned = libraries + expected.stored_bytes + copies * expected.packed_bytes + working
    assert planned / MIB == pytest.approx(measured_mib, rel=0.1)
