"""A small Hugging Face Hub, from the standard library: what huggingface_hub asks for, and all that can go wrong.

It listens on 127.0.0.1; files in LFS are redirected to `localhost`: another origin, as the real Hub's store is.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

_PIECE = 1 << 16


@dataclass
class Repo:
    """One repository: files by commit, commits by branch or tag, and who may read it; *lfs* is how its files end."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    disabled: bool = False
    lfs: tuple[str, ...] = ()

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Put *files* on *branch* as a new commit and return its hash."""
        contents = [(name, hashlib.sha256(body).hexdigest()) for name, body in sorted(files.items())]
        sha = hashlib.sha1(repr((contents, len(self.commits))).encode()).hexdigest()  # noqa: S324
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        """Resolve a branch, tag or commit."""
        return revision if revision in self.commits else self.refs.get(revision)

    def etag(self, name: str, body: bytes) -> str:
        """Return the ETag of a file: its sha256 if it is in LFS, else its git blob id."""
        return hashlib.sha256(body).hexdigest() if name.endswith(self.lfs) and self.lfs else _git_oid(body)


@dataclass
class Answer:
    """One HTTP answer; a part of *body* is sent if asked for and *has_ranges*."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    has_ranges: bool = False


@dataclass
class Asked:
    """One HTTP request as it came; the names of *headers* are in title case."""

    method: str
    path: str
    host: str
    headers: dict[str, str]
    is_download: bool = False


@dataclass
class Fault:
    """What happens to a file's body: it is *cut* or held after *at* bytes, spoilt, or sent without regard to Range.

    With *quiet* a cut looks like the regular end; *lie* is added to where the answer says that its part begins.  A held
    one goes on when *released*; *reached* tells that it stands.
    """

    cut: bool = False
    quiet: bool = False
    at: int = 0
    spoil: bool = False
    whole: bool = False
    lie: int = 0
    extra: bytes = b""
    reached: threading.Event | None = None
    released: threading.Event = field(default_factory=threading.Event)


