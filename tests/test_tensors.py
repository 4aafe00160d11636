"""Headers, hashes and the refusal of what can't be trusted."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitladder.checkpoint.tensors import TensorInfo, bytes_by_dtype, content_hash, read_tensors
from bitladder.errors import BrokenFileError, UserError
from conftest import MakeTinyLlama


def write_checkpoint(directory: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> Path:
    """A checkpoint of one hand-made SafeTensors file and an empty config."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return directory


def test_tensors_of_a_file(tmp_path: Path) -> None:
    directory = write_checkpoint(
        tmp_path, {"b": ("F32", [2], b"12345678"), "a": ("BF16", [1, 3], b"abcdef"), "s": ("U8", [], b"!")}
    )
    tensors = read_tensors(directory)
    start = (directory / "model.safetensors").stat().st_size - 15
    assert tensors["a"] == TensorInfo("BF16", (1, 3), "model.safetensors", start + 8, 6)
    assert tensors["s"].shape == ()
    assert bytes_by_dtype(tensors) == {"F32": 8, "BF16": 6, "U8": 1}


def test_agrees_with_safetensors_and_counts_all_shards(tmp_path: Path, make_tiny_llama: MakeTinyLlama) -> None:
    from safetensors import safe_open

    directory = make_tiny_llama(tmp_path, max_shard_size="100KB", tie_word_embeddings=False)
    shards = sorted(directory.glob("model-*.safetensors"))
    assert len(shards) > 1
    expected = {}
    for shard in shards:
        with safe_open(shard, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                view = file.get_slice(name)
                expected[name] = (view.get_dtype(), tuple(view.get_shape()), shard.name)
    found = {name: (tensor.dtype, tensor.shape, tensor.file) for name, tensor in read_tensors(directory).items()}
    assert found == expected


def test_content_hash_ignores_shards_and_order(tmp_path: Path, make_tiny_llama: MakeTinyLlama) -> None:
    one = make_tiny_llama(tmp_path / "one")
    many = make_tiny_llama(tmp_path / "many", max_shard_size="50KB")
    assert content_hash(one) == content_hash(many)
    tensors: dict[str, tuple[str, list[int], bytes]] = {"a": ("U8", [2], b"xy"), "b": ("U8", [1], b"z")}
    first = write_checkpoint(tmp_path / "first", tensors)
    second = write_checkpoint(tmp_path / "second", dict(reversed(tensors.items())))
    assert content_hash(first) == content_hash(second)


@pytest.mark.parametrize(
    "changed",
    [
        {"a": ("U8", [2], b"xx")},
        {"b": ("U8", [2], b"xy")},
        {"a": ("I8", [2], b"xy")},
        {"a": ("U8", [1, 2], b"xy")},
    ],
    ids=["bytes", "name", "dtype", "shape"],
)
def test_content_hash_sees(tmp_path: Path, changed: dict[str, tuple[str, list[int], bytes]]) -> None:
    before = write_checkpoint(tmp_path / "before", {"a": ("U8", [2], b"xy")})
    assert content_hash(before) != content_hash(write_checkpoint(tmp_path / "after", changed))


def test_content_hash_sees_quantization_settings(tmp_path: Path) -> None:
    """int8 and int8-t0 hold equal tensors, and must not share their measurements."""
    directory = write_checkpoint(tmp_path, {"a": ("U8", [2], b"xy")})
    hashes = {content_hash(directory)}
    for threshold in (6.0, 0.0):
        (directory / "config.json").write_text(json.dumps({"quantization_config": {"llm_int8_threshold": threshold}}))
        hashes.add(content_hash(directory))
    assert len(hashes) == 3


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _html(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html>not found</html>" * 20)


def _garble_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"dtype"', b'"dtipe"', 1))


def _other_dtype(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F64"', 1))


def _other_offset(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"[0, 8]", b"[1, 9]", 1))


@pytest.mark.parametrize(
    "damage", [_truncate, _append, _cut_header, _empty, _html, _garble_header, _other_dtype, _other_offset]
)
def test_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    directory = write_checkpoint(tmp_path, {"a": ("F32", [2], b"12345678"), "b": ("U8", [1], b"z")})
    damage(directory / "model.safetensors")
    with pytest.raises(BrokenFileError, match=r"model\.safetensors: .*truncated or altered") as error:
        read_tensors(directory)
    assert "\n" not in str(error.value)


def test_missing_shard_and_bad_index(tmp_path: Path, make_tiny_llama: MakeTinyLlama) -> None:
    directory = make_tiny_llama(tmp_path, max_shard_size="50KB")
    shard = min(directory.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(BrokenFileError, match=shard.name):
        read_tensors(directory)
    (directory / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(BrokenFileError, match=r"model\.safetensors\.index\.json"):
        read_tensors(directory)


def test_no_weights_and_pickle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights; expected model\.safetensors"):
        read_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(UserError, match=r"pickle weights \(pytorch_model\.bin\).*refused"):
        read_tensors(tmp_path)


def _entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [2], "data_offsets": [0, 2], **changes}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"a": _entry(dtype="X9")}, "a has the type 'X9', none of SafeTensors'"),
        ({"a": _entry(dtype=["U8"])}, "its header says .* of a, not type, shape and place"),
        ({"a": _entry(data_offsets=[-2, 0])}, "its header says"),
        ({"a": _entry(data_offsets=[0, 1 << 80])}, "its header says"),
        ({"a": _entry(data_offsets=[0, 2, 4])}, "its header says"),
        ({"a": _entry(shape=[2.0])}, "its header says"),
        ({"a": _entry(shape=[True])}, "its header says"),
        ({"a": _entry(shape=[1 << 70])}, "its header says"),
        ({"a": _entry(shape=[1 << 62])}, "a has 2 bytes, not those of U8"),
        ({"a": _entry(data_offsets=[1, 3])}, "a starts at byte"),
        ({"a": _entry(), "b": _entry()}, "b starts at byte"),
        ({"a": None}, "its header says None of a"),
        ({"a": _entry(), "__metadata__": {"format": 1}}, "its header's __metadata__ isn't text by name"),
        ([], "its header: a list, expected a JSON object"),
        ({}, "hold no tensor|its header says"),
    ],
)
def test_headers_of_others_are_one_line(header: Any, told: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    data = b"" if header == {} else b"xy"
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    with pytest.raises(BrokenFileError, match=told) as raised:
        read_tensors(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_tensor_that_two_shards_hold_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_checkpoint(tmp_path / name, {"a": ("U8", [2], b"xy")})
        (tmp_path / name / "model.safetensors").rename(tmp_path / f"{name}.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BrokenFileError, match=r"two\.safetensors: a is in one\.safetensors, too"):
        read_tensors(tmp_path)
