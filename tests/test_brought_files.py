"""Files that a user brings: each that can't be used is one line before any work, and what another library made of a
checkpoint of ours is not held to our manifest."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit_checkpoints import UP, CopyRung, edit_config, edit_weights
from bitladder.auditing import audit, require_sound
from bitladder.checkpoint.loading import load_model, require_chat_template, require_tokenizer
from bitladder.checkpoint.scheme import own_manifest
from bitladder.errors import BrokenFileError, UserError
from bitladder.models.source import resolve_model
from bitladder.quantization import quantize

pytest_plugins = ("audit_fixtures",)

Edit = Callable[[Path], object]


def write(name: str, content: str | bytes) -> Edit:
    data = content.encode() if isinstance(content, str) else content
    return lambda directory: (directory / name).write_bytes(data)


def mark(name: str) -> Edit:
    return lambda directory: (directory / name).write_bytes(b"\xef\xbb\xbf" + (directory / name).read_bytes())


def nest(name: str, depth: int) -> Edit:
    def edit(directory: Path) -> None:
        text = (directory / name).read_text().rstrip()
        (directory / name).write_text(f'{text[:-1]}, "deep": {"[" * depth}{"]" * depth}}}')

    return edit


def set_fields(**fields: Any) -> Edit:
    return lambda directory: edit_config(directory, **fields)


BROKEN: dict[str, tuple[Edit, str]] = {
    "config: mark": (mark("config.json"), "config.json: begins with a byte-order mark"),
    "config: 1,000 deep": (nest("config.json", 1_000), "config.json: not JSON (nested too deep"),
    "config: 100,000 deep": (nest("config.json", 100_000), "config.json: not JSON (nested too deep"),
    "config: type": (set_fields(dtype="floaty"), "floaty"),
    "config: type of integers": (set_fields(dtype="int8"), "dtype: found 'torch.int8', expected one of bfloat16"),
    "config: type by number": (set_fields(dtype=5), "dtype: found '5', expected one of bfloat16, float16"),
    "config: type of 8 bits": (set_fields(dtype="float8_e4m3fn"), "dtype: found 'torch.float8_e4m3fn', expected one"),
    "config: a class": (set_fields(dtype="Tensor"), "expected one of bfloat16, float16, float32, float64"),
    "config: old type": (set_fields(dtype=None, torch_dtype=7), "dtype: found '7', expected one of bfloat16"),
    "config: padding": (set_fields(pad_token_id=512), "no model can be built from it (AssertionError: Padding_idx"),
    "config: text for a number": (set_fields(hidden_size="many"), "config.json: no model can be built from it"),
    "config: other weights": (set_fields(transformers_weights="other.safetensors"), "found 'other.safetensors', which"),
    "config: weights above": (set_fields(transformers_weights="../x.safetensors"), "transformers_weights: found '../x"),
    "config: weights by number": (set_fields(transformers_weights=5), "transformers_weights: found '5', which leads"),
    "config: nested": (set_fields(text_config={"transformers_weights": "a"}), "transformers_weights: found 'a', which"),
    "config: another": (set_fields(configuration_files=["config.4.0.0.json"]), "configuration_files: found"),
    "config: fused": (set_fields(fusion_config={"patch_embeddings": True}), "fusion_config: found"),
    "weights of ranks": (write("shard-00001-model-00001-of-00001.safetensors", b""), "of a distributed training, wh"),
    "generation: cut off": (write("generation_config.json", '{"a": '), "generation_config.json: not JSON (EOF"),
    "generation: list": (write("generation_config.json", "[]"), "generation_config.json: a list, expected a JSON obj"),
    "generation: value": (
        write("generation_config.json", '{"watermarking_config": 3}'),
        "generation_config.json: can't be used",
    ),
    **{
        f"generation: {name} {value}": (
            write("generation_config.json", json.dumps({name: value})),
            f"generation_config.json: {name}: found {value!r}, ",
        )
        for name, value in (
            ("eos_token_id", "x"),
            ("eos_token_id", -7),
            ("temperature", [1]),
            ("stop_strings", 7),
            ("num_beams", 0),
            ("max_new_tokens", "x"),
            ("do_sample", "no"),
            ("top_k", 1.5),
        )
    },
    "quantization: list": (set_fields(quantization_config=["a"]), "quantization_config is \"['a']\", expected an obj"),
    "quantization: no method": (
        set_fields(quantization_config={"bits": 4}),
        "quantization_config names no quant_method",
    ),
    "quantization: method": (
        set_fields(quantization_config={"quant_method": ["a"]}),
        "quantization_config has quant_method: found ['a'], expected text",
    ),
    "quantization: threshold": (
        set_fields(quantization_config={"load_in_8bit": True, "llm_int8_threshold": "six"}),
        "quantization_config has llm_int8_threshold: found 'six', expected a number",
    ),
}


@pytest.mark.parametrize(("edit", "told"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_line_before_any_work(edit: Edit, told: str, tiny_copy: Path) -> None:
    edit(tiny_copy)
    out = tiny_copy.parent / "out"
    for use in (lambda: audit(tiny_copy, load=False), lambda: quantize(str(tiny_copy), "bf16", out)):
        with pytest.raises(UserError) as raised:
            use()
        assert told in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("attn_implementation", "flash_attention_2"), ("_attn_implementation", "evil/kernel")],
)
def test_attention_that_this_machine_lacks_is_one_line(field: str, value: str, tiny_copy: Path) -> None:
    set_fields(**{field: value})(tiny_copy)
    told = [finding.message for finding in audit(tiny_copy).findings if finding.check == "load"]
    with pytest.raises(UserError) as raised:
        quantize(str(tiny_copy), "bf16", tiny_copy.parent / "out")
    assert told and "\n" not in told[0] + str(raised.value)


def test_a_tied_head_with_two_tensors_is_found_before_any_work(tiny_copy: Path) -> None:
    def add_head(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    edit_weights(tiny_copy, add_head)
    with pytest.raises(BrokenFileError, match="head"):
        quantize(str(tiny_copy), "bf16", tiny_copy.parent / "out")
    assert not (tiny_copy.parent / "out").exists()


def test_a_quantization_method_that_is_unknown_fails_the_audit(tiny_copy: Path) -> None:
    edit_config(tiny_copy, quantization_config={"quant_method": "mine"})
    message = "config.json says that it is quantized by 'mine', which the installed transformers doesn't know"
    assert message in [one.message for one in audit(tiny_copy).errors]


def test_an_adapter_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"an adapter of some/model, expected a whole model: .*merge_and_unload"):
        resolve_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("no JSON")
    with pytest.raises(UserError, match="an adapter, expected a whole model"):
        resolve_model(str(tmp_path))


def test_an_adapter_beside_a_model_is_refused_with_peft_and_without(tiny_copy: Path) -> None:
    (tiny_copy / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for use in (lambda: resolve_model(str(tiny_copy)), lambda: audit(tiny_copy)):
        with pytest.raises(
            UserError, match=r"adapter_config\.json beside a model, which transformers loads where peft"
        ):
            use()


@pytest.mark.parametrize("storage", ["bfloat16", "float16", "float32"])
def test_four_bit_codes_may_be_packed_in_any_type(storage: str, tiny_llama: Path, tmp_path: Path) -> None:
    """The layout that FSDP needs: the same codes, called BF16; as numbers they are anything, NaN among them."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    def save(name: str, dtype: torch.dtype) -> Path:
        settings = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=dtype,
        )
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, quantization_config=settings, dtype=torch.bfloat16)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    packed, plain = save("packed", getattr(torch, storage)), save("plain", torch.uint8)
    found = audit(packed)
    assert found.errors == ()
    assert found.found == audit(plain, load=False).found
    tokens = torch.arange(1, 33)[None]
    with torch.no_grad():
        logits = [load_model(place)(tokens).logits for place in (packed, plain)]
    assert torch.equal(*logits)


