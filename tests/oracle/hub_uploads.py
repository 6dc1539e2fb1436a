"""The writing half of the small Hub (hub_server.py): repositories are made, files uploaded, commits taken.

It speaks what huggingface_hub does: create, validate-yaml, preupload, the LFS batch with PUT and verify, and commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import unquote, urlsplit

_GITATTRIBUTES = b"*.gguf filter=lfs diff=lfs merge=lfs -text\n"


class Uploads:
    """What was uploaded to *hub*; *stored* are bodies in LFS by their sha256, *summaries* those of all commits."""

    def __init__(self, hub: Any, repo_type: type) -> None:
        self.hub = hub
        self.stored: dict[str, bytes] = {}
        self.summaries: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.multipart = 0
        self._repo_type = repo_type
        self._parts: dict[tuple[str, int], bytes] = {}

    def answer(self, path: str, token: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Answer one request: status, headers, body."""
        place = unquote(urlsplit(path).path)
        for i, (text, fault) in enumerate(self.hub.faults):
            if text in place:
                del self.hub.faults[i]
                return fault.status, dict(fault.headers), fault.body
        if place.startswith("/upload/"):
            return self._put(place.removeprefix("/upload/"), body)
        if place == "/complete":  # its address is secret, as the storage's are
            status, value = self._complete(json.loads(body))
            return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
        if token != f"Bearer {self.hub.token}":
            return 401, {"X-Error-Message": "Invalid username or password."}, b""
        rows = (
            (r"/api/whoami-v2", lambda _: {"name": "library", "orgs": [], "type": "user"}),
            (r"/api/validate-yaml", lambda _: {}),
            (r"/api/repos/create", lambda _: self._create(json.loads(body))),
            (r"/api/models/(.+)/preupload/main", lambda found: self._preupload(found[1], json.loads(body))),
            (r"/(.+)\.git/info/lfs/objects/batch", lambda _: self._batch(json.loads(body))),
            (r"/verify", lambda _: self._verify(json.loads(body))),
            (r"/api/models/(.+)/commit/main", lambda found: self._commit(found[1], body)),
        )
        for pattern, do in rows:
            if found := re.fullmatch(pattern, place):
                done = do(found)
                status, value = done if isinstance(done, tuple) else (200, done)
                return status, {"Content-Type": "application/json"}, json.dumps(value).encode()
        return 404, {}, b""

    def _create(self, wanted: dict[str, Any]) -> Any:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.hub.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
        self.created.append(wanted)
        repo = self.hub.repos[name] = self._repo_type(lfs=(".gguf",))
        repo.private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        repo.commit({".gitattributes": _GITATTRIBUTES})
        return {"url": f"{self.hub.url}/{name}", "name": name, "id": "1"}

    def _preupload(self, name: str, wanted: dict[str, Any]) -> Any:
        repo = self.hub.repos[name]
        there = repo.commits[repo.refs["main"]]
        files = []
        for file in wanted["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(".gguf") else "regular"
            oid = repo.etag(path, there[path]) if path in there else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def _batch(self, wanted: dict[str, Any]) -> Any:
        objects = []
        for item in wanted["objects"]:
            row: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.stored:
                row["actions"] = {"upload": self._place(item), "verify": {"href": f"{self.hub.url}/verify"}}
            objects.append(row)
        return {"transfer": "basic", "objects": objects}

    def _place(self, item: dict[str, Any]) -> dict[str, Any]:
        if not self.multipart:
            return {"href": f"{self.hub.elsewhere}/upload/{item['oid']}", "header": {}}
        n_parts = -(-item["size"] // self.multipart)
        parts = {str(n): f"{self.hub.elsewhere}/upload/{item['oid']}/{n}" for n in range(1, n_parts + 1)}
        return {"href": f"{self.hub.url}/complete", "header": {"chunk_size": str(self.multipart), **parts}}

    def _put(self, place: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        oid, _, part = place.partition("/")
        if part:
            self._parts[oid, int(part)] = body
        elif hashlib.sha256(body).hexdigest() != oid:
            return 400, {}, b"not its digest"
        else:
            self.stored[oid] = body
        return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"'}, b""

    def _complete(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        oid = wanted["oid"]
        body = b"".join(self._parts.pop((oid, part["partNumber"])) for part in wanted["parts"])
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "not its digest"}
        self.stored[oid] = body
        return 200, {}

    def _verify(self, wanted: dict[str, Any]) -> Any:
        body = self.stored.get(wanted["oid"])
        return {} if body is not None and len(body) == wanted["size"] else (404, {"error": "not uploaded"})

    def _commit(self, name: str, body: bytes) -> Any:
        repo = self.hub.repos[name]
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repo.refs["main"]):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        files = dict(repo.commits[repo.refs["main"]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.stored:
                    return 400, {"error": f"LFS object {value['oid']} is not there"}
                files[value["path"]] = self.stored[value["oid"]]
        self.summaries.append(header["summary"])
        oid = repo.commit(files)
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"}


def accept_uploads(server: Any, repo_type: type) -> Uploads:
    """Let a running Hub take uploads, until it is reset; *repo_type* is hub_server's Repo."""
    uploads = Uploads(server.hub, repo_type)
    handler = server._handler
    read = handler.do_GET

    def write(self: Any) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(iter(lambda: self.rfile.read(int(self.rfile.readline(), 16) + 2)[:-2], b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.hub.requests.append((self.command, self.path))
        status, headers, answer = uploads.answer(self.path, self.headers.get("Authorization", ""), body)
        self._send_head(status, {"Content-Length": str(len(answer)), **headers})
        self.wfile.write(answer)

    def get(self: Any) -> None:
        write(self) if self.path.startswith("/api/whoami") else read(self)

    handler.do_GET, handler.do_POST, handler.do_PUT = get, write, write
    return uploads
