"""A stand-in for the Hub on this machine: what huggingface_hub's client asks when it uploads and downloads a model.

It holds what it gets to what was announced - size and SHA-256 of every object, every object of a commit, the parent
commit - and refuses the rest, as the Hub does. Large files go by Git LFS (no Xet), in parts above ``part_bytes``.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_standInTokenOfAlice"
USER, ORGANISATION = "alice", "ladder-lab"
_REGULAR_BYTES = 10_000


@dataclass(frozen=True)
class Blob:
    """A file of a commit. ``lfs``: kept as an object, of which Git has a pointer."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_hash(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        held = pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def oid(self) -> str:
        """What the client compares its own file with."""
        return self.sha256 if self.lfs else self.git_hash

    def entry(self, path: str) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.git_hash}
        lfs = {"oid": self.sha256, "size": len(self.content), "pointerSize": 130}
        return {**entry, "lfs": lfs} if self.lfs else entry


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    """oid -> its files, in order"""

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, Blob]:
        return self.commits[self.head]

    def add(self, files: dict[str, Blob]) -> str:
        summary = json.dumps([len(self.commits), {path: blob.git_hash for path, blob in files.items()}])
        oid = hashlib.sha1(summary.encode()).hexdigest()
        self.commits[oid] = files
        return oid


class RefusedError(Exception):
    """An answer that isn't 200."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Hub(ThreadingHTTPServer):
    """The state: repositories, stored objects, and the requests that came."""

    daemon_threads = True

    def __init__(self, part_bytes: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.part_bytes = part_bytes
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.damages_uploads = False
        """a line that loses bits"""
        self.ignored: set[str] = set()
        """what the repository's .gitignore leaves out"""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def writes(self) -> list[tuple[str, str]]:
        """What would have changed something here."""
        return [(verb, path) for verb, path in self.requests if verb not in ("GET", "HEAD")]

    def store(self, oid: str, size: int, content: bytes) -> None:
        """Keep an object that is what it was announced as."""
        if self.damages_uploads:
            content = bytes([content[0] ^ 1]) + content[1:]
        if len(content) != size:
            raise RefusedError(400, f"object {oid}: {len(content)} bytes, {size} announced")
        found = hashlib.sha256(content).hexdigest()
        if found != oid:
            raise RefusedError(400, f"object {oid}: its SHA-256 is {found}")
        self.objects[oid] = content


