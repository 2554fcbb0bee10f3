"""A small Hugging Face Hub on this machine, for the real ``huggingface_hub`` client to push to and load from.

Standard library only. It keeps commits in memory and speaks the part of the protocol that creating a repository,
committing, tagging, asking and downloading need. Large files are redirected to another origin, as on the real Hub.
Faults are attributes that a test sets: a slow or dropping connection, private and gated repositories, changed bytes.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_local"
_NO_FAULT = 1 << 62


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class File:
    data: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        return hashlib.sha256(self.data).hexdigest() if self.lfs else git_sha1(self.data)


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, File], branch: str = "main") -> str:
        content = json.dumps([len(self.commits), *((path, file.oid) for path, file in sorted(files.items()))])
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def find(self, revision: str) -> str | None:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return oid if oid in self.commits else None


class HubServer(ThreadingHTTPServer):
    """``with HubServer() as hub:`` serves until the block ends, at ``hub.url``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}/cdn"  # another origin, so the client must drop its token
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, bool]] = []  # method, path, whether a token came with it
        self.delay = 0.0  # seconds before each answer
        self.drop_after = _NO_FAULT  # bytes of a file after which the connection breaks
        self.drops = 0  # how many more times it breaks
        self.seconds_per_block = 0.0  # of 64 KiB
        self.corrupt: dict[str, bytes] = {}  # SHA-256 to what is sent in its place
        self.before: Callable[[str, str], object] = lambda method, path: None  # called with each request

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed or give up break the pipe; that is no news."""


class _Reply(Exception):
    def __init__(self, status: int, body: object = b"", **headers: str) -> None:
        self.status, self.headers = status, {key.replace("_", "-"): value for key, value in headers.items()}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, "Authorization" in self.headers))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.server.before(self.command, path)
        time.sleep(self.server.delay)
        for method, pattern, handler in _ROUTES:
            if self.command in method.split() and (match := re.fullmatch(pattern, path)):
                try:
                    reply = handler(self, body, **match.groupdict())
                except _Reply as error:
                    reply = error
                break
        else:
            reply = _Reply(404, {"error": f"no route for {self.command} {path}"})
        self._send(reply)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _send(self, reply: _Reply) -> None:
        self.send_response(reply.status)
        for key, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        slow = self.server.seconds_per_block if reply.status in (200, 206) else 0.0
        drop = (
            self.server.drop_after if self.server.drops > 0 and len(reply.body) > self.server.drop_after else _NO_FAULT
        )
        for start in range(0, len(reply.body), 65536):
            if start + 65536 > drop:
                self.server.drops -= 1
                self.wfile.write(reply.body[start:drop])
                self.close_connection = True
                return
            self.wfile.write(reply.body[start : start + 65536])
            time.sleep(slow)

    def log_message(self, *args: object) -> None:
        pass

    # Who may see what

    def _repo(self, repo: str, content: bool = False) -> Repo:
        found = self.server.repos.get(repo)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not known):
            raise _Reply(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if content and found.gated and not known:
            raise _Reply(
                403 if "Authorization" in self.headers else 401,
                X_Error_Code="GatedRepo",
                X_Error_Message="Access to this model is restricted",
            )
        return found

    def _commit(self, repo: str, revision: str, content: bool = False) -> tuple[Repo, str]:
        found = self._repo(repo, content)
        if (oid := found.find(revision)) is None:
            raise _Reply(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
        return found, oid

    def _writable(self, repo: str) -> Repo:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Reply(401, {"error": "Invalid username or password."})
        return self._repo(repo)

    # Writing

    def create(self, body: bytes) -> _Reply:
        asked = json.loads(body)
        repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _Reply(401, {"error": "Invalid username or password."})
        status = 409 if repo in self.server.repos else 200
        if status == 200:
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.server.repos[repo] = Repo(private)
            self.server.repos[repo].commit({})
        return _Reply(status, {"url": f"{self.server.url}/{repo}", "name": repo})

    def validate_yaml(self, body: bytes) -> _Reply:
        fine = json.loads(body)["content"].startswith("---\n")
        return _Reply(200 if fine else 400, {"errors": [] if fine else [{"message": "no metadata"}], "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> _Reply:
        self._writable(repo)
        found, oid = self._commit(repo, revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": found.commits[oid][file["path"]].oid if file["path"] in found.commits[oid] else None,
            }
            for file in json.loads(body)["files"]
        ]
        return _Reply(200, {"files": files})

    def lfs_batch(self, body: bytes, repo: str) -> _Reply:
        self._writable(repo)
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.lfs:
                upload, verify = (f"{self.server.url}/lfs/{verb}/{item['oid']}" for verb in ("upload", "verify"))
                item["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        return _Reply(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> _Reply:
        if hashlib.sha256(body).hexdigest() != oid:
            return _Reply(400, {"error": "checksum"})
        self.server.lfs[oid] = body
        return _Reply(200)

    def lfs_verify(self, body: bytes, oid: str) -> _Reply:
        return _Reply(200 if len(self.server.lfs.get(oid, b"")) == json.loads(body)["size"] else 404)

    def write_commit(self, body: bytes, repo: str, revision: str) -> _Reply:
        found = self._writable(repo)
        head = self._commit(repo, revision)[1]
        files = dict(found.commits[head])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", head) != head:
                return _Reply(412, {"error": "the branch has moved on"})
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = File(self.server.lfs[value["oid"]], lfs=True)
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        oid = found.commit(files, revision)
        return _Reply(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})

    def write_tag(self, body: bytes, repo: str, revision: str) -> _Reply:
        self._writable(repo)
        found, oid = self._commit(repo, revision)
        if (tag := json.loads(body)["tag"]) in found.tags:
            return _Reply(409, {"error": "Tag exists"})
        found.tags[tag] = oid
        return _Reply(200)

    # Reading

    def info(self, body: bytes, repo: str, revision: str = "main") -> _Reply:
        found, oid = self._commit(repo, revision)
        files = [{"rfilename": path} for path in found.commits[oid]]
        return _Reply(200, {"id": repo, "sha": oid, "private": found.private, "siblings": files, "tags": []})

    def refs(self, body: bytes, repo: str) -> _Reply:
        found = self._repo(repo)
        kinds = {"heads": found.branches, "tags": found.tags}
        listed = {
            {"heads": "branches"}.get(kind, kind): [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()
            ]
            for kind, refs in kinds.items()
        }
        return _Reply(200, {"converts": [], **listed})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> _Reply:
        found, oid = self._commit(repo, revision, content=True)
        if (file := found.commits[oid].get(path)) is None:
            return _Reply(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=oid)
        if not file.lfs:
            return _Reply(200, file.data, X_Repo_Commit=oid, ETag=f'"{file.oid}"')
        linked = {"X_Linked_Etag": f'"{file.oid}"', "X_Linked_Size": str(len(file.data))}
        return _Reply(302, X_Repo_Commit=oid, Location=f"{self.server.cdn}/{file.oid}", **linked)

    def content(self, body: bytes, oid: str) -> _Reply:
        data = self.server.corrupt.get(oid, self.server.lfs.get(oid, b""))
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            return _Reply(206, data[start:], Content_Range=f"bytes {start}-{len(data) - 1}/{len(data)}")
        return _Reply(200, data, ETag=f'"{oid}"')


_MODEL = r"/api/models/(?P<repo>[^/]+/[^/]+)"
_ROUTES = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"{_MODEL}/preupload/(?P<revision>.+)", _Handler.preupload),
    ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/upload/(?P<oid>\w+)", _Handler.lfs_upload),
    ("POST", r"/lfs/verify/(?P<oid>\w+)", _Handler.lfs_verify),
    ("POST", rf"{_MODEL}/commit/(?P<revision>.+)", _Handler.write_commit),
    ("POST", rf"{_MODEL}/tag/(?P<revision>.+)", _Handler.write_tag),
    ("GET", rf"{_MODEL}/refs", _Handler.refs),
    ("GET", _MODEL, _Handler.info),
    ("GET", rf"{_MODEL}/revision/(?P<revision>.+)", _Handler.info),
    ("GET HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("GET HEAD", r"/cdn/(?P<oid>\w+)", _Handler.content),
    ("GET HEAD", "/portal/.*", lambda *args: _Reply(200, b"<html>Please log in</html>")),  # as in a hotel
)
