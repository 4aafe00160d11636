"""Families of models, one of each kind that was once refused, mistaken or answered by a traceback.

docs/families.md has them all; benchmarks/families.py makes it.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM

from bitladder.accuracy.forwards import ALONE, UNTRIED
from bitladder.accuracy.huggingface import (
    HuggingFaceModel,
    _reason_to_ask_alone,
    _weights_alone_rounded,
    padding_behind_shows,
    padding_shows,
)
from bitladder.auditing import audit, require_sound
from bitladder.checkpoint.expected import expect
from bitladder.checkpoint.loading import load_model, load_pretrained, load_tokenizer
from bitladder.checkpoint.skeleton import (
    _without_numbers,
    build_skeleton,
    cache_bytes,
    directly_used,
    has_tied_head,
    linear_weights,
    widest_layer,
)
from bitladder.errors import UserError
from bitladder.methods import find_rung, made_title
from bitladder.methods.bnb_4bit import BNB_4BIT
from bitladder.quantization import quantize
from family_trial import TOLERANCE, UNNAMED_SHARE, named_share, rung_comes_back, scored
from tiny_families import causal_families, save_tiny_family, tiny_config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "rungs"),
    [
        ("qwen2", ["nf4", "int8"]),  # biases beside packed weights
        ("gpt2", ["nf4"]),  # weights of its own linear class, transposed
        ("gemma3", ["nf4"]),  # a nested configuration, and names that change on loading
        ("mamba", ["int8"]),  # no attention, and layers whose weights its code takes
        ("falcon_h1", ["nf4"]),  # attention and state spaces
        ("deepseek_v4", ["nf4"]),  # a table of integers beside a router's weight
        ("deepseek_v3", ["int8"]),  # experts, values of another size, layers with inputs of four axes
        ("inkling_text", ["bf16"]),  # a scale in FP32 beside a router's weight
        ("gpt_neo", ["nf4"]),  # null in its configuration, masks among its buffers
    ],
)
def test_a_family_comes_back_and_answers_as_with_lm_eval(
    family: str, rungs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
    source = save_tiny_family(family, tmp_path / "source")
    require_sound(source)
    for rung in rungs:
        assert rung_comes_back(source, rung, tmp_path / rung) == "ok"
    found = scored(source, tmp_path / "fp32")
    ours = family in ("qwen2", "gpt2", "gemma3", "deepseek_v3")
    assert found["scored"].startswith("hf: ") != ours
    assert found["generated"] == ("ours" if ours else "hf")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", ["qwen2", "deepseek_v3", "qwen3_moe", "gemma3", "gpt2", "mistral", "granite", "opt"])
def test_a_family_answers_on_a_gpu_as_with_lm_eval(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
    source = save_tiny_family(family, tmp_path / "source")
    found = scored(source, tmp_path / "fp32", "cuda:0")
    assert not found["scored"].startswith("hf: ")
    assert found["generated"] == "ours"


@pytest.mark.parametrize(
    "family",
    ["dbrx", "deepseek_v4", "gemma3", "gpt_oss", "inkling2_text", "jamba", "mamba", "qwen3_moe", "rwkv", "zamba"],
)
def test_hardly_a_weight_is_unknown(family: str, tmp_path: Path) -> None:
    tiny_config(family).save_pretrained(tmp_path)
    assert named_share(build_skeleton(tmp_path)) >= 1 - UNNAMED_SHARE


def test_experts_that_are_bare_matrices_stay_in_16_bits(tmp_path: Path) -> None:
    """DBRX has the experts of a layer in one parameter of two axes."""
    source = save_tiny_family("dbrx", tmp_path / "source")
    expected = expect(source, find_rung("nf4").scheme)
    assert expected.left_share > 0.8
    told = rf"{expected.left_share:.0%} of the linear weights would stay BF16 \(.*\.mlp\.w1"
    with pytest.raises(UserError, match=told):
        quantize(str(source), "nf4", tmp_path / "nf4")


def test_vectors_and_tables_are_no_matrices(tmp_path: Path) -> None:
    tiny_config("rwkv").save_pretrained(tmp_path)
    assert {name.rpartition(".")[2] for name in linear_weights(build_skeleton(tmp_path))} == {"weight"}


def test_experts_that_stay_in_16_bits_are_no_4_bit_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
    source = save_tiny_family("qwen3_moe", tmp_path / "source")
    expected = expect(source, find_rung("nf4").scheme)
    share = f"{expected.left_share:.0%}"
    assert 0.3 < expected.left_share < 1
    wanted = rf"{share} of the linear weights would stay BF16 \(model\.layers.*experts.*--allow-partial"
    with pytest.raises(UserError, match=wanted):
        quantize(str(source), "nf4", tmp_path / "nf4")
    assert not (tmp_path / "nf4").exists()
    made = quantize(str(source), "nf4", tmp_path / "nf4", allow_partial=True)
    assert made_title(made.manifest) == f"INT4 (NF4), {1 - expected.left_share:.0%} of the linear weights"
    found = audit(made.directory)
    assert found.passed
    told = next(finding for finding in found.findings if finding.check == "layers")
    assert told.severity == "warning" and "left unquantized" in told.message
    with pytest.raises(UserError, match="--allow-partial"):  # what the cache has is not the rung either
        quantize(str(source), "nf4")
    manifest = json.loads((made.directory / "bitladder.json").read_text())
    del manifest["unquantized_share"]
    (made.directory / "bitladder.json").write_text(json.dumps(manifest))
    assert not audit(made.directory).passed, "a checkpoint that doesn't say so isn't what it says"


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("falcon", "100% of the linear weights would stay BF16"),  # its linear layers are of a class of its own
        ("llama4_text", "can't store this model as INT4 (NF4) and load it again, since it has model.layers.0.feed_for"),
        ("lara_mini", "in another layout in its files"),
        ("inkling2_text", "in another layout in its files"),  # a weight whose stored name does not end in .weight
    ],
)
def test_what_no_flag_helps_is_refused_before_any_work(family: str, said: str, tmp_path: Path) -> None:
    source = save_tiny_family(family, tmp_path / "source")
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        quantize(str(source), "nf4", tmp_path / "nf4", allow_partial=True)
    assert "--allow-partial" not in str(refused.value)
    assert not (tmp_path / "nf4").exists()


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("bert", "sees what comes after a token, as an encoder does"),
        ("xlnet", "sees what comes after a token, as an encoder does"),
        ("cpmant", "sees what comes after a token, as an encoder does"),
    ],
)
def test_what_sees_the_future_is_no_causal_model(family: str, said: str, tmp_path: Path) -> None:
    source = save_tiny_family(family, tmp_path / "source")
    with pytest.raises(UserError, match=said):
        require_sound(source)


@pytest.mark.parametrize(("family", "causal"), [("biogpt", True), ("gpt_neox", True), ("roberta", False)])
def test_is_decoder_is_what_the_family_takes_it_for(family: str, causal: bool, tmp_path: Path) -> None:
    tiny_config(family, is_decoder=False).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"is_decoder": False}))
    if causal:
        build_skeleton(tmp_path)
    else:
        with pytest.raises(UserError, match="sees what comes after a token"):
            build_skeleton(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "bart", "is_encoder_decoder": True}, "'bart' is an encoder with a decoder"),
        ({"model_type": "llava"}, "'llava' is a vision-language model"),
        ({"model_type": "distilbert"}, "'distilbert' is a masked language model"),
    ],
)
def test_other_kinds_of_models_are_called_what_they_are(fields: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=said):
        build_skeleton(tmp_path)


def test_the_audit_sees_that_a_later_token_changes_earlier_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing in the configuration says so, the model's own forward does."""
    monkeypatch.setattr("bitladder.checkpoint.skeleton._WITHOUT_MASK", ())
    source = save_tiny_family("cpmant", tmp_path / "source")
    assert any(finding.check == "causal" and finding.severity == "error" for finding in audit(source).findings)


