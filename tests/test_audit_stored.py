"""Checks on files, config and manifest: each seen to fire on a checkpoint that was tampered with, and to keep quiet."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audit_checkpoints import (
    UP,
    WEIGHTS,
    CopyRung,
    edit_config,
    edit_weights,
    flip_byte,
    run_check,
    severities,
    subject_of,
)
from bitladder.auditing import require_sound
from bitladder.auditing.loaded import check_config, check_manifest
from bitladder.auditing.stored import (
    check_bytes,
    check_head,
    check_kept,
    check_layers,
    check_scheme,
    check_size,
)
from bitladder.checkpoint.expected import expect
from bitladder.checkpoint.manifest import MANIFEST_NAME
from bitladder.checkpoint.scheme import describe_scheme
from bitladder.errors import BrokenFileError, UnknownNameError, UserError
from bitladder.methods import RUNGS

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

pytest_plugins = ("audit_fixtures",)


def as_float32(tensors: "Tensors") -> None:
    tensors.update({name: tensor.float() for name, tensor in tensors.items()})


def pack_like_compressed_tensors(directory: Path) -> None:
    """Its layers as a checkpoint with INT4 weights and FP8 inputs stores them, with its config."""
    import torch

    def pack(tensors: "Tensors") -> None:
        for name in [name for name in tensors if "_proj" in name]:
            module = name.removesuffix(".weight")
            rows, columns = tensors.pop(name).shape
            tensors[f"{module}.weight_packed"] = torch.zeros(rows, columns // 8, dtype=torch.int32)
            tensors[f"{module}.weight_scale"] = torch.ones(rows, columns // 32, dtype=torch.bfloat16)
            tensors[f"{module}.weight_shape"] = torch.tensor([rows, columns])

    edit_weights(directory, pack)
    weights = {"num_bits": 4, "type": "int", "group_size": 32}
    inputs = {"num_bits": 8, "type": "float", "dynamic": True}
    edit_config(
        directory,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"weights": weights, "input_activations": inputs, "targets": ["Linear"]}},
            "ignore": ["lm_head"],
        },
    )


def test_what_stays_in_16_bits_is_said_with_its_size(made_rungs: CopyRung) -> None:
    assert run_check(check_kept, made_rungs("bf16")) == []
    for rung in ("nf4", "int8"):
        directory = made_rungs(rung)
        (finding,) = run_check(check_kept, directory)
        predicted = expect(directory, RUNGS[rung].scheme).kept
        assert finding.data["by_kind"] == predicted, "what a plan says before it is made"
        assert predicted["embedding"] == 2 * 512 * 64
        assert finding.message.startswith("embedding 64.0 KiB, norm ")
        assert finding.message.endswith(" of all) stay BF16")


def test_bytes_by_type_and_kind(made_rungs: CopyRung) -> None:
    (finding,) = run_check(check_bytes, made_rungs("nf4"))
    kinds = finding.data["by_kind"]
    weights = 2 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 128 * 64)
    assert kinds["linear"] == {"U8": weights // 2}
    assert kinds["embedding"] == {"BF16": 2 * 512 * 64}
    assert kinds["norm"] == {"BF16": 2 * 5 * 64}
    assert kinds["quantization state"]["F32"] == 4 * weights // 64 + 14 * 16 * 4
    assert "head" not in kinds
    assert sum(finding.data["by_dtype"].values()) == subject_of(made_rungs("nf4")).tensor_bytes


@pytest.mark.parametrize("rung", RUNGS)
def test_every_rung_has_the_scheme_and_size_that_it_says(made_rungs: CopyRung, rung: str) -> None:
    directory = made_rungs(rung)
    subject = subject_of(directory)
    assert subject.declared_by == "manifest"
    assert subject.found == subject.declared
    for check in (check_scheme, check_layers, check_head, check_config, check_manifest):
        assert check(subject, None) == []
    (size,) = check_size(subject, None)
    assert size.severity == "info"
    assert abs(size.data["found_bytes"] / size.data["predicted_bytes"] - 1) < 0.02
    require_sound(directory)


def test_every_rung_is_known_without_its_manifest(copy_rung: CopyRung) -> None:
    for rung in RUNGS:
        directory = copy_rung(rung)
        (directory / MANIFEST_NAME).unlink()
        subject = subject_of(directory)
        assert subject.declared_by == "config"
        assert subject.declared == subject.found == RUNGS[rung].scheme


@pytest.mark.parametrize(
    ("rung", "changes", "field"),
    [
        ("bf16", {"dtype": "float32"}, "stored_type"),
        ("fp32", {"dtype": "bfloat16"}, "stored_type"),
        ("nf4", {"dtype": "float32"}, "rest_type"),
        ("nf4", {"quantization_config": None}, "method"),
        ("int8", {"quantization_config": None}, "method"),
    ],
)
def test_a_config_that_says_something_else_is_an_error(
    copy_rung: CopyRung, rung: str, changes: dict[str, object], field: str
) -> None:
    directory = copy_rung(rung)
    (directory / MANIFEST_NAME).unlink()
    edit_config(directory, **changes)
    (finding,) = run_check(check_scheme, directory)
    assert finding.severity == "error"
    assert field in finding.data["differences"]
    with pytest.raises(BrokenFileError, match="declared"):
        require_sound(directory)


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("bnb_4bit_quant_type", "fp4", "stored_type"),
        ("bnb_4bit_compute_dtype", "float32", "compute_type"),
        ("bnb_4bit_use_double_quant", True, "double_quantization"),
    ],
)
def test_tampered_quantization_settings_are_errors(copy_rung: CopyRung, key: str, value: object, field: str) -> None:
    directory = copy_rung("nf4")
    settings = json.loads((directory / "config.json").read_text())["quantization_config"]
    edit_config(directory, quantization_config={**settings, key: value})
    if field != "compute_type":  # which nothing but the config says
        (directory / MANIFEST_NAME).unlink()
    (finding,) = run_check(check_scheme, directory)
    assert finding.severity == "error"
    assert list(finding.data["differences"]) == [field]


@pytest.mark.parametrize(
    ("stored", "as_rung", "field"),
    [
        ("nf4", "fp4", "stored_type"),
        ("nf4", "nf4-dq", "double_quantization"),
        ("int8", "int8-t0", "int8_threshold"),
        ("bf16", "fp16", "stored_type"),
        ("bf16", "nf4", "method"),
    ],
)
def test_another_rung_than_as_says_is_an_error(made_rungs: CopyRung, stored: str, as_rung: str, field: str) -> None:
    (finding,) = run_check(check_scheme, made_rungs(stored), as_rung=as_rung)
    assert finding.severity == "error"
    assert field in finding.data["differences"]
    assert run_check(check_scheme, made_rungs(stored), as_rung=stored) == []


def test_bf16_saved_again_as_float32_is_not_bf16(tiny_copy: Path) -> None:
    edit_weights(tiny_copy, as_float32)
    edit_config(tiny_copy, dtype="float32")
    assert run_check(check_scheme, tiny_copy) == []
    assert severities(run_check(check_scheme, tiny_copy, as_rung="bf16")) == ["error"]
    assert severities(run_check(check_size, tiny_copy, as_rung="bf16")) == ["error"]


def test_a_manifest_that_calls_another_scheme_by_a_rungs_name(made_rungs: CopyRung) -> None:
    subject = subject_of(made_rungs("fp4"))
    assert subject.manifest is not None
    renamed = replace(subject, manifest=subject.manifest.model_copy(update={"rung": "nf4"}))
    assert severities(check_scheme(renamed, None)) == ["error"]


def test_an_unknown_rung_names_the_nearest(tiny_llama: Path) -> None:
    with pytest.raises(UnknownNameError, match="nf4"):
        subject_of(tiny_llama, "nf5")


def test_another_librarys_checkpoint_is_told_not_judged(tiny_copy: Path) -> None:
    pack_like_compressed_tensors(tiny_copy)
    subject = subject_of(tiny_copy)
    assert (subject.declared.method, subject.declared.stored_type) == ("other", "INT4")
    assert "INT4 weights, FP8 inputs, BF16 products" in describe_scheme(subject.declared)
    assert (subject.found.method, subject.found.stored_type) == ("other", "I32")
    (finding,) = check_scheme(subject, None)
    assert finding.severity == "info"
    assert finding.data["quant_method"] == "compressed-tensors"
    for check in (check_config, check_layers, check_size):
        assert check(subject, None) == []
    assert severities(run_check(check_scheme, tiny_copy, as_rung="nf4")) == ["error"]


def test_a_layer_missing_from_another_librarys_checkpoint_is_an_error(tiny_copy: Path) -> None:
    pack_like_compressed_tensors(tiny_copy)

    def drop(tensors: "Tensors") -> None:
        for name in [name for name in tensors if name.startswith(UP)]:
            del tensors[name]

    edit_weights(tiny_copy, drop)
    (finding,) = run_check(check_config, tiny_copy)
    assert (finding.severity, finding.data["tensors"]) == ("error", [f"{UP}.weight"])


def unquantize_up(directory: Path) -> None:
    def replace_up(tensors: "Tensors") -> None:
        import torch

        for name in [name for name in tensors if name.startswith(UP)]:
            del tensors[name]
        tensors[f"{UP}.weight"] = torch.randn(128, 64).to(torch.bfloat16)

    edit_weights(directory, replace_up)


@pytest.mark.parametrize("rung", ["nf4", "int8"])
def test_a_layer_left_unquantized_is_named(copy_rung: CopyRung, rung: str) -> None:
    directory = copy_rung(rung)
    unquantize_up(directory)
    (finding,) = run_check(check_layers, directory)
    assert (finding.severity, finding.data["layers"]) == ("error", [f"{UP}.weight"])


def test_a_layer_that_the_config_leaves_out_is_no_error_but_on_a_rung(copy_rung: CopyRung) -> None:
    directory = copy_rung("nf4")
    (directory / MANIFEST_NAME).unlink()
    unquantize_up(directory)
    settings = json.loads((directory / "config.json").read_text())["quantization_config"]
    edit_config(directory, quantization_config={**settings, "llm_int8_skip_modules": ["layers.0.mlp.up_proj"]})
    assert severities(run_check(check_layers, directory)) == ["info"]
    assert severities(run_check(check_layers, directory, as_rung="nf4")) == ["error"]


def test_a_layer_of_another_type_in_a_plain_checkpoint(tiny_copy: Path) -> None:
    edit_weights(tiny_copy, lambda tensors: tensors.update({f"{UP}.weight": tensors[f"{UP}.weight"].float()}))
    (finding,) = run_check(check_layers, tiny_copy)
    assert (finding.severity, finding.data["layers"]) == ("error", [f"{UP}.weight"])
    assert finding.data["share"] == pytest.approx(128 * 64 / (2 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 128 * 64)))


def add_head(tensors: "Tensors") -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def test_a_tied_head_stored_twice_is_a_warning_and_no_error_of_size(tiny_copy: Path) -> None:
    edit_weights(tiny_copy, add_head)
    (finding,) = run_check(check_head, tiny_copy)
    assert (finding.severity, finding.data["bytes"]) == ("warning", 2 * 512 * 64)
    assert severities(run_check(check_size, tiny_copy)) == ["info"]
    assert run_check(check_config, tiny_copy) == []


def test_a_head_that_the_config_ties_but_that_differs_is_an_error(tiny_copy: Path) -> None:
    edit_weights(tiny_copy, add_head)
    edit_weights(tiny_copy, lambda tensors: tensors["lm_head.weight"][5].zero_())
    assert severities(run_check(check_head, tiny_copy)) == ["error"]
    edit_config(tiny_copy, tie_word_embeddings=False)
    assert run_check(check_head, tiny_copy) == []


def test_an_untied_head_that_equals_the_embedding_is_a_warning(tiny_copy: Path) -> None:
    edit_weights(tiny_copy, add_head)
    edit_config(tiny_copy, tie_word_embeddings=False)
    (finding,) = run_check(check_head, tiny_copy)
    assert "in memory" in finding.message


@pytest.mark.parametrize(
    ("changes", "what", "tensors"),
    [
        ({"num_hidden_layers": 3}, "are missing", 9),
        ({"num_hidden_layers": 1}, "belong to no part", 9),
        ({"intermediate_size": 256}, "have another shape", 6),
        ({"tie_word_embeddings": False}, "are missing", 1),
    ],
)
def test_a_config_of_another_model_is_an_error(
    tiny_copy: Path, changes: dict[str, object], what: str, tensors: int
) -> None:
    edit_config(tiny_copy, **changes)
    (finding,) = run_check(check_config, tiny_copy)
    assert finding.severity == "error"
    assert what in finding.message
    assert len(finding.data["tensors"]) == tensors
    with pytest.raises(BrokenFileError, match=what):
        require_sound(tiny_copy)


def test_four_bit_weights_of_another_size_are_an_error(copy_rung: CopyRung) -> None:
    directory = copy_rung("nf4")
    edit_weights(directory, lambda tensors: tensors.update({f"{UP}.weight": tensors[f"{UP}.weight"][:-32]}))
    (finding,) = run_check(check_config, directory)
    assert (finding.severity, len(finding.data["tensors"])) == ("error", 1)


def test_an_architecture_that_comes_with_code_of_its_own_is_said_not_judged(tiny_copy: Path) -> None:
    edit_config(tiny_copy, model_type="llama-of-mine", auto_map={"AutoConfig": "mine.Config"})
    (tiny_copy / "mine.py").write_text("")
    (finding,) = run_check(check_config, tiny_copy)
    assert finding.severity == "warning"
    assert "needs Python code that comes with the model" in finding.message
    for check in (check_layers, check_head, check_size):
        assert run_check(check, tiny_copy) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": "two"},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"hidden_act": "none such"},
        {"dtype": "none such"},
        {"rope_parameters": {"rope_type": "none such"}},
        {"quantization_config": "nf4"},
    ],
)
def test_a_config_that_no_model_can_be_built_from_is_broken(tiny_copy: Path, changes: dict[str, object]) -> None:
    edit_config(tiny_copy, **changes)
    with pytest.raises(BrokenFileError, match=r"config\.json"):
        subject_of(tiny_copy)


def test_a_flipped_byte_is_found_by_the_manifest(copy_rung: CopyRung) -> None:
    directory = copy_rung("bf16")
    flip_byte(directory / WEIGHTS, -100)
    findings = run_check(check_manifest, directory)
    assert set(severities(findings)) == {"error"}
    assert any(WEIGHTS in finding.message for finding in findings)
    assert any("content hash" in finding.message for finding in findings)
    with pytest.raises(BrokenFileError, match=WEIGHTS):
        require_sound(directory)


def test_an_edited_config_is_found_by_the_manifest(copy_rung: CopyRung) -> None:
    directory = copy_rung("bf16")
    edit_config(directory, rms_norm_eps=0.5)
    (finding,) = run_check(check_manifest, directory)
    assert "config.json" in finding.message


def test_other_bytes_by_type_than_the_manifests(made_rungs: CopyRung) -> None:
    subject = subject_of(made_rungs("bf16"))
    assert subject.manifest is not None
    manifest = subject.manifest.model_copy(update={"bytes_by_dtype": {"F32": 1}})
    (finding,) = check_manifest(replace(subject, manifest=manifest), None)
    assert "bytes by type" in finding.message


def test_a_truncated_file_is_named(tiny_copy: Path) -> None:
    content = (tiny_copy / WEIGHTS).read_bytes()
    (tiny_copy / WEIGHTS).write_bytes(content[:-1000])
    with pytest.raises(BrokenFileError, match=WEIGHTS):
        subject_of(tiny_copy)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_directory_without_config_or_weights(tiny_copy: Path, name: str) -> None:
    (tiny_copy / name).unlink()
    with pytest.raises(UserError, match="expected"):
        subject_of(tiny_copy)
