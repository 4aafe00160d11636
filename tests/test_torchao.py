"""torchao's weight-only INT8: what is stored is what was quantized, and what isn't is told."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from audit_checkpoints import WEIGHTS
from bitladder import Settings, load_results, run_study, summarize
from bitladder.auditing import audit
from bitladder.checkpoint.expected import expect
from bitladder.checkpoint.loading import load_model, load_pretrained
from bitladder.checkpoint.manifest import MANIFEST_NAME
from bitladder.checkpoint.scheme import config_scheme
from bitladder.checkpoint.tensors import read_tensors, weight_files
from bitladder.errors import UserError
from bitladder.machine.host import describe_machine
from bitladder.methods import RUNGS, find_rung, ready_title
from bitladder.methods.method import torch_dtype
from bitladder.methods.torchao_int8 import TORCHAO_INT8
from bitladder.perf.engines.eager import EagerEngine
from bitladder.perf.memory import run_tiny_model
from bitladder.publish.card import Origin, _header, _packages
from bitladder.quantization import quantize
from bitladder.records import Audit
from bitladder.study.calibration import ROWS, LayerJob, time_layers
from family_trial import rung_comes_back
from tiny_families import save_tiny_family

if TYPE_CHECKING:
    import torch

RUNG = "int8-torchao"
UP = "model.layers.0.mlp.up_proj"
SCALES, ZERO_POINTS, CODES = (f"{UP}._weight_{part}" for part in ("scale", "zero_point", "qdata"))


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("torchao") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITLADDER_CACHE", str(out.parent / "cache"))
        quantize(str(tiny_llama), RUNG, out)
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """To tamper with; without a manifest, which would tell every change by its hashes."""
    directory = tmp_path / "copy"
    directory.mkdir()
    for path in made.iterdir():
        if path.name != MANIFEST_NAME:
            (directory / path.name).write_bytes(path.read_bytes())
    return directory


def edit(directory: Path, change: "Callable[[dict[str, torch.Tensor]], object]") -> None:
    """Other tensors beside torchao's own metadata."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(directory / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata=metadata)


def messages(found: Audit, check: str) -> list[str]:
    return [finding.message for finding in found.errors if finding.check == check]