class Hub:
    """The server's state, which a test sets up and looks at.

    *requests* are (method, path) in order, *asked* the same with everything; *sent* counts bytes of file bodies by the
    file's name; *faults* answer, once each, the next request whose path holds their text.  *rate* is the most that all
    file bodies together get of the line, in bytes per second.
    """

    def __init__(self) -> None:
        self.token = "hf_good"  # noqa: S105
        self.url = ""
        self.elsewhere = ""
        self.reset()

    def reset(self) -> None:
        """Forget everything but the address."""
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.asked: list[Asked] = []
        self.sent: Counter[str] = Counter()
        self.faults: list[tuple[str, Answer]] = []
        self.body_faults: list[tuple[str, Fault]] = []
        self.lock = threading.Lock()
        self.rate: float | None = None
        self._line_is_free = 0.0

    def repo(self, name: str, files: dict[str, bytes], *, lfs: tuple[str, ...] = ()) -> Repo:
        """Add a repository with one commit on main."""
        repo = self.repos[name] = Repo(lfs=lfs)
        repo.commit(files)
        return repo

    def fail(self, path: str, status: int, *, times: int = 1, **headers: str) -> None:
        """Answer the next *times* requests whose path holds *path* with an error."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        self.faults += [(path, Answer(status, named))] * times

    def spoil(self, name: str, *, times: int = 1, **what: bool | int | bytes) -> None:
        """Treat the body of the next *times* downloads of the file *name* as the Fault says."""
        self.body_faults += [(name, Fault(**what)) for _ in range(times)]  # type: ignore[arg-type]

    def hold(self, name: str, at: int) -> Fault:
        """Let the next download of *name* that is as long stand still after *at* bytes, until it is released."""
        fault = Fault(at=at, reached=threading.Event())
        self.body_faults.append((name, fault))
        return fault

    def downloads(self, name: str) -> list[Asked]:
        """Return the GET requests that the file *name* itself was sent for."""
        return [a for a in self.asked if a.method == "GET" and a.path.endswith("/" + name) and a.is_download]

    def answer(self, path: str, authorization: str, host: str = "") -> Answer:
        """Answer one request."""
        for i, (text, fault) in enumerate(self.faults):
            if text in path:
                del self.faults[i]
                return fault
        pieces = [unquote(p) for p in urlsplit(path).path.strip("/").split("/")]
        if pieces[0] == "lfs":
            return self._stored(pieces[1:]) if host and host in self.elsewhere else _error(404, "", "not here")
        if pieces == ["api", "models"]:
            return self._list(parse_qs(urlsplit(path).query)["author"][0])
        return self._in_repo(pieces, authorization)

    def _in_repo(self, pieces: list[str], authorization: str) -> Answer:
        """Answer a request about one repository."""
        is_api = pieces[:2] == ["api", "models"]
        if is_api:
            pieces = pieces[2:]
        repo = self.repos.get("/".join(pieces[:2]))
        if repo is None:
            return _error(404, "RepoNotFound", "Repository not found")
        revision = pieces[3] if len(pieces) > 3 else "main"
        sha = repo.find(revision) or ""
        refused = self._refuse(repo, authorization, is_api)
        if refused or not sha:
            return refused or _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        name = "/".join(pieces[:2])
        if is_api and pieces[2:3] == ["tree"]:
            return _json(_rows(repo, sha, "path", "oid"))
        return _info(name, repo, sha) if is_api else self._file(name, repo, sha, "/".join(pieces[4:]))

    def _list(self, author: str) -> Answer:
        """List an organisation's repositories."""
        return _json([{"id": name} for name in self.repos if name.lower().startswith(f"{author.lower()}/")])

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

    def _file(self, name: str, repo: Repo, sha: str, path: str) -> Answer:
        if path not in repo.commits[sha]:
            answer = _error(404, "EntryNotFound", "Entry not found")
            answer.headers["X-Repo-Commit"] = sha
            return answer
        body = repo.commits[sha][path]
        etag = repo.etag(path, body)
        if len(etag) == 40:
            return Answer(200, {"X-Repo-Commit": sha, "ETag": f'"{etag}"'}, body, has_ranges=True)
        headers = {"X-Repo-Commit": sha, "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(body))}
        return Answer(302, {**headers, "Location": f"{self.elsewhere}/lfs/{name}/{sha}/{quote(path)}?sig=1"})

    def _stored(self, pieces: list[str]) -> Answer:
        body = self.repos["/".join(pieces[:2])].commits[pieces[2]]["/".join(pieces[3:])]
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()  # a store has ETags of its own
        return Answer(200, {"ETag": f'"{etag}-1"'}, body, has_ranges=True)

    def account(self, name: str, n_bytes: int) -> float:
        """Count bytes of the file *name* that are about to be sent; return for how long they have to wait, in seconds.

        They are counted before, so that a client that has it all finds it counted.
        """
        with self.lock:
            self.sent[name] += n_bytes
            if self.rate is None:
                return 0.0
            now = time.monotonic()
            self._line_is_free = max(self._line_is_free, now) + n_bytes / self.rate
            return self._line_is_free - now

    def fault_for(self, path: str) -> Fault:
        """Take the next fault of the body of the file that *path* ends with."""
        with self.lock:
            for i, (name, fault) in enumerate(self.body_faults):
                if path.endswith("/" + name):
                    del self.body_faults[i]
                    return fault
        return Fault()


def _error(status: int, code: str, message: str) -> Answer:
    return Answer(status, {"X-Error-Code": code, "X-Error-Message": message})


def _info(name: str, repo: Repo, sha: str) -> Answer:
    siblings = _rows(repo, sha, "rfilename", "blobId")
    return _json({"id": name, "sha": sha, "siblings": siblings, "private": repo.private, "gated": repo.gated})


def _rows(repo: Repo, sha: str, name_key: str, oid_key: str) -> list[dict[str, object]]:
    """List the files of a commit; the two parts of the Hub's interface call the same things differently."""
    rows = []
    for path, body in repo.commits[sha].items():
        row: dict[str, object] = {name_key: path, "type": "file", "size": len(body), oid_key: _git_oid(body)}
        etag = repo.etag(path, body)
        if len(etag) == 64:
            row["lfs"] = {"sha256": etag, "oid": etag, "size": len(body), "pointerSize": 135}
        rows.append(row)
    return rows


def _json(value: object) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _git_oid(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()  # noqa: S324


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def do_GET(self) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path))
        asked = Asked(
            self.command,
            urlsplit(self.path).path,
            self.headers["Host"],
            {k.title(): v for k, v in self.headers.items()},
        )
        hub.asked.append(asked)
        answer = hub.answer(self.path, self.headers.get("Authorization", ""), asked.host)
        if self.command == "GET" and answer.has_ranges:
            asked.is_download = True
            self._send_file(answer, hub.fault_for(asked.path), asked.path.rpartition("/")[2])
            return
        self._send_head(answer.status, {"Content-Length": str(len(answer.body)), **answer.headers})
        if self.command == "GET":
            self.wfile.write(answer.body)

    do_HEAD = do_GET  # noqa: N815

    def _send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)  # without a Date of its own
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _send_file(self, answer: Answer, fault: Fault, name: str) -> None:
        body, status, headers = answer.body, 200, dict(answer.headers)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        if asked and same and not fault.whole:
            start, end = int(asked[1]), min(int(asked[2] or len(body)) + 1, len(body))
            if start >= len(body):
                self._send_head(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
                return
            headers["Content-Range"] = f"bytes {start + fault.lie}-{end - 1}/{len(body)}"
            body, status = body[start:end], 206
        if fault.spoil:
            body = bytes(255 - b for b in body[:16]) + body[16:]
        body += fault.extra
        if fault.quiet:
            headers["Connection"] = "close"
        else:
            headers["Content-Length"] = str(len(body))
        self._send_head(status, headers)
        with suppress(OSError):
            self._send_body(memoryview(body), fault, name)

    def _send_body(self, body: memoryview, fault: Fault, name: str) -> None:
        if fault.reached is not None and len(body) < fault.at:  # a header alone
            self.hub.body_faults.append((name, fault))
            fault = Fault()
        stops = fault.cut or fault.reached is not None
        self._write(body[: fault.at] if stops else body, name)
        if fault.cut:
            self.close_connection = True
            if not fault.quiet:
                self.connection.shutdown(socket.SHUT_RDWR)
        elif fault.reached is not None:
            fault.reached.set()
            fault.released.wait(60)
            self._write(body[fault.at :], name)

    def _write(self, body: memoryview, name: str) -> None:
        for i in range(0, len(body), _PIECE):
            piece = body[i : i + _PIECE]
            time.sleep(self.hub.account(name, len(piece)))
            self.wfile.write(piece)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, handler: type[_Handler]) -> None:
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), handler)

    def get_request(self) -> tuple[socket.socket, object]:
        sock, address = super().get_request()
        self.open.add(sock)
        return sock, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: clients of these tests die on purpose."""


class Running:
    """The server that answers for *hub*; it can go down and come up again at the same address."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._handler = type("Handler", (_Handler,), {"hub": hub})
        self._port = 0
        self.up()

    def up(self) -> None:
        """Listen."""
        self._server = _Server(self._port, self._handler)
        self._port = self._server.server_port
        self.hub.url = f"http://127.0.0.1:{self._port}"
        self.hub.elsewhere = f"http://localhost:{self._port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def down(self) -> None:
        """Break all connections and listen no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for sock in self._server.open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve() -> Iterator[Running]:
    """Run a hub on a free port until the block ends."""
    running = Running(Hub())
    try:
        yield running
    finally:
        running.down()