def quantize_again(source: Path, directory: Path) -> Path:
    """As another quantizer does: its own weights and settings, and every other file of the source."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype=torch.bfloat16)
    shutil.copytree(source, directory)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory)
    return directory


def test_a_checkpoint_made_of_ours_is_not_held_to_our_manifest(copy_rung: CopyRung, tmp_path: Path) -> None:
    ours = copy_rung("bf16")
    directory = quantize_again(ours, tmp_path / "theirs")
    found = audit(directory)
    assert found.errors == ()
    assert found.declared_by == "config"
    [said] = [one for one in found.findings if one.check == "manifest"]
    assert said.severity == "warning"
    assert said.message.startswith("not a checkpoint of bitladder's: bitladder.json is that of bf16 of ")
    assert own_manifest(directory) is None
    assert own_manifest(ours) is not None
    resolve_model(str(directory))


@pytest.mark.parametrize(
    "damage",
    [
        set_fields(quantization_config=None),
        set_fields(quantization_config={"load_in_8bit": True}),
        set_fields(dtype="float16"),
        lambda directory: (directory / "config.json").write_text(
            (directory / "config.json").read_text().replace('"nf4"', '"fp4"')
        ),
    ],
    ids=["settings deleted", "other settings", "other type", "other codebook"],
)
def test_a_damaged_checkpoint_of_ours_stays_ours(damage: Edit, copy_rung: CopyRung) -> None:
    directory = copy_rung("nf4")
    damage(directory)
    assert own_manifest(directory) is not None
    assert "manifest" in [one.check for one in audit(directory, load=False).errors]


def edit_tokenizer(directory: Path, **changes: Any) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_token(directory: Path, number: int) -> None:
    path = directory / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["added_tokens"].append({**rules["added_tokens"][0], "id": number, "content": "<image>"})
    path.write_text(json.dumps(rules))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tiny_copy: Path) -> None:
    edit_config(tiny_copy, vocab_size=300)
    with pytest.raises(UserError, match=r"token ids that the model has no embedding for: '.*' is 300, vocab_size 300"):
        require_tokenizer(tiny_copy)


def test_a_token_that_only_its_own_text_gives_may_lack_a_row(tiny_copy: Path) -> None:
    """Gemma 3 of texts alone has one for images, beyond its embedding."""
    add_token(tiny_copy, 391)
    edit_config(tiny_copy, vocab_size=391)
    require_tokenizer(tiny_copy)
    (tiny_copy / "chat_template.jinja").write_text("<image>{{ messages }}")
    with pytest.raises(UserError, match="'<image>' is 391, vocab_size 391"):
        require_tokenizer(tiny_copy)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for", "its chat template can't be used (TemplateSyntaxError: "),
        ("{{ messages[7].role.x }}", "its chat template can't be used (UndefinedError: "),
        ("", "its tokenizer has no chat template; leave --chat-template out"),
    ],
)
def test_a_chat_template_that_fails_is_told_before_any_work(template: str, told: str, tiny_copy: Path) -> None:
    require_chat_template(tiny_copy)
    (tiny_copy / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError) as raised:
        require_chat_template(tiny_copy)
    assert told in str(raised.value)


def test_a_tokenizer_without_an_end_is_refused_before_any_work(tiny_copy: Path) -> None:
    edit_tokenizer(tiny_copy, eos_token=None, pad_token="<|start|>")
    with pytest.raises(UserError, match="its tokenizer has no end-of-sequence token; give it one, as eos_token"):
        quantize(str(tiny_copy), "nf4", tiny_copy.parent / "out")
    assert not (tiny_copy.parent / "out").exists()


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ({"metadata": {}, "weight_map": {"a": 1}}, "a is in 1, expected the name of a SafeTensors file"),
        ({"metadata": {}, "weight_map": {"a": "../x.safetensors"}}, "a is in '../x.safetensors', expected the name"),
        ({"metadata": {}, "weight_map": [1]}, "no weight_map in it"),
        ({"weight_map": {"a": "model-1.safetensors"}}, "no metadata in it"),
    ],
)
def test_an_index_names_files_beside_it(index: Any, told: str, tiny_copy: Path) -> None:
    (tiny_copy / "model.safetensors").rename(tiny_copy / "model-1.safetensors")
    (tiny_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenFileError, match=told):
        require_sound(tiny_copy)


PACKED = f"{UP}.weight"
STATE = f"{PACKED}.quant_state.bitsandbytes__nf4"


def to_tensor(content: bytes) -> Any:
    import torch

    return torch.tensor(list(content), dtype=torch.uint8)


def set_state(**changes: Any) -> Callable[[dict[str, Any]], object]:
    def edit(tensors: dict[str, Any]) -> None:
        state = json.loads(bytes(tensors[STATE].tolist()))
        tensors[STATE] = to_tensor(json.dumps({**state, **changes}).encode())

    return edit


UNDECODABLE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no JSON": (lambda tensors: tensors.update({STATE: to_tensor(b"[" * 1_000)}), "its quantization state: not JSON"),
    "type": (set_state(dtype="floaty"), "its quantization state has dtype: "),
    "block": (set_state(blocksize=0), "its quantization state has blocksize: found 0, expected 1 or more"),
    "other block": (set_state(blocksize=128), "its absmax is F32 [128], expected F32 [64]"),
    "shape": (set_state(shape=[1, 2]), "4,096 bytes of codes, expected those of [1, 2]"),
    "codebook": (set_state(quant_type="fp4"), "its quantization state is of 'fp4'"),
    "scales": (
        lambda tensors: tensors.update({f"{PACKED}.absmax": tensors[f"{PACKED}.absmax"][:3]}),
        "absmax is F32 [3]",
    ),
    "map": (lambda tensors: tensors.pop(f"{PACKED}.quant_map"), "it has no quant_map"),
    "state": (lambda tensors: tensors.pop(STATE), "it has 0 quantization states"),
}


@pytest.mark.parametrize(("edit", "told"), UNDECODABLE.values(), ids=UNDECODABLE)
def test_what_decodes_a_weight_has_to_fit_it(
    edit: Callable[[dict[str, Any]], object], told: str, copy_rung: CopyRung
) -> None:
    directory = copy_rung("nf4")
    (directory / "bitladder.json").unlink()
    edit_weights(directory, edit)
    [found] = [one for one in audit(directory).errors if one.check == "decoding"]
    assert found.message.startswith(f"{PACKED} can't be decoded: ")
    assert told in found.message


def test_scales_of_int8_have_to_fit(copy_rung: CopyRung) -> None:
    directory = copy_rung("int8")
    (directory / "bitladder.json").unlink()
    edit_weights(directory, lambda tensors: tensors.update({f"{UP}.SCB": tensors[f"{UP}.SCB"][:3].clone()}))
    told = f"{UP}.weight can't be decoded: its SCB is F32 [3], expected F32 [128]"
    assert told in [one.message for one in audit(directory).errors]


def test_what_bitsandbytes_writes_can_be_decoded(made_rungs: CopyRung) -> None:
    for rung in ("int8", "fp4", "nf4", "nf4-dq"):
        assert audit(made_rungs(rung), load=False).errors == ()
