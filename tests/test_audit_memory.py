"""Checks of the loaded model: what memory holds, which operators ran, what the hardware does with the types."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from audit_checkpoints import CopyRung, severities, subject_of
from bitladder.auditing import audit
from bitladder.auditing.loaded import (
    check_hardware,
    check_library,
    check_loaded_types,
    check_memory,
    check_operators,
)
from bitladder.checkpoint.loading import load_model
from bitladder.checkpoint.memory import (
    Hardware,
    Loaded,
    dtype_name,
    find_hardware,
    loaded_bytes,
    loaded_bytes_by_dtype,
    observe_forward,
)
from bitladder.errors import UserError
from bitladder.methods import RUNGS

pytest_plugins = ("audit_fixtures",)

OLD_CPU = Hardware("old", "cpu", flags=frozenset({"avx2"}))
NEW_CPU = Hardware("new", "cpu", flags=frozenset({"avx512_bf16", "avx512_fp16", "avx512_vnni"}))
ARM_CPU = Hardware("arm", "cpu", flags=frozenset({"asimd", "bf16", "asimdhp", "i8mm"}))
T4 = Hardware("T4", "cuda", compute_capability=(7, 5))
H100 = Hardware("H100", "cuda", compute_capability=(9, 0))


def loaded(
    before: Mapping[str, int], after: Mapping[str, int] | None = None, *operators: str, device: str = "cpu"
) -> Loaded:
    return Loaded(device, before, before, before if after is None else after, frozenset(operators))


@pytest.mark.parametrize("rung", ["bf16", "int8", "nf4", "nf4-dq"])
def test_memory_holds_what_the_file_does(made_rungs: CopyRung, rung: str) -> None:
    """All but the settings that are decoded at load, and with the buffers that no file has."""
    subject = subject_of(made_rungs(rung))
    model = load_model(subject.directory)
    settings = sum(
        tensor.size_bytes
        for name, tensor in subject.tensors.items()
        if ".quant_state." in name or name.endswith(".weight_format")
    )
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    nested_offsets = 4 * 14 if rung == "nf4-dq" else 0
    expected = subject.tensor_bytes - settings + buffers + nested_offsets
    assert loaded_bytes(model) == expected
    seen = observe_forward(model)
    assert sum(seen.bytes_before.values()) == expected
    assert check_loaded_types(subject, seen) == []
    if rung != "bf16":
        assert loaded_bytes(model) > model.get_memory_footprint()  # type: ignore[no-untyped-call]
    assert {finding.severity for finding in check_memory(subject, seen)} == {"info"}


def test_scales_that_a_forward_rounds_are_told(made_rungs: CopyRung) -> None:
    before, repacked = {"BF16": 1000, "U8": 5000, "F32": 640}, {"BF16": 1320, "U8": 5000}
    for rung, after, told in (("nf4", repacked, True), ("nf4", before, False), ("bf16", repacked, False)):
        findings = check_memory(subject_of(made_rungs(rung)), loaded(before, after))
        assert any("rounds their block scales" in finding.message for finding in findings) is told
        assert [one.data["computed_in"] for one in findings if "computed_in" in one.data] == ["BF16"] * told


def test_inner_tensors_of_tensor_subclasses_are_counted() -> None:
    import torch
    from torch.testing._internal.two_tensor import TwoTensor

    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(TwoTensor(torch.ones(10), torch.ones(10)))  # type: ignore[no-untyped-call]
    assert loaded_bytes_by_dtype(module) == {"F32": 80}


def test_shared_tensors_are_counted_once() -> None:
    import torch

    module = torch.nn.Module()
    module.first = torch.nn.Parameter(torch.ones(10, dtype=torch.bfloat16))
    module.second = module.first
    vars(module)["cache"] = {"copy": module.first.data, "other": torch.ones(3, dtype=torch.int8)}
    assert loaded_bytes_by_dtype(module) == {"BF16": 20, "I8": 3}


def test_types_have_safetensors_names() -> None:
    import torch

    names = {dtype_name(dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.uint8, torch.bool)}
    assert names == {"F32", "BF16", "I8", "U8", "BOOL"}
    assert dtype_name(torch.float8_e4m3fn) == "F8_E4M3"


def test_bf16_loaded_as_float32_is_an_error(made_rungs: CopyRung) -> None:
    """The published study's mistake."""
    import torch

    subject = subject_of(made_rungs("bf16"))
    model = load_model(subject.directory)
    assert check_loaded_types(subject, observe_forward(model)) == []
    (finding,) = check_loaded_types(subject, observe_forward(model.to(torch.float32)))  # type: ignore[arg-type]
    assert (finding.severity, finding.data["type"]) == ("error", "F32")


