"""Weights that are no numbers, or that a rung's types can't hold: found in every floating type, and told before any
work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit_checkpoints import UP, CopyRung, edit_config, edit_weights
from bitladder.auditing import audit, require_sound
from bitladder.checkpoint.weights import TensorValues, beyond_range, tensor_values, vanishing
from bitladder.errors import BrokenFileError, UserError
from bitladder.methods import RUNGS
from bitladder.quantization import quantize
from test_tensors import write_checkpoint

pytest_plugins = ("audit_fixtures",)

SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E5M2": 1}
NAN = {
    "F64": b"\0\0\0\0\0\0\xf8\x7f",
    "F32": b"\1\0\x80\xff",
    "BF16": b"\xc0\x7f",
    "F16": b"\1\xfc",
    "F8_E5M2": b"\x7e",
    "F8_E4M3": b"\xff",
    "F8_E8M0": b"\xff",
    "F8_E4M3FNUZ": b"\x80",
}
INFINITE = {
    "F64": b"\0\0\0\0\0\0\xf0\xff",
    "F32": b"\0\0\x80\x7f",
    "BF16": b"\x80\xff",
    "F16": b"\0\x7c",
    "F8_E5M2": b"\xfc",
}


def values_of(directory: Path, dtype: str, content: bytes, size: int) -> TensorValues:
    return tensor_values(write_checkpoint(directory, {"a": (dtype, [len(content) // size], content)}))["a"]


@pytest.mark.parametrize("dtype", NAN)
def test_not_a_number_is_counted_in_every_type(dtype: str, tmp_path: Path) -> None:
    size, one = SIZES.get(dtype, 1), NAN[dtype]
    finite = bytes(one[:-1]) + b"\x01"  # the same with a small exponent
    found = values_of(tmp_path, dtype, finite * 300_000 + one + finite * 5 + one, size)
    assert (found.count, found.nans, found.infinities) == (300_007, 2, 0)
    assert not found.are_finite
    assert values_of(tmp_path / "finite", dtype, finite * 300_000, size).are_finite


@pytest.mark.parametrize("dtype", INFINITE)
def test_infinity_is_counted_in_every_type(dtype: str, tmp_path: Path) -> None:
    one = INFINITE[dtype]
    found = values_of(tmp_path, dtype, one + bytes(len(one)) * 7 + one, len(one))
    assert (found.nans, found.infinities) == (0, 2)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16"])
@pytest.mark.parametrize("largest", [-7.5, 3.25])
def test_the_largest_magnitude_is_found_with_either_sign(dtype: str, largest: float, tmp_path: Path) -> None:
    numbers = np.linspace(-1, 1, 1001).astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype])
    numbers[500] = largest
    assert values_of(tmp_path, dtype, numbers.tobytes(), SIZES[dtype]).largest == abs(largest)


def test_an_empty_tensor_has_no_largest(tmp_path: Path) -> None:
    assert values_of(tmp_path, "F32", b"", 4) == TensorValues(0)


def put(name: str, value: float, count: int = 1) -> "Callable[[Path], None]":
    def edit(tensors: dict[str, Any]) -> None:
        tensors[name].view(-1)[:count] = value

    return lambda directory: edit_weights(directory, edit)


@pytest.mark.parametrize(
    ("value", "told"), [(float("nan"), "3 NaN among 8,192 values"), (float("-inf"), "3 infinite among 8,192 values")]
)
def test_weights_that_are_no_numbers_are_refused_before_any_work(value: float, told: str, tiny_copy: Path) -> None:
    put(f"{UP}.weight", value, 3)(tiny_copy)
    found = audit(tiny_copy, load=False)
    assert [(one.check, one.message) for one in found.errors] == [("numbers", f"{UP}.weight holds {told}")]
    with pytest.raises(BrokenFileError, match=f"{UP}.weight holds {told}; make or fetch it again"):
        require_sound(tiny_copy)
    with pytest.raises(BrokenFileError, match=f"{UP}.weight holds {told}"):
        quantize(str(tiny_copy), "nf4", tiny_copy.parent / "out")
    assert not (tiny_copy.parent / "out").exists()


def test_a_scale_that_is_infinite_fails_the_audit(copy_rung: CopyRung) -> None:
    directory = copy_rung("int8")
    (directory / "bitladder.json").unlink()
    put(f"{UP}.SCB", float("inf"))(directory)
    assert "numbers" in [one.check for one in audit(directory, load=False).errors]


@pytest.mark.parametrize(
    ("name", "value", "refused"),
    [
        (f"{UP}.weight", 70_000.0, {"fp16", "int8", "int8-t0"}),
        (f"{UP}.weight", 65_504.0, {"int8", "int8-t0"}),  # BF16 has 65,536 next, which FP16 has not
        (f"{UP}.weight", 65_280.0, set()),
        ("model.norm.weight", -70_000.0, {"fp16"}),
        (f"{UP}.weight", 3.4e38, set(RUNGS) - {"fp32"}),
    ],
)
def test_a_weight_beyond_a_rungs_types(name: str, value: float, refused: set[str], tiny_copy: Path) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        for key in tensors:
            tensors[key] = tensors[key].float()
        tensors[name].view(-1)[0] = value

    edit_weights(tiny_copy, edit)
    edit_config(tiny_copy, dtype="float32")
    found = {rung: beyond_range(tiny_copy, row.scheme) for rung, row in RUNGS.items()}
    assert {rung for rung, reason in found.items() if reason} == refused
    if "fp16" in refused:
        with pytest.raises(UserError) as raised:
            quantize(str(tiny_copy), "fp16", tiny_copy.parent / "out")
        others = ", ".join(rung for rung in RUNGS if rung not in refused)
        assert str(raised.value) == f"fp16: {found['fp16']}; rungs that hold it: {others}"
        assert str(found["fp16"]).startswith(
            f"{name} holds a weight of magnitude {abs(value):,.6g}, and F16 ends at 65,504"
        )


def test_bitsandbytes_makes_a_row_no_numbers_of_what_int8_refuses() -> None:
    """Why the range of FP16 counts for a rung whose rest is BF16."""
    import torch
    from bitsandbytes.nn import Int8Params

    weight = torch.ones(2, 64)
    for value, finite in ((65_519.0, True), (65_520.0, False)):
        weight[0, 0] = value
        made = Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False).to("cpu")
        assert bool(torch.isfinite(made.SCB[0])) is finite
        assert bool(torch.isfinite(made.SCB[1]))


@pytest.mark.parametrize(("scale", "told"), [(1.0, False), (1e-8, True)])
def test_weights_that_become_zero_in_fp16_are_told(scale: float, told: bool, tiny_copy: Path) -> None:
    edit_weights(tiny_copy, lambda tensors: tensors[f"{UP}.weight"].mul_(scale))
    for rung, expected in (("fp16", told), ("int8", told), ("bf16", False), ("nf4", False)):
        found = vanishing(tiny_copy, RUNGS[rung].scheme)
        assert (found is not None) is expected, rung
        if found:
            assert f"of {UP}.weight 100%" in found