def test_a_model_whose_own_forward_fails_is_told_in_a_line(tmp_path: Path) -> None:
    source = save_tiny_family("reformer", tmp_path / "source")  # its code adds FP32 to 16 bits
    found = audit(source)
    assert [finding.check for finding in found.errors] == ["load"]
    assert found.errors[0].message.startswith("its own forward fails: RuntimeError: ")


def test_a_network_says_what_configurations_call_by_many_names(tmp_path: Path) -> None:
    for family, per_row in (("gemma4_text", True), ("mamba", False)):
        (tmp_path / family).mkdir()
        tiny_config(family).save_pretrained(tmp_path / family)
        skeleton = build_skeleton(tmp_path / family)
        short, long = (cache_bytes(skeleton, tokens) for tokens in (16, 32))
        assert (long > short) == per_row, "a state-space model's state has one size"
        assert min(widest_layer(skeleton)) > 0
    assert {name.rpartition(".")[2] for name in directly_used(skeleton)} == {"dt_proj"}


def test_layers_are_told_apart_by_more_than_their_numbers() -> None:
    assert _without_numbers("layers.3.mlp.w1") == _without_numbers("layers.12.mlp.w1") == "layers.*.mlp.w1"
    assert _without_numbers("0.fc2.1") == "*.fc2.*"


