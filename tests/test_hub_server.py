"""The stand-in itself refuses what the Hub would."""

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from hub_server import TOKEN, USER, Hub, serve

CONTENT = b"weights " * 1000
OID = hashlib.sha256(CONTENT).hexdigest()
NAME = f"{USER}/model"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(part_bytes=5000) as server:
        assert ask(server, "POST", "/api/repos/create", {"name": "model", "visibility": "private"})[0] == 200
        yield server


def ask(hub: Hub, method: str, path: str, body: Any = None, token: str = TOKEN) -> tuple[int, str]:
    """Status, and the answer's text."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    url = path if path.startswith("http") else hub.url + path
    request = urllib.request.Request(url, data, {"Authorization": f"Bearer {token}"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def announce(hub: Hub, size: int = len(CONTENT)) -> dict[str, Any]:
    batch = {"objects": [{"oid": OID, "size": size}]}
    answer = json.loads(ask(hub, "POST", f"/{NAME}.git/info/lfs/objects/batch", batch)[1])
    upload: dict[str, Any] = answer["objects"][0]["actions"]["upload"]
    return upload


def commit(hub: Hub, size: int = len(CONTENT)) -> tuple[int, str]:
    lines = (
        {"key": "header", "value": {"summary": "weights"}},
        {"key": "lfsFile", "value": {"path": "model.safetensors", "algo": "sha256", "oid": OID, "size": size}},
    )
    return ask(hub, "POST", f"/api/models/{NAME}/commit/main", "\n".join(map(json.dumps, lines)).encode())


def test_object_with_another_hash_or_size(hub: Hub) -> None:
    whole = f"/objects/{OID}/{len(CONTENT)}"
    status, said = ask(hub, "PUT", whole, CONTENT[:-1] + b"!")
    assert (status, "its SHA-256 is" in said) == (400, True)
    status, said = ask(hub, "PUT", whole, CONTENT[:-1])
    assert (status, "7999 bytes, 8000 announced" in said) == (400, True)
    assert hub.objects == {}
    assert ask(hub, "PUT", whole, CONTENT)[0] == 200


def test_parts_that_changed_or_are_missing(hub: Hub) -> None:
    upload = announce(hub)
    pieces = [CONTENT[:5000], CONTENT[5000:]]
    parts = [
        {"partNumber": number, "etag": hashlib.md5(piece).hexdigest()} for number, piece in enumerate(pieces, start=1)
    ]
    assert upload["header"]["chunk_size"] == "5000"
    assert ask(hub, "PUT", upload["header"]["1"], pieces[0])[0] == 200
    status, said = ask(hub, "POST", upload["href"], {"oid": OID, "parts": parts})
    assert (status, "part 2" in said) == (400, True)
    for number, piece in enumerate(pieces, start=1):
        assert ask(hub, "PUT", upload["header"][str(number)], piece)[0] == 200
    status, said = ask(hub, "POST", upload["href"], {"oid": OID, "parts": parts[:1]})
    assert (status, "5000 bytes, 8000 announced" in said) == (400, True)
    assert hub.objects == {}


def test_commit_of_an_object_that_is_not_there(hub: Hub) -> None:
    before = hub.repositories[NAME].head
    status, said = commit(hub)
    assert (status, "model.safetensors: object" in said, "isn't here" in said) == (400, True, True)
    assert ask(hub, "PUT", f"/objects/{OID}/{len(CONTENT)}", CONTENT)[0] == 200
    assert commit(hub, size=len(CONTENT) + 1)[0] == 400
    assert hub.repositories[NAME].head == before
    assert commit(hub)[0] == 200
    assert hub.repositories[NAME].files["model.safetensors"].content == CONTENT


def test_private_is_seen_by_its_owner_only(hub: Hub) -> None:
    assert ask(hub, "GET", f"/api/models/{NAME}")[0] == 200
    assert ask(hub, "GET", f"/api/models/{NAME}", token="hf_other")[0] == 401
    assert ask(hub, "GET", f"/{NAME}/resolve/main/.gitattributes", token="hf_other")[0] == 401
    assert commit_as_another(hub) == 401


def commit_as_another(hub: Hub) -> int:
    return ask(hub, "POST", f"/api/models/{NAME}/commit/main", b"", token="hf_other")[0]


def test_card_with_a_broken_header(hub: Hub) -> None:
    assert ask(hub, "POST", "/api/validate-yaml", {"content": "---\na: b\n---\n"})[0] == 200
    assert ask(hub, "POST", "/api/validate-yaml", {"content": "---\n[\n---\n"})[0] == 400
