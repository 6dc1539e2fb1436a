"""A small Hugging Face Hub on 127.0.0.1, from the standard library: what huggingface_hub asks for when it downloads."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """One repository: files by commit, commits by branch or tag, and who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    disabled: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Put *files* on *branch* as a new commit and return its hash."""
        sha = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()  # noqa: S324
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """Resolve a branch, tag or commit."""
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Answer:
    """One HTTP answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Hub:
    """The server's state, which a test sets up and looks at.

    *requests* are (method, path) in order; *faults* answer, once each, the next request whose path holds their text.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[tuple[str, Answer]] = []
        self.token = "hf_good"  # noqa: S105
        self.url = ""

    def repo(self, name: str, files: dict[str, bytes]) -> Repo:
        """Add a repository with one commit on main."""
        repo = self.repos[name] = Repo()
        repo.commit(files)
        return repo

    def fail(self, path: str, status: int, *, times: int = 1, **headers: str) -> None:
        """Answer the next *times* requests whose path holds *path* with an error."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        self.faults += [(path, Answer(status, named))] * times

    def answer(self, path: str, authorization: str) -> Answer:
        """Answer one request."""
        for i, (text, fault) in enumerate(self.faults):
            if text in path:
                del self.faults[i]
                return fault
        pieces = [unquote(p) for p in urlsplit(path).path.strip("/").split("/")]
        is_api = pieces[:2] == ["api", "models"]
        if is_api:
            pieces = pieces[2:]
        repo = self.repos.get("/".join(pieces[:2]))
        if repo is None:
            return _error(404, "RepoNotFound", "Repository not found")
        refused = self._refuse(repo, authorization, is_api)
        if refused:
            return refused
        revision = pieces[3] if len(pieces) > 3 else "main"
        sha = repo.find(revision)
        if sha is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return _info("/".join(pieces[:2]), repo, sha) if is_api else _file(repo, sha, "/".join(pieces[4:]))

    def _refuse(self, repo: Repo, authorization: str, is_api: bool) -> Answer | None:
        if repo.disabled:
            return _error(403, "", "Access to this resource is disabled.")
        if authorization and authorization != f"Bearer {self.token}" and "limited" not in authorization:
            return _error(401, "", "Invalid credentials in Authorization header")
        allowed = authorization == f"Bearer {self.token}"
        if repo.private and not allowed:
            return _error(401, "RepoNotFound", "Repository not found")
        if repo.gated and not allowed and not is_api:
            return _error(403 if authorization else 401, "GatedRepo", "Access to this model is restricted.")
        return None


def _error(status: int, code: str, message: str) -> Answer:
    return Answer(status, {"X-Error-Code": code, "X-Error-Message": message})


def _info(name: str, repo: Repo, sha: str) -> Answer:
    siblings = [{"rfilename": f, "size": len(b), "blobId": _git_oid(b)} for f, b in repo.commits[sha].items()]
    info = {"id": name, "sha": sha, "siblings": siblings, "private": repo.private, "gated": repo.gated, "tags": []}
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(info).encode())


def _file(repo: Repo, sha: str, path: str) -> Answer:
    if path not in repo.commits[sha]:
        answer = _error(404, "EntryNotFound", "Entry not found")
        answer.headers["X-Repo-Commit"] = sha
        return answer
    body = repo.commits[sha][path]
    return Answer(200, {"X-Repo-Commit": sha, "ETag": f'"{_git_oid(body)}"'}, body)


def _git_oid(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()  # noqa: S324


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a free port until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.requests.append((self.command, self.path))
            answer = hub.answer(self.path, self.headers.get("Authorization", ""))
            self.send_response(answer.status)
            for key, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(answer.body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
