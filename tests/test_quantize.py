"""Checkpoints: what is written, that it comes back bit for bit, that it is made once, and what is refused."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bitladder import quantization
from bitladder.checkpoint import loading
from bitladder.checkpoint.loading import load_model, load_tokenizer, predicted_load_bytes
from bitladder.checkpoint.manifest import MANIFEST_NAME, read_manifest, verify_files
from bitladder.checkpoint.tensors import content_hash, read_tensors
from bitladder.errors import BrokenFileError, DoesNotFitError, UnknownNameError, UserError
from bitladder.methods import RUNGS
from bitladder.models.source import resolve_model
from bitladder.quantization import expected_bytes, expected_recipe_hash, quantize, require_space
from bitladder.records import LoadPolicy
from conftest import MakeTinyLlama
from reloading import forward, made_models, reloaded_logits


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITLADDER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def saves() -> Iterator[list[Any]]:
    with made_models() as models:
        yield models


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


@pytest.mark.slow
def test_every_rung_comes_back_bit_for_bit(tiny_llama: Path, tmp_path: Path, own_cache: Path, saves: list[Any]) -> None:
    import torch

    checkpoints = [quantize(str(tiny_llama), rung) for rung in RUNGS]
    before = [forward(model) for model in saves]
    after = reloaded_logits(checkpoints, tmp_path / "reloaded")
    for rung, saved, reloaded in zip(RUNGS, before, after, strict=True):
        assert saved.dtype == reloaded.dtype
        assert torch.equal(saved, reloaded), rung
    by_rung = dict(zip(RUNGS, before, strict=True))
    for one, other in (("bf16", "fp16"), ("bf16", "int8"), ("fp4", "nf4"), ("nf4", "nf4-dq")):
        assert not torch.equal(by_rung[one].float(), by_rung[other].float()), f"{one} and {other} answer the same"
    assert len({made.manifest.content_hash for made in checkpoints}) == len(RUNGS)


@pytest.mark.smollm2
@pytest.mark.parametrize(
    ("rung", "stored_bytes"),
    [
        ("fp32", 538_090_408),
        ("bf16", 269_060_552),
        ("fp16", 269_060_280),
        ("int8", 163_557_634),
        ("int8-t0", 163_557_634),
        ("fp4", 116_548_186),
        ("nf4", 116_548_186),
        ("nf4-dq", 111_879_761),
    ],
)
def test_expected_bytes_of_smollm2(smollm2: Path, rung: str, stored_bytes: int) -> None:
    """Against the files that transformers 5.24 and bitsandbytes 0.50 wrote."""
    assert expected_bytes(smollm2, rung) == pytest.approx(stored_bytes, rel=1e-3)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("tied", [True, False])
def test_expected_bytes_are_those_written(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path, rung: str, tied: bool
) -> None:
    source = make_tiny_llama(tmp_path / "model", hidden_size=256, intermediate_size=512, tie_word_embeddings=tied)
    made = quantize(str(source), rung)
    assert sum(made.manifest.bytes_by_dtype.values()) == sum(
        tensor.size_bytes for tensor in read_tensors(made.directory).values()
    )
    stored_bytes = made.manifest.files["model.safetensors"].size_bytes
    assert expected_bytes(source, rung) == pytest.approx(stored_bytes, rel=1e-2)
    assert expected_bytes(made.directory, RUNGS[rung].scheme) == expected_bytes(source, rung)
    assert ("lm_head.weight" in read_tensors(made.directory)) is not tied
    assert made.manifest.parameters == sum(tensor.size_bytes // 2 for tensor in read_tensors(source).values())


def test_fp4_is_load_in_4bit() -> None:
    from transformers import BitsAndBytesConfig

    ours = RUNGS["fp4"].method.quantization_config(RUNGS["fp4"].scheme)
    assert ours is not None
    assert ours.to_dict() == BitsAndBytesConfig(load_in_4bit=True).to_dict()  # type: ignore[no-untyped-call]


def test_what_is_written(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    made = quantize(str(tiny_llama), "nf4", tmp_path / "out")
    assert made.directory == tmp_path / "out"
    assert read_manifest(made.directory) == made.manifest
    assert verify_files(made.directory, made.manifest) == []
    assert made.manifest.content_hash == content_hash(made.directory)
    assert made.manifest.source.model == str(tiny_llama)
    assert made.manifest.quantizing_device == "cpu"
    assert made.manifest.scheme == RUNGS["nf4"].scheme
    names = {path.name for path in made.directory.iterdir()}
    assert names == {*made.manifest.files, MANIFEST_NAME}
    assert {"model.safetensors", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in made.directory.iterdir()} == {0o666 & ~umask}
    tokenizer = AutoTokenizer.from_pretrained(made.directory)
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"
    assert GenerationConfig.from_pretrained(made.directory).pad_token_id == tokenizer.eos_token_id
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|user|>hi<|end|>"


def test_sharded_source_to_shards(
    make_tiny_llama: MakeTinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "MAX_SHARD_SIZE", "60KB")
    source = make_tiny_llama(tmp_path / "model", max_shard_size="40KB", initializer_range=0.3)
    made = quantize(str(source), "bf16", tmp_path / "out")
    assert sum(name.endswith(".safetensors") for name in made.manifest.files) > 1
    assert content_hash(made.directory) == content_hash(source)
    load_model(made.directory)


class TestCache:
    def test_made_once_and_hard_linked(
        self, tiny_llama: Path, tmp_path: Path, own_cache: Path, saves: list[Any]
    ) -> None:
        first = quantize(str(tiny_llama), "bf16", tmp_path / "a")
        second = quantize(str(tiny_llama), "bf16", tmp_path / "b")
        third = quantize(str(tiny_llama), "bf16", tmp_path / "b")
        assert len(saves) == 1
        assert first.manifest == second.manifest == third.manifest
        assert (first.directory / "model.safetensors").samefile(second.directory / "model.safetensors")
        assert (own_cache / first.manifest.recipe_hash[:32]).is_dir()

    def test_recipe(self, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = quantize(str(tiny_llama), "bf16")
        assert made.manifest.recipe_hash == expected_recipe_hash(made.manifest.source, "bf16")
        copy = shutil.copytree(tiny_llama, tmp_path / "copy")
        elsewhere = quantize(str(copy), "bf16")
        assert elsewhere.directory == made.directory
        assert elsewhere.manifest.source.model == str(copy)
        hashes = {expected_recipe_hash(made.manifest.source, rung) for rung in RUNGS}
        assert len(hashes) == len(RUNGS)
        monkeypatch.setattr(quantization, "library_versions", lambda _: {"python": "3", "torch": "9"})
        assert expected_recipe_hash(made.manifest.source, "bf16") not in hashes

    @pytest.mark.parametrize("place", ["out", "cache"])
    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json"])
    def test_damage_is_seen_and_mended(
        self,
        tiny_llama: Path,
        tmp_path: Path,
        own_cache: Path,
        saves: list[Any],
        caplog: pytest.LogCaptureFixture,
        place: str,
        name: str,
    ) -> None:
        """Weights are hard links: who writes into --out writes into the cache. Other files are each place's own."""
        made = quantize(str(tiny_llama), "bf16", tmp_path / "out")
        entry = own_cache / made.manifest.recipe_hash[:32]
        path = (made.directory if place == "out" else entry) / name
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
        again = quantize(str(tiny_llama), "bf16", tmp_path / "out")
        shared = name == "model.safetensors"
        assert len(saves) == 1 + shared
        assert again.manifest.files == made.manifest.files
        assert verify_files(again.directory, made.manifest) == []
        if shared or place == "out":
            assert verify_files(entry, made.manifest) == []
            assert f"{name}: SHA-256" in caplog.text

    def test_missing_cache_manifest(self, tiny_llama: Path, own_cache: Path, saves: list[Any]) -> None:
        made = quantize(str(tiny_llama), "bf16")
        (made.directory / MANIFEST_NAME).unlink()
        assert quantize(str(tiny_llama), "bf16").manifest == made.manifest
        assert len(saves) == 2

    @pytest.mark.slow
    def test_killed_while_writing(
        self, tiny_llama: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, saves: list[Any]
    ) -> None:
        """SIGKILL leaves a temporary folder and no entry; the next run removes it."""
        code = (
            "import os, signal\n"
            "import bitladder.quantization as module\n"
            "module.content_hash = lambda directory: os.kill(os.getpid(), signal.SIGKILL)\n"
            f"module.quantize({str(tiny_llama)!r}, 'bf16')"
        )
        killed = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100, check=False)
        assert killed.returncode == -9, killed.stderr
        assert len(list(own_cache.glob(".*.tmp"))) == 1
        made = quantize(str(tiny_llama), "bf16")
        assert list(own_cache.glob(".*.tmp")) == []
        assert verify_files(made.directory, made.manifest) == []