def test_what_its_library_warns_of_while_it_loads_is_told(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = load_model

    def loads_with_a_slower_kernel(*arguments: Any, **options: Any) -> Any:
        for message in ("Better backend is found, please install", "`pip install auto-round-lib`"):
            logging.getLogger("autoround").warning("%s", message)
        return load(*arguments, **options)

    monkeypatch.setattr("bitladder.auditing.load_model", loads_with_a_slower_kernel)
    (finding,) = [finding for finding in audit(tiny_llama).findings if finding.check == "library"]
    assert finding.severity == "warning"
    assert finding.message.endswith("Better backend is found, please install `pip install auto-round-lib`")
    assert logging.getLogger("autoround").handlers == []
    subject = subject_of(tiny_llama)
    theirs = replace(
        subject,
        declared=subject.declared.model_copy(update={"method": "other"}),
        config={"quantization_config": {"quant_method": "bitsandbytes"}},
    )
    (finding,) = check_library(theirs, loaded({"BF16": 1}))
    assert finding.message == f"read by bitsandbytes {metadata.version('bitsandbytes')}"


def test_without_a_loaded_model_nothing_is_said_of_memory(made_rungs: CopyRung) -> None:
    subject = subject_of(made_rungs("bf16"))
    for check in (check_loaded_types, check_memory, check_operators):
        assert check(subject, None) == []


def test_weights_that_unpack_at_the_first_forward_are_told(tiny_llama: Path) -> None:
    import torch

    class UnpackingLinear(torch.nn.Module):
        """Holds packed weights until it is called, as compressed-tensors' modules do."""

        def __init__(self, dense: torch.nn.Linear) -> None:
            super().__init__()
            self.packed = torch.nn.Parameter(torch.zeros(dense.weight.numel() // 2, dtype=torch.uint8), False)
            self.shape = dense.weight.shape

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.packed.dtype == torch.uint8:
                self.packed = torch.nn.Parameter(torch.zeros(self.shape, dtype=torch.bfloat16), False)
            return torch.nn.functional.linear(inputs, self.packed)

    model = load_model(tiny_llama)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and "proj" in name:
            model.set_submodule(name, UnpackingLinear(module))
    seen = observe_forward(model)
    subject = subject_of(tiny_llama)
    other = subject.declared.model_copy(update={"method": "other", "stored_type": "INT4"})
    embedding = {name: tensor for name, tensor in subject.tensors.items() if "proj" not in name}
    (finding,) = check_memory(replace(subject, declared=other, tensors=embedding), seen)
    assert finding.severity == "warning"
    assert sum(finding.data["bytes_after"].values()) > sum(finding.data["bytes_before"].values())
    assert finding.data["bytes_after"]["BF16"] > finding.data["bytes_before"]["BF16"]


@pytest.mark.parametrize(
    ("before", "after", "severity", "words"),
    [
        (1.0, 1.0, "info", "in memory"),
        (1.0, 3.0, "warning", "becomes dense"),
        (3.0, 3.0, "warning", "loads dense"),
    ],
)
def test_dense_in_memory(made_rungs: CopyRung, before: float, after: float, severity: str, words: str) -> None:
    subject = subject_of(made_rungs("nf4"))
    first, then = ({"BF16": int(times * subject.tensor_bytes)} for times in (before, after))
    (finding,) = check_memory(subject, loaded(first, then))
    assert finding.severity == severity
    assert words in finding.message


@pytest.mark.parametrize(("share", "words"), [(0.0, "stays packed"), (1.0, "becomes dense")])
def test_dense_beside_a_large_embedding(made_rungs: CopyRung, share: float, words: str) -> None:
    """Unpacked INT8 layers are told even where the embedding makes nine tenths of the model."""
    subject = subject_of(made_rungs("int8"))
    embedding = "model.embed_tokens.weight"
    layers = sum(tensor.size_bytes for name, tensor in subject.tensors.items() if "proj" in name)
    large = replace(subject.tensors[embedding], size_bytes=9 * layers)
    subject = replace(
        subject,
        declared=subject.declared.model_copy(update={"method": "other"}),
        tensors={**subject.tensors, embedding: large},
    )
    first, then = ({"BF16": int(subject.tensor_bytes + times * layers)} for times in (0.0, share))
    assert then["BF16"] < 1.2 * first["BF16"]
    (finding,) = check_memory(subject, loaded(first, then))
    assert finding.message.startswith(words)


@pytest.mark.parametrize("rung", ["bf16", "int8", "nf4"])
def test_the_profiler_sees_each_schemes_own_operators(made_rungs: CopyRung, rung: str) -> None:
    subject = subject_of(made_rungs(rung))
    seen = observe_forward(load_model(subject.directory))
    products = check_operators(subject, seen)[0].data["products"]
    own = {"bf16": "aten::mm", "int8": "bitsandbytes::int8", "nf4": "bitsandbytes::"}[rung]
    assert any(name.startswith(own) for name in products)
    assert rung != "bf16" or not any("bitsandbytes" in name for name in products)


@pytest.mark.parametrize(
    ("device", "operators", "severity"),
    [
        ("cpu", ("aten::_int_mm", "bitsandbytes::int8_linear_matmul"), ["info"]),
        ("cpu", ("aten::matmul", "bitsandbytes::int8_linear_matmul"), ["info", "warning"]),
        ("cuda:0", ("aten::matmul", "bitsandbytes::int8_linear_matmul"), ["info"]),
        ("cuda:0", ("aten::matmul",), ["info", "warning"]),
    ],
)
def test_an_int8_rung_without_an_int8_product(
    made_rungs: CopyRung, device: str, operators: tuple[str, ...], severity: list[str]
) -> None:
    seen = loaded({"I8": 1}, None, *operators, device=device)
    assert severities(check_operators(subject_of(made_rungs("int8")), seen)) == severity
    assert severities(check_operators(subject_of(made_rungs("bf16")), seen)) == ["info"]
    for inputs, told in (("INT8", severity), (None, ["info"])):  # other libraries' say it of their inputs
        scheme = RUNGS["int8"].scheme.model_copy(update={"method": "other", "activation_type": inputs})
        assert severities(check_operators(replace(subject_of(made_rungs("int8")), declared=scheme), seen)) == told


@pytest.mark.parametrize(
    ("rung", "hardware", "severity"),
    [
        ("bf16", T4, ["warning"]),
        ("bf16", H100, ["info"]),
        ("bf16", OLD_CPU, ["warning"]),
        ("bf16", NEW_CPU, ["info"]),
        ("bf16", ARM_CPU, ["info"]),
        ("bf16", Hardware("silent", "cpu"), ["info"]),
        ("fp16", T4, ["info"]),
        ("fp16", OLD_CPU, ["warning"]),
        ("fp32", OLD_CPU, ["info"]),
        ("int8", T4, ["info", "info"]),
        ("int8", OLD_CPU, ["warning", "warning"]),
        ("fp4", T4, ["info", "info"]),
        ("nf4", T4, ["warning", "info"]),
        ("nf4", H100, ["info", "info"]),
    ],
)
def test_types_that_the_hardware_emulates(tiny_llama: Path, rung: str, hardware: Hardware, severity: list[str]) -> None:
    subject = replace(subject_of(tiny_llama), declared=RUNGS[rung].scheme, hardware=hardware)
    findings = check_hardware(subject, None)
    assert severities(findings) == severity
    assert all(hardware.name in finding.message for finding in findings if "type" not in finding.data)
    assert severity[0] == "info" or "multiplies it natively, and may be much faster" in findings[0].message


def test_what_a_cpu_tells_of_itself() -> None:
    here = find_hardware("cpu")
    assert here.name
    assert here.multiplies("F32") is True
    assert Hardware("silent", "cpu").multiplies("BF16") is None
    assert T4.multiplies("F8_E4M3") is None


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(UserError, match=device):
        find_hardware(device)