def test_4_bit_layers_that_a_cpu_cannot_pack_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes asserts that outputs are a multiple of 32 where the CPU multiplies BF16."""
    import bitsandbytes

    layers: Any = torch.nn.ModuleList(
        bitsandbytes.nn.Linear4bit(64, outputs, compute_dtype=torch.bfloat16, quant_type="nf4") for outputs in (40, 64)
    ).to("cpu")
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    BNB_4BIT.prepare_layers(layers)
    assert [layer.support_avx512bf16_for_cpu for layer in layers] == [False, True]
    assert layers[0].eval()(torch.ones(3, 64, dtype=torch.bfloat16)).shape == (3, 40)


def test_every_causal_family_is_asked_for() -> None:
    assert len(causal_families()) > 100
    assert {"llama", "qwen2", "mixtral", "mamba"} <= set(causal_families())


@pytest.mark.parametrize(("family", "shows"), [("rwkv", True), ("git", True), ("llama", False)])
def test_families_whose_texts_padding_changes_are_asked_one_by_one(
    family: str, shows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
    source = save_tiny_family(family, tmp_path / "source")
    for rung in ("bf16", "int8"):
        model = load_model(quantize(str(source), rung, tmp_path / rung).directory)
        asked = HuggingFaceModel(model, load_tokenizer(tmp_path / rung), 4)
        texts = [
            Instance("generate_until", {}, (text, {"until": ["."], "max_gen_toks": 2}), 0, ("task", 0, 1))
            for text in ("A", "A ladder has rungs")
        ]
        asked.generate_until(texts, disable_tqdm=True)
        asked.loglikelihood([Instance("loglikelihood", {}, ("A", " B"), 0)], disable_tqdm=True)
        assert (asked.alone, asked.batch_size) == ((ALONE, 1) if shows else (None, 4)), rung


def test_texts_as_a_whole_are_asked_one_by_one_where_what_pads_them_shows(tmp_path: Path) -> None:
    source = save_tiny_family("deepseek_v32", tmp_path / "source")
    model, tokenizer = load_pretrained(source, dtype=torch.float32), load_tokenizer(source)
    texts = [Instance("loglikelihood_rolling", {}, ("A ladder has rungs " * number,), 0) for number in (1, 5)]
    alone, beside = (HuggingFaceModel(model, tokenizer, size) for size in (1, 2))
    scores = [lm.loglikelihood_rolling(texts, disable_tqdm=True) for lm in (alone, beside)]
    assert scores[0] == pytest.approx(scores[1], abs=TOLERANCE)
    assert beside.remarks == (ALONE,)


@pytest.mark.parametrize("fields", [{"vocab_size": 12}, {"n_positions": 16}])
def test_the_trial_of_padding_takes_what_the_model_has_embeddings_for(fields: dict[str, int]) -> None:
    model: Any = AutoModelForCausalLM.from_config(tiny_config("gpt2", **fields))  # type: ignore[no-untyped-call]
    model.eval()
    assert not any(trial(model) for trial in (padding_behind_shows, padding_shows))


def test_a_trial_of_padding_that_fails_is_told_as_that(tmp_path: Path) -> None:
    source = save_tiny_family("prophetnet", tmp_path / "source")  # takes no mask that hides a beginning
    why = _reason_to_ask_alone(padding_shows, load_model(source))
    assert why is not None and why.startswith(f"{UNTRIED} (")


def test_no_rung_is_asked_one_by_one_for_the_outliers_of_what_pads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLM.int8's depend on all rows of a batch, in every family: its baseline is asked in batches too."""
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
    source = save_tiny_family("llama", tmp_path / "source")
    model: Any = load_model(quantize(str(source), "int8").directory)
    model.get_input_embeddings().weight.data[0] = torch.nn.functional.one_hot(torch.tensor(5), 64) * 10.0
    text = torch.arange(9, 12)[None]
    padded = torch.cat([text, torch.zeros_like(text)], 1)

    def moved() -> float:
        with torch.inference_mode():
            return float((model(text).logits - model(padded).logits[:, :3]).abs().max())

    assert moved() > 0
    with _weights_alone_rounded(model):
        assert moved() == 0
    assert moved() > 0, "and is as it was"


def test_a_head_is_tied_by_its_own_tensor(tmp_path: Path) -> None:
    """Zamba's layers share tensors, whether or not its head does."""
    for tied in (True, False):
        folder = tmp_path / str(tied)
        tiny_config("zamba2", tie_word_embeddings=tied).save_pretrained(folder)
        assert has_tied_head(build_skeleton(folder)) == tied


def test_only_what_a_family_keeps_in_fp32_may_be_fp32_beside_bf16(tmp_path: Path) -> None:
    """HY V4 keeps its head in FP32. An embedding in FP32 is another checkpoint than the config says."""
    from safetensors.torch import load_file, save_file

    source = save_tiny_family("hy_v4", tmp_path / "source")
    require_sound(source)
    path = source / "model.safetensors"
    tensors = load_file(path)
    wide = {
        name: tensor.float() if "proj" not in name and "experts" not in name else tensor
        for name, tensor in tensors.items()
    }
    save_file(wide, path, {"format": "pt"})
    with pytest.raises(UserError, match="found rest type F32, declared BF16"):
        require_sound(source)
