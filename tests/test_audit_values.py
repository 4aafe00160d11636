"""FP32 that is really BF16, and matrices that were 4-bit: on made-up values, and on the trained built-in model."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

from audit_checkpoints import edit_weights, run_check, severities, subject_of
from bitladder.auditing.stored import (
    check_float32_values,
    check_four_bit_values,
    equal_values,
)
from bitladder.checkpoint.tensors import TensorInfo
from bitladder.checkpoint.weights import four_bit_block, sample_windows

if TYPE_CHECKING:
    import torch

pytest_plugins = ("audit_fixtures",)

Floats = npt.NDArray[np.float32]


def bf16_bits(values: Floats) -> npt.NDArray[np.uint16]:
    """Round to nearest even, as torch does."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def quantized(block: int, levels: int, windows: int = 300) -> Floats:
    """Random weights rounded to ``levels`` steps between each block's minimum and maximum (as Q4_1 does): (n, 128)."""
    weights = np.random.default_rng(block + levels).normal(0, 0.02, (windows * 128 // block, block))
    low, high = weights.min(axis=1, keepdims=True), weights.max(axis=1, keepdims=True)
    step = (high - low) / (levels - 1)
    rounded: Floats = (low + np.round((weights - low) / step) * step).astype(np.float32)
    return rounded.reshape(-1, 128)


@pytest.mark.parametrize("block", [32, 64, 128])
def test_weights_dequantized_from_four_bits_are_found_at_their_block_size(block: int) -> None:
    values = quantized(block, levels=16)
    assert four_bit_block(bf16_bits(values)) == block
    assert four_bit_block(values.view(np.uint32)) == block


@pytest.mark.parametrize("levels", [64, 256])
def test_six_and_eight_bit_weights_are_not_four_bit(levels: int) -> None:
    assert four_bit_block(bf16_bits(quantized(32, levels))) is None


@pytest.mark.parametrize("scale", [1e-3, 0.02, 1.0])
def test_random_weights_are_not_four_bit(scale: float) -> None:
    values = np.random.default_rng(7).normal(0, scale, (500, 128)).astype(np.float32)
    for bits in (bf16_bits(values), values.astype(np.float16).view(np.uint16), values.view(np.uint32)):
        assert four_bit_block(bits) is None


def test_constant_blocks_tell_nothing() -> None:
    constant = np.full((400, 128), 0x3F80, np.uint16)
    assert four_bit_block(constant) is None
    random = bf16_bits(np.random.default_rng(1).normal(0, 1, (4, 128)).astype(np.float32))
    assert four_bit_block(np.concatenate([constant, random])) is None
    assert four_bit_block(np.concatenate([constant, bf16_bits(quantized(32, 16, windows=4))])) == 32


@pytest.mark.parametrize(("random_windows", "block"), [(2, 32), (12, None)])
def test_99_percent_of_the_blocks_decide(random_windows: int, block: int | None) -> None:
    windows = bf16_bits(quantized(32, 16, windows=300))
    windows[:random_windows] = bf16_bits(
        np.random.default_rng(2).normal(0, 1, (random_windows, 128)).astype(np.float32)
    )
    assert four_bit_block(windows) == block


def test_the_sample_is_spread_evenly_over_the_right_tensor(tmp_path: Path) -> None:
    before, width = 7, 128
    values = np.repeat(np.arange(5000, dtype=np.uint16), width)
    (tmp_path / "weights").write_bytes(b"x" * before + values.tobytes() + b"y" * 1000)
    tensor = TensorInfo("BF16", (5000, width), "weights", before, values.nbytes)
    windows = sample_windows(tmp_path, tensor)
    assert windows.shape == (1024, width)
    assert np.all(windows == windows[:, :1])
    assert windows[0, 0] == 0
    assert windows[-1, 0] == 4999
    assert set(np.diff(windows[:, 0].astype(int))) <= {4, 5}


def test_a_tensor_smaller_than_one_stretch_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(64))
    assert four_bit_block(sample_windows(tmp_path, TensorInfo("BF16", (4, 8), "weights", 0, 64))) is None


def test_random_checkpoints_were_never_four_bit(tiny_copy: Path) -> None:
    assert run_check(check_four_bit_values, tiny_copy) == []
    edit_weights(tiny_copy, lambda tensors: tensors.update({name: tensors[name].float() for name in tensors}))
    assert run_check(check_four_bit_values, tiny_copy) == []


def test_one_dequantized_matrix_is_named(tiny_copy: Path) -> None:
    import torch

    name = "model.layers.1.mlp.up_proj.weight"
    values = torch.from_numpy(quantized(32, 16)[:64]).reshape(128, 64).to(torch.bfloat16)
    edit_weights(tiny_copy, lambda tensors: tensors.update({name: values}))
    (finding,) = run_check(check_four_bit_values, tiny_copy)
    assert finding.severity == "warning"
    assert finding.data["block_by_tensor"] == {name: 32}
    assert 0 < finding.data["share"] < 0.2


@pytest.mark.smollm2
def test_the_built_in_model_was_four_bit_but_for_its_embedding(smollm2: Path) -> None:
    (finding,) = run_check(check_four_bit_values, smollm2)
    assert finding.severity == "warning"
    blocks = finding.data["block_by_tensor"]
    assert len(blocks) == 210
    assert set(blocks.values()) == {32}
    assert not any("embed" in name for name in blocks)


def test_float32_of_bf16_values_is_found(tiny_copy: Path) -> None:
    edit_weights(tiny_copy, lambda tensors: tensors.update({name: tensors[name].float() for name in tensors}))
    assert severities(run_check(check_float32_values, tiny_copy, as_rung="fp32")) == ["warning"]


def test_one_true_float32_value_is_enough(tiny_copy: Path) -> None:
    def make_float32(tensors: "dict[str, torch.Tensor]") -> None:
        tensors.update({name: tensor.float() for name, tensor in tensors.items()})
        tensors["model.norm.weight"][3] += 2**-20

    edit_weights(tiny_copy, make_float32)
    assert run_check(check_float32_values, tiny_copy, as_rung="fp32") == []


def test_bf16_is_not_asked_whether_it_is_bf16(tiny_copy: Path) -> None:
    assert run_check(check_float32_values, tiny_copy) == []


def test_equal_values_compares_bits(tiny_copy: Path) -> None:
    tensors = subject_of(tiny_copy).tensors
    first, second = (tensors[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (0, 1))
    assert equal_values(tiny_copy, first, first)
    assert not equal_values(tiny_copy, first, second)
