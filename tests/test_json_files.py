"""JSON that can't be read is one line that names the file, whatever is wrong with it."""

from pathlib import Path

import pytest

from bitladder.errors import BrokenFileError
from bitladder.files import parse_json, parse_json_object, read_json_object
from bitladder.records import Manifest, parse_record

BROKEN: dict[str, str | bytes] = {
    "empty": b" \n",
    "cut off": b'{"a": [1, 2',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-8 mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "a thousand deep": b"[" * 1_000 + b"]" * 1_000,
    "a hundred thousand deep": b'{"a":' * 100_000,
    "lone surrogate": b'{"a": "\\ud800"}',
    "lone surrogate in text": '{"a": "\ud800"}',
    "a number of 5,000 digits": b"9" * 5_000,
    "more behind it": b"{}{}",
    "null byte": b'{"a": "\0"}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_unreadable_json_is_one_line(text: str | bytes) -> None:
    for read in (parse_json, parse_json_object):
        with pytest.raises(BrokenFileError) as raised:
            read(text, "some.json", "fetch it again")
        message = str(raised.value)
        assert message.startswith("some.json: ")
        assert "\n" not in message
        assert len(message) < 200
    with pytest.raises(BrokenFileError):
        parse_record(Manifest, text, Path("some.json"), "make it again")


@pytest.mark.parametrize(("text", "kind"), [("[]", "a list"), ("null", "null"), ('"a"', "a text"), ("1.5", "a number")])
def test_another_value_than_an_object(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(BrokenFileError, match=f"{kind}, expected a JSON object; fetch it again"):
        read_json_object(path, "fetch it again")