def test_it_comes_back_bit_for_bit(tiny_llama: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes, scales and logits are those that were quantized in memory, and nothing is quantized again."""
    import torch
    from torchao.quantization import Int8Tensor

    config = TORCHAO_INT8.quantization_config(RUNGS[RUNG].scheme)
    before: Any = load_pretrained(tiny_llama, dtype=torch.bfloat16, quantization_config=config)
    monkeypatch.setattr("torchao.quantization.quantize_", lambda *_, **__: pytest.fail("quantized again"))
    monkeypatch.setattr(Int8Tensor, "from_hp", lambda *_, **__: pytest.fail("quantized again"))
    after: Any = load_model(made)
    for name, weight in before.named_parameters():
        again = after.get_parameter(name)
        assert type(again.data) is type(weight.data)
        if isinstance(weight.data, Int8Tensor):
            assert torch.equal(again.data.qdata, weight.data.qdata)
            assert torch.equal(again.data.scale, weight.data.scale)
            again, weight = again.data.dequantize(), weight.data.dequantize()
        assert torch.equal(again, weight), name
    token_ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        assert torch.equal(before(token_ids).logits, after(token_ids).logits)


def test_weights_are_within_half_a_step(tiny_llama: Path, made: Path) -> None:
    import torch
    from safetensors.torch import load_file

    source, stored = load_file(tiny_llama / WEIGHTS), load_file(made / WEIGHTS)
    names = [name for name in stored if name.endswith("_weight_qdata")]
    assert len(names) == 14
    for name in names:
        module = name.removesuffix("._weight_qdata")
        steps = stored[f"{module}._weight_scale"].double()
        values = stored[name].double() * steps
        assert torch.all((values - source[f"{module}.weight"].double()).abs() <= steps / 2 * (1 + 1e-6)), module
        assert torch.unique(stored[name]).numel() > 64, module


def test_it_is_what_it_says(tiny_llama: Path, made: Path) -> None:
    found = audit(made)
    assert found.passed, found.errors
    assert found.found == found.declared == RUNGS[RUNG].scheme
    assert audit(made, as_rung="int8").errors
    expected = expect(tiny_llama, RUNGS[RUNG].scheme)
    tensors = read_tensors(made)
    assert found.stored_bytes == expected.tensor_bytes == sum(tensor.size_bytes for tensor in tensors.values())
    assert expected.packed_bytes == sum(one.size_bytes for name, one in tensors.items() if name.endswith("_qdata"))
    assert found.loaded_bytes == pytest.approx(found.stored_bytes, rel=0.03)
    told = {(one.check, one.message.partition(" 0.")[0]) for one in found.findings}
    assert ("library", "read by torchao") in told
    assert ("hardware", "weights alone are INT8: each call decodes the weights to BF16 first") in told
    assert not [one for one in found.findings if "multiplies I8" in one.message]
    assert [path.suffix for path in weight_files(made)] == [".safetensors"]
    assert not list(made.glob("*.bin"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors[SCALES].neg_(), "holds what is no positive number"),
        (lambda tensors: tensors[SCALES].zero_(), "holds what is no positive number"),
        (lambda tensors: tensors[SCALES].fill_(float("inf")), "holds what is no positive number"),
        (lambda tensors: tensors[ZERO_POINTS].add_(3), "isn't zero"),
        (lambda tensors: tensors.pop(SCALES), "it has no _weight_scale"),
        (lambda tensors: tensors.pop(CODES), "it has no matrix of codes"),
        (lambda tensors: tensors.update({SCALES: tensors[SCALES][:1].clone()}), "its _weight_scale is F32 [1, 1]"),
        (lambda tensors: tensors.update({SCALES: tensors[SCALES].bfloat16()}), "its _weight_scale is BF16"),
    ],
)
def test_what_decodes_nothing_is_found(change: Any, says: str, copy: Path) -> None:
    """Without a manifest, from the tensors alone."""
    assert audit(copy).passed
    edit(copy, change)
    (message,) = messages(audit(copy, load=False), "decoding")
    assert says in message
    assert UP in message


def test_codes_of_another_type_are_another_format(copy: Path) -> None:
    import torch

    edit(copy, lambda tensors: tensors.update({CODES: tensors[CODES].view(torch.uint8)}))
    found = audit(copy, load=False)
    assert any("method other, declared torchao-int8" in message for message in messages(found, "scheme"))


def test_a_scale_that_is_no_number_is_found(copy: Path) -> None:
    edit(copy, lambda tensors: tensors[SCALES].view(-1)[:1].fill_(float("nan")))
    assert messages(audit(copy, load=False), "numbers")


def test_another_scale_is_found_by_the_manifest(made: Path, copy: Path) -> None:
    """It decodes to other weights, which nothing but the hashes can tell."""
    (copy / MANIFEST_NAME).write_bytes((made / MANIFEST_NAME).read_bytes())
    edit(copy, lambda tensors: tensors[SCALES].mul_(1.5))
    assert any("content hash" in message for message in messages(audit(copy, load=False), "manifest"))


def test_a_matrix_of_another_shape_is_found(copy: Path) -> None:
    """The codes are held to the model that config.json describes."""

    def halve(tensors: "dict[str, torch.Tensor]") -> None:
        for name in (CODES, SCALES, ZERO_POINTS):
            tensors[name] = tensors[name][: len(tensors[name]) // 2].clone()

    edit(copy, halve)
    assert any(f"{UP}.weight" in message for message in messages(audit(copy, load=False), "config"))


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"granularity": {"_type": "PerRow", "_data": {"dim": -1}}, "group_size": None}, True),
        ({}, True),
        ({"granularity": {"_type": "PerGroup", "_data": {"group_size": 32}}}, False),
        ({"granularity": {"_type": "PerTensor", "_data": {}}}, False),
        ({"group_size": 64}, False),
    ],
)
def test_its_other_granularities_are_another_format(fields: dict[str, Any], known: bool, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["quant_type"] = {"default": {"_type": "Int8WeightOnlyConfig", "_data": fields}}
    found = config_scheme(config, RUNGS["bf16"].scheme)
    assert found == (RUNGS[RUNG].scheme if known else found.model_copy(update={"method": "other"}))
    (copy / "config.json").write_text(json.dumps(config))
    edit(copy, lambda tensors: tensors.update({SCALES: tensors[SCALES].repeat(1, 2)}))
    assert bool(messages(audit(copy, load=False), "decoding")) == known


def test_settings_that_torchao_refuses_are_told(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"]["quant_type"] = "x"
    (copy / "config.json").write_text(json.dumps(config))
    (told,) = (one for one in audit(copy).findings if one.check == "load")
    assert "its format 'torchao' can't be loaded on cpu: Expected only one key" in told.message


def test_one_that_others_made_has_its_title(copy: Path) -> None:
    found = audit(copy, load=False)
    assert found.declared_by == "config"
    assert found.found == found.declared == RUNGS[RUNG].scheme
    assert ready_title("theirs", found) == RUNGS[RUNG].title


def test_layers_that_run_by_code_of_their_own_are_left(tmp_path: Path) -> None:
    """Falcon's takes the weight's transpose, which torchao's tensors don't have."""
    source = save_tiny_family("falcon", tmp_path / "falcon")
    with pytest.raises(UserError, match="since torchao replaces plain linear layers alone"):
        quantize(str(source), RUNG, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "gemma3", "mamba", "mixtral"])
def test_families_come_back(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
    source = save_tiny_family(family, tmp_path / "source")
    assert rung_comes_back(source, RUNG, tmp_path / "out") == "ok"


@pytest.mark.parametrize("found", ["0.17.0", "0.9.0+cu130"])
def test_an_old_torchao_is_told_before_any_work(
    found: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can't store such tensors as SafeTensors."""
    monkeypatch.setattr("bitladder.methods.torchao_int8.version", lambda _: found)
    with pytest.raises(UserError, match=rf"rung {RUNG} needs torchao 0.18 or later, found {re.escape(found)}"):
        quantize(str(tiny_llama), RUNG, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_answers_for_it(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy, divergence, speed and report; what is planned of memory is about what it takes."""
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
    settings = Settings(
        model=str(tiny_llama),
        rungs=("bf16", RUNG),
        suite="builtin",
        limit=4,
        requests=2,
        prompt_tokens=16,
        new_tokens=4,
        device="cpu",
    )
    run_study(settings, tmp_path / "out")
    summary = summarize(load_results(tmp_path / "out"))
    row = next(row for row in summary.rungs if row.rung == RUNG)
    assert (row.status, row.title) == ("ok", RUNGS[RUNG].title)
    results = load_results(tmp_path / "out")
    statuses = {(record.item.kind, record.status) for record in results.records if record.rung == RUNG}
    assert {kind for kind, _ in statuses} == {"accuracy", "divergence", "performance"}
    made = results.rungs["int8-torchao"].manifest
    assert made is not None and "torchao" in made.versions
    assert all(status == "ok" or kind == "performance" for kind, status in statuses), (
        "a busy machine disturbs what is timed"
    )


def test_a_layer_is_timed_and_a_process_measured_as_models_have_it() -> None:
    from torchao.quantization import Int8Tensor

    scheme = find_rung(RUNG).scheme
    layer = TORCHAO_INT8.make_layer(scheme, 64, 32, "cpu")
    assert isinstance(layer.weight.data, Int8Tensor)
    assert layer.weight.dtype == torch_dtype("BF16")
    rates = time_layers(LayerJob(rungs=(RUNG,), device="cpu", in_features=64, out_features=32), threads=1)
    assert [(rate.rows, rate.widened) for rate in rates] == [*((rows, False) for rows in ROWS), (ROWS[-1], True)]
    assert run_tiny_model("cpu", scheme, EagerEngine) < run_tiny_model("cpu", find_rung("bf16").scheme, EagerEngine)


def test_its_card_says_what_it_needs(made: Path) -> None:
    from bitladder.checkpoint.manifest import read_manifest

    manifest = read_manifest(made)
    assert manifest is not None
    header = _header(manifest, Origin(base_model=None))
    assert "- torchao\n- 8-bit" in header
    assert _packages(manifest.scheme) == "transformers accelerate torchao"
    assert "torchao" in manifest.versions


def test_its_package_makes_no_other_machine() -> None:
    """Records that were made before go on counting where the package is installed later."""
    assert "torchao" not in describe_machine().versions