@contextmanager
def serve(part_bytes: int = 50_000) -> Iterator[Hub]:
    hub = Hub(part_bytes)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.body = self._read_body()
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        with self.server.lock:
            self.server.requests.append((self.command, address.path))
            try:
                self._route(parts)
            except RefusedError as refused:
                headers = {"X-Error-Code": refused.code} if refused.code else {}
                headers["X-Error-Message"] = str(refused)
                self._send(json.dumps({"error": str(refused)}).encode(), refused.status, headers)

    def _route(self, parts: list[str]) -> None:
        match self.command, parts:
            case "GET", ["api", "whoami-v2"]:
                self._require_login()
                self._send_json({"type": "user", "name": USER, "orgs": [{"name": ORGANISATION}]})
            case "POST", ["api", "repos", "create"]:
                self._create(json.loads(self.body))
            case "POST", ["api", "validate-yaml"]:
                self._validate(json.loads(self.body)["content"])
            case "GET", ["api", "models", owner, name]:
                self._send_info(f"{owner}/{name}", "main")
            case "GET", ["api", "models", owner, name, "revision", revision]:
                self._send_info(f"{owner}/{name}", revision)
            case "GET", ["api", "models", owner, name, "tree", revision]:
                files = self._files(f"{owner}/{name}", revision)
                self._send_json([blob.entry(path) for path, blob in files.items()])
            case "POST", ["api", "models", owner, name, "preupload", "main"]:
                self._preupload(self._writable(f"{owner}/{name}"), json.loads(self.body)["files"])
            case "POST", ["api", "models", owner, name, "commit", "main"]:
                self._commit(f"{owner}/{name}", [json.loads(line) for line in self.body.splitlines()])
            case "POST", [owner, name, "info", "lfs", "objects", "batch"]:
                self._writable(f"{owner}/{name.removesuffix('.git')}")
                self._batch(json.loads(self.body)["objects"])
            case "PUT", ["objects", oid, size]:
                self.server.store(oid, int(size), self.body)
                self._send(b"")
            case "PUT", ["parts", oid, number]:
                self.server.parts[oid, int(number)] = self.body
                self._send(b"", headers={"ETag": hashlib.md5(self.body).hexdigest()})
            case "POST", ["complete", oid, size]:
                self._complete(oid, int(size), json.loads(self.body)["parts"])
            case "POST", ["verify"]:
                self._require_object(**json.loads(self.body))
                self._send_json({})
            case (("GET" | "HEAD"), [owner, name, "resolve", revision, *path]):
                self._resolve(f"{owner}/{name}", revision, "/".join(path))
            case _:
                raise RefusedError(404, f"the stand-in knows no {self.command} {self.path}")

    def _require_login(self) -> None:
        if not self._logged_in():
            raise RefusedError(401, "Invalid credentials in Authorization header")

    def _logged_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _readable(self, identity: str) -> Repository:
        found = self.server.repositories.get(identity)
        if found is None or (found.private and not self._logged_in()):
            raise RefusedError(404 if self._logged_in() else 401, "Repository not found", "RepoNotFound")
        return found

    def _writable(self, identity: str) -> Repository:
        self._require_login()
        return self._readable(identity)

    def _files(self, identity: str, revision: str) -> dict[str, Blob]:
        repository = self._readable(identity)
        commit = repository.head if revision == "main" else revision
        if commit not in repository.commits:
            raise RefusedError(404, f"no revision {revision}", "RevisionNotFound")
        return repository.commits[commit]

    def _create(self, wanted: dict[str, Any]) -> None:
        self._require_login()
        owner = wanted.get("organization") or USER
        identity = f"{owner}/{wanted['name']}"
        if owner not in (USER, ORGANISATION):
            raise RefusedError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        if identity in self.server.repositories:
            raise RefusedError(409, "You already created this model repo")
        private = wanted.get("visibility", "private" if wanted.get("private") else "public") == "private"
        self.server.repositories[identity] = created = Repository(private)
        created.add({".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)})
        self._send_json({"url": f"{self.server.url}/{identity}", "name": identity, "id": identity})

    def _validate(self, card: str) -> None:
        errors = []
        try:
            header = yaml.safe_load(card.split("---\n")[1])
            errors += [] if isinstance(header, dict) else [{"message": "not a mapping"}]
        except (IndexError, yaml.YAMLError) as error:
            errors.append({"message": str(error)})
        self._send_json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _send_info(self, identity: str, revision: str) -> None:
        files = self._files(identity, revision)
        repository = self.server.repositories[identity]
        commit = repository.head if revision == "main" else revision
        siblings = [{"rfilename": path} for path in files]
        card = files["README.md"].content.decode() if "README.md" in files else ""
        header = yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else None
        self._send_json(
            {
                "_id": "0",
                "id": identity,
                "sha": commit,
                "private": repository.private,
                "tags": [],
                "siblings": siblings,
                "cardData": header,
            }
        )

    def _preupload(self, repository: Repository, files: list[dict[str, Any]]) -> None:
        answers = []
        for file in files:
            path, there = file["path"], repository.files.get(file["path"])
            lfs = path.endswith(".safetensors") or file["size"] > _REGULAR_BYTES
            mode = "lfs" if lfs else "regular"
            oid = there.oid if there else None
            ignored = path in self.server.ignored
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": ignored, "oid": oid})
        self._send_json({"files": answers})

    def _batch(self, wanted: list[dict[str, Any]]) -> None:
        answers = []
        for announced in wanted:
            oid, size = announced["oid"], announced["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self.server.objects:
                upload: dict[str, Any] = {"href": f"{self.server.url}/objects/{oid}/{size}"}
                if size > self.server.part_bytes:
                    count = -(-size // self.server.part_bytes)
                    urls = {str(number): f"{self.server.url}/parts/{oid}/{number}" for number in range(1, count + 1)}
                    upload = {
                        "href": f"{self.server.url}/complete/{oid}/{size}",
                        "header": {"chunk_size": str(self.server.part_bytes), **urls},
                    }
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.server.url}/verify"}}
            answers.append(answer)
        self._send_json({"transfer": "basic", "objects": answers})

    def _complete(self, oid: str, size: int, parts: list[dict[str, Any]]) -> None:
        content = b""
        for part in parts:
            piece = self.server.parts.pop((oid, part["partNumber"]), b"")
            if hashlib.md5(piece).hexdigest() != part["etag"]:
                raise RefusedError(400, f"object {oid}: part {part['partNumber']} isn't what was sent")
            content += piece
        self.server.store(oid, size, content)
        self._send_json({})

    def _require_object(self, oid: str, size: int) -> bytes:
        content = self.server.objects.get(oid)
        if content is None or len(content) != size:
            raise RefusedError(404, f"object {oid} of {size} bytes isn't here")
        return content

    def _commit(self, identity: str, lines: list[dict[str, Any]]) -> None:
        repository = self._writable(identity)
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit", repository.head) != repository.head:
                        raise RefusedError(412, "the repository has changed since the parent commit")
                case "file":
                    files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
                case "lfsFile":
                    try:
                        files[value["path"]] = Blob(self._require_object(value["oid"], value["size"]), True)
                    except RefusedError as refused:
                        raise RefusedError(400, f"{value['path']}: {refused}") from None
                case "deletedFile":
                    if value["path"] not in files:
                        raise RefusedError(404, f"{value['path']}: nothing to delete", "EntryNotFound")
                    del files[value["path"]]
                case other:
                    raise RefusedError(400, f"the stand-in knows no {other} in a commit")
        oid = repository.add(files)
        self._send_json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{identity}/commit/{oid}"})

    def _resolve(self, identity: str, revision: str, path: str) -> None:
        files = self._files(identity, revision)
        repository = self.server.repositories[identity]
        headers = {"X-Repo-Commit": repository.head if revision == "main" else revision}
        if path not in files:
            raise RefusedError(404, f"{path}: no such file", "EntryNotFound")
        self._send(files[path].content, headers={**headers, "ETag": f'"{files[path].oid}"'})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