class TestOut:
    def test_others_files_are_left_alone(self, tiny_llama: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(UserError, match="holds other files, and nothing is overwritten"):
            quantize(str(tiny_llama), "bf16", tmp_path)
        with pytest.raises(UserError, match="a file, expected a folder"):
            quantize(str(tiny_llama), "bf16", tmp_path / "thesis.txt")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_another_checkpoint(self, tiny_llama: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        quantize(str(tiny_llama), "bf16", out)
        with pytest.raises(UserError, match=r"holds another checkpoint \(bf16 of "):
            quantize(str(tiny_llama), "fp16", out)
        assert quantize(str(tiny_llama), "fp16", out, replace=True).manifest.rung == "fp16"
        manifest = read_manifest(out)
        assert manifest is not None
        assert manifest.rung == "fp16"

    def test_no_permission(self, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
        with pytest.raises(UserError, match="no permission to write"):
            quantize(str(tiny_llama), "bf16", tmp_path / "a" / "b")

    def test_empty_folder(self, tiny_llama: Path, tmp_path: Path) -> None:
        quantize(str(tiny_llama), "bf16", tmp_path)
        assert (tmp_path / MANIFEST_NAME).is_file()


class TestRefused:
    def test_unknown_rung(self, tiny_llama: Path) -> None:
        with pytest.raises(UnknownNameError, match="nearest: nf4"):
            quantize(str(tiny_llama), "nf5")

    def test_missing_package(self, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match="needs the package bitsandbytes"):
            quantize(str(tiny_llama), "nf4")

    def test_quantized_source(self, tiny_llama: Path) -> None:
        made = quantize(str(tiny_llama), "nf4")
        with pytest.raises(UserError, match=r"already quantized \(bitsandbytes\)"):
            quantize(str(made.directory), "int8")

    def test_altered_checkpoint_as_source(self, tiny_llama: Path, tmp_path: Path) -> None:
        quantize(str(tiny_llama), "bf16", tmp_path / "out")
        copy = shutil.copytree(tmp_path / "out", tmp_path / "copy")
        path = copy / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")
        with pytest.raises(BrokenFileError, match=r"copy/model\.safetensors: altered"):
            quantize(str(copy), "nf4")

    def test_weights_of_another_model(self, tiny_llama: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(tiny_llama, tmp_path / "copy")
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with pytest.raises(BrokenFileError, match="9 tensors are missing"):
            quantize(str(copy), "bf16")
        (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 192}))
        with pytest.raises(BrokenFileError, match="6 tensors have another shape"):
            quantize(str(copy), "bf16")

    def test_full_disk(self, tiny_llama: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, saves: Any) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(UserError, match=r"0\.0 KiB free, 4\d\d\.\d KiB needed"):
            quantize(str(tiny_llama), "fp32")
        assert saves == []

    def test_too_little_memory(self, tiny_llama: Path, own_cache: Path, monkeypatch: Any, saves: list[Any]) -> None:
        made = quantize(str(tiny_llama), "bf16")
        assert predicted_load_bytes(made.directory) == sum(made.manifest.bytes_by_dtype.values())
        monkeypatch.setattr(loading, "available_bytes", lambda device: 200_000)
        with pytest.raises(DoesNotFitError, match=r"fp32 of .*needs about .* on cpu, 195\.3 KiB are free"):
            quantize(str(tiny_llama), "fp32")
        with pytest.raises(DoesNotFitError):
            load_model(made.directory)
        assert len(saves) == 1

    @pytest.mark.parametrize("device", ["cuda:99", "tpu", "cuda:x"])
    def test_unknown_device(self, tiny_llama: Path, device: str) -> None:
        with pytest.raises(UserError, match=f"device '{device}'"):
            quantize(str(tiny_llama), "nf4", device=device)

    def test_architectures(self, tiny_llama: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(tiny_llama, tmp_path / "copy")
        for model_type, message in (
            ("bert-of-mars", "unknown architecture in .*config.json 'bert-of-mars'; .*upgrade transformers"),
            ("t5", "is an encoder with a decoder; expected a causal language"),
        ):
            (copy / "config.json").write_text(json.dumps({"model_type": model_type}))
            with pytest.raises(UserError, match=message):
                quantize(str(copy), "bf16")

    def test_no_tokenizer(self, tiny_llama: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(tiny_llama, tmp_path / "copy")
        for path in copy.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(UserError, match="no tokenizer") as error:
            quantize(str(copy), "bf16")
        assert "\n" not in str(error.value)


def test_space_is_wanted_for_all_rungs_at_once_and_none_for_links(
    tiny_llama: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = resolve_model(str(tiny_llama))
    quantize(str(tiny_llama), "bf16")
    sizes = {rung: expected_bytes(tiny_llama, rung) for rung in ("bf16", "fp16", "nf4")}
    free = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, free))

    def require(*rungs: str) -> None:
        require_space(model, rungs, tmp_path / "out", LoadPolicy())

    require("bf16")
    with pytest.raises(UserError, match=r"needed for fp16, nf4; free some space, or put the cache elsewhere"):
        require(*sizes)
    free = sizes["fp16"] + sizes["nf4"]
    require(*sizes)
    monkeypatch.setattr("bitladder.quantization.existing_part", lambda path: Elsewhere(path.name))
    with pytest.raises(UserError, match=r"out on another disk") as refused:
        require(*sizes)
    assert "needed for bf16, fp16, nf4" in str(refused.value)


@dataclass
class Elsewhere:
    """A path on a disk of its own."""

    st_dev: str

    def stat(self) -> "Elsewhere":
        return self


def test_bitsandbytes_is_quiet_from_its_import_on(tiny_llama: Path) -> None:
    logging.getLogger("bitsandbytes").setLevel(logging.NOTSET)
    expected_bytes(tiny_llama, "nf4")
    assert not logging.getLogger("bitsandbytes").isEnabledFor(logging.WARNING)


def test_int8_is_quiet(tiny_llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = quantize(str(tiny_llama), "int8")
    with caplog.at_level(logging.INFO):
        forward(load_model(made.directory))
    assert "cast" not in caplog.text


def test_odd_generation_config_is_kept(tiny_llama: Path, tmp_path: Path) -> None:
    """Published models set a temperature without sampling, which transformers refuses to save."""
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    (copy / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "do_sample": False}))
    made = quantize(str(copy), "bf16")
    saved = json.loads((made.directory / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"]) == (0.6, 0.9)


MODELING = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_remote_code_only_when_asked(tiny_llama: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_llama, tmp_path / "own_model")
    (copy / "modeling_own.py").write_text(MODELING)
    config = json.loads((copy / "config.json").read_text())
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (copy / "config.json").write_text(
        json.dumps(config | {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": code})
    )
    with pytest.raises(UserError, match="--trust-remote-code"):
        quantize(str(copy), "nf4")
    made = quantize(str(copy), "nf4", tmp_path / "out", trust_remote_code=True)
    assert made.manifest.architecture == "OwnForCausalLM"
    shutil.rmtree(copy)
    with pytest.raises(UserError, match="--trust-remote-code"):
        load_model(made.directory)
    forward(load_model(made.directory, LoadPolicy(trust_remote_code=True)))
    load_tokenizer(made.directory)


@pytest.fixture
def run_command(tiny_llama: Path) -> Callable[..., Any]:
    import typer

    from bitladder.cli.checkpoints import quantize_command

    app = typer.Typer()
    app.command()(quantize_command)
    return lambda *arguments: CliRunner().invoke(app, [str(tiny_llama), *map(str, arguments)])


def test_command(run_command: Callable[..., Any], tmp_path: Path) -> None:
    shown = run_command("--rung", "nf4", "--out", tmp_path / "out")
    assert shown.exit_code == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.content_hash in shown.stdout
    assert f"{manifest.files['model.safetensors'].size_bytes:,} bytes" in shown.stdout
    as_json = run_command("--rung", "nf4", "--out", tmp_path / "out", "--json")
    assert json.loads(as_json.stdout) == json.loads((tmp_path / "out" / MANIFEST_NAME).read_text())
