"""Who may write."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import json
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode

import pytest
import requests
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipeline.errors import AccessError
from pipeline.serve import BackgroundServer, Settings, load_token, token_path
from pipeline.serve._access import GRANT_S, Access
from pipeline.serve._answers import RegistryError
from pipeline.serve._app import _check_access, make_app
from pipeline.store import Store

UPLOADS = "/v2/me/new/blobs/uploads/"
NOW = 1_800_000_000.0
SCOPE = "repository:me/new:pull,push"


class Ollama:
    """Signs a token request as Ollama does (server/auth.go), with a key of its own."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        raw = self._private.public_key().public_bytes_raw()
        self.encoded = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + raw).decode()
        self.line = f"ssh-ed25519 {self.encoded} somebody@somewhere"

    def sign(self, url: str) -> str:
        """Return the Authorization header of a GET of *url*."""
        empty = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()
        return f"{self.encoded}:{base64.b64encode(self._private.sign(f'GET,{url},{empty}'.encode())).decode()}"

    def ask(self, access: Access, nonce: str, at: float = NOW, scope: str = SCOPE, signed: str = "") -> str | None:
        """Ask for a token; *signed* is an address other than the one that is asked."""
        query = {"nonce": nonce, "scope": scope, "service": "gguf-pipeline", "ts": f"{at:.0f}"}
        url = f"http://localhost:1/token?{urlencode(query)}"
        return access.exchange(self.sign(signed or url), url, query)


@pytest.fixture
def ollama_client() -> Ollama:
    """An Ollama's key."""
    return Ollama()


@pytest.fixture
def access(tmp_path: Path, ollama_client: Ollama) -> Access:
    """A check that knows that key, at a fixed time."""
    (tmp_path / "keys").write_text(f"# who may push\n\nnonsense\n{ollama_client.line}\n", encoding="utf-8")
    return Access("t" * 20, tmp_path / "keys", clock=lambda: NOW)


def test_the_token_is_made_once(tmp_path: Path) -> None:
    """The file is made for its owner alone, and stays."""
    path = tmp_path / "data" / "registry.token"
    token = load_token(path)
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_token(path) == token
    assert [one.name for one in path.parent.iterdir()] == ["registry.token"]
    assert load_token(tmp_path / "other") != token


def test_the_token_lies_with_the_users_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The XDG folder of data holds it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert token_path() == tmp_path / "gguf-pipeline" / "registry.token"


@pytest.mark.parametrize(
    ("content", "mode"), [("", 0o600), ("short", 0o600), ("x" * 40, 0o644), ("\u00e9" * 40, 0o600)]
)
def test_a_bad_token_file(tmp_path: Path, content: str, mode: int) -> None:
    """A token that is none, or that others can read, stops the server before it starts."""
    path = tmp_path / "token"
    path.write_text(content, encoding="utf-8")
    path.chmod(mode)
    with pytest.raises(AccessError, match="token"):
        load_token(path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", UPLOADS),
        *((method, f"{UPLOADS}0") for method in ("PUT", "PATCH", "DELETE", "GET")),
        *((method, "/v2/me/new/manifests/latest") for method in ("PUT", "DELETE")),
        ("DELETE", "/v2/library/demo/manifests/latest"),
        ("DELETE", f"/v2/library/demo/blobs/sha256:{'0' * 64}"),
    ],
)
@pytest.mark.parametrize(
    "authorization", ["", "Bearer wrong", "Bearer", "Basic eDp3cm9uZw==", "Basic \u00ff", "Digest x"]
)
def test_writing_without_the_token(
    writable: BackgroundServer, store: Store, method: str, path: str, authorization: str
) -> None:
    """Every write needs it, on this machine too; the answer says where a token is to be had."""
    before = sorted(store.root.rglob("*"))
    headers = {"Authorization": authorization.encode("latin-1").decode("latin-1")} if authorization else {}
    connection = http.client.HTTPConnection(writable.address, timeout=10)
    connection.request(method, path, body=b"x", headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == 401
    repository = "/".join(path.split("/")[2:4])
    realm = f"http://{writable.address}/token"
    assert answer.headers["WWW-Authenticate"] == (
        f'Bearer realm="{realm}",service="gguf-pipeline",scope="repository:{repository}:pull,push"'
    )
    assert sorted(store.root.rglob("*")) == before


@pytest.mark.parametrize("part", ["a%0d%0aX-Own:%20y", "a%00", "a%22,realm=%22evil", "%2e%2e"])
def test_a_name_that_is_none(writable: BackgroundServer, part: str) -> None:
    """What is no name comes into no header of the answer."""
    connection = http.client.HTTPConnection(writable.address, timeout=10)
    connection.request("POST", f"/v2/{part}/new/blobs/uploads/")
    answer = connection.getresponse()
    assert json.loads(answer.read())["errors"][0]["code"] == "NAME_INVALID"
    assert (answer.status, answer.headers["WWW-Authenticate"], answer.headers["X-Own"]) == (404, None, None)
    connection.close()


def test_the_ways_to_send_the_token(writable: BackgroundServer, token: str) -> None:
    """As a bearer's, as Basic's password with any name, or exchanged for one that holds for one repository."""
    url = f"http://{writable.address}"
    assert requests.post(url + UPLOADS, headers={"Authorization": f"Bearer {token}"}, timeout=10).status_code == 202
    assert requests.post(url + UPLOADS, auth=("anybody", token), timeout=10).status_code == 202
    asked = requests.get(f"{url}/token", params={"scope": SCOPE}, auth=("x", token), timeout=10).json()
    assert asked["token"] == asked["access_token"]
    headers = {"Authorization": f"Bearer {asked['token']}"}
    assert requests.post(url + UPLOADS, headers=headers, timeout=10).status_code == 202
    assert requests.post(url + UPLOADS.replace("new", "old"), headers=headers, timeout=10).status_code == 401
    assert requests.get(f"{url}/token", params={"scope": SCOPE}, auth=("x", "wrong"), timeout=10).status_code == 401


def test_a_signed_request_of_a_known_key(access: Access, ollama_client: Ollama) -> None:
    """An Ollama whose key is in the file gets a token that holds for an hour, for its repository."""
    token = ollama_client.ask(access, "one")
    assert token
    assert access.allows(f"Bearer {token}", "me/new")
    assert not access.allows(f"Bearer {token}", "me/other")
    access.clock = lambda: NOW + GRANT_S
    assert not access.allows(f"Bearer {token}", "me/new")


@pytest.mark.parametrize(
    ("actions", "writes"),
    [("pull", False), ("pull,pull", False), ("push", True), ("push,pull", True), ("*", True), ("delete", False),
     ("pushing", False)],
)  # fmt: skip
def test_a_token_does_what_it_was_asked_for(
    actions: str, writes: bool, access: Access, ollama_client: Ollama, store: Store
) -> None:
    """One for pulling alone pushes nothing, whether a key or the registry's token asked for it."""
    scope = f"repository:me/new:{actions}"
    signed = ollama_client.ask(access, "one", scope=scope)
    assert access.allows(f"Bearer {signed}", "me/new") is writes
    with BackgroundServer(store, settings=Settings(token="t" * 20)) as server:
        url = f"http://{server.address}"
        asked = requests.get(f"{url}/token", params={"scope": scope}, auth=("x", "t" * 20), timeout=10).json()
        headers = {"Authorization": f"Bearer {asked['token']}"}
        assert requests.post(url + UPLOADS, headers=headers, timeout=10).status_code == (202 if writes else 401)


def test_signed_requests_that_are_refused(access: Access, ollama_client: Ollama, tmp_path: Path) -> None:
    """An unknown key, a used nonce, an old request, another address or no repository gets nothing."""
    assert Ollama().ask(access, "one") is None
    assert ollama_client.ask(access, "two", signed="http://localhost:1/token?nonce=other") is None
    assert ollama_client.ask(access, "three", at=NOW - 301) is None
    assert ollama_client.ask(access, "four", at=NOW + 301) is None
    assert ollama_client.ask(access, "") is None
    assert ollama_client.ask(access, "five", scope="registry:catalog:*") is None
    assert ollama_client.ask(access, "six")
    assert ollama_client.ask(access, "six") is None
    (tmp_path / "keys").write_text("", encoding="utf-8")
    assert ollama_client.ask(access, "seven") is None
    assert Access("t" * 20, None, clock=lambda: NOW).exchange(ollama_client.sign("x"), "x", {"scope": SCOPE}) is None


def test_copies_of_a_signed_request(access: Access, ollama_client: Ollama) -> None:
    """Of copies that come at the same time one gets a token."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            tokens = list(pool.map(lambda _: ollama_client.ask(access, "one"), range(8)))
    finally:
        sys.setswitchinterval(interval)
    assert len([token for token in tokens if token]) == 1


def test_the_refusal_names_the_line_to_add(store: Store, tmp_path: Path, ollama_client: Ollama) -> None:
    """An Ollama that may not push is told, by its own key, what the owner of the registry has to add, and where."""
    settings = Settings(token="t" * 20, ollama_keys=tmp_path / "keys")
    with BackgroundServer(store, settings=settings) as server:
        query = {"scope": SCOPE, "nonce": "n", "ts": f"{time.time():.0f}"}
        url = f"http://{server.address}/token?{urlencode(query)}"
        answer = requests.get(url, headers={"Authorization": ollama_client.sign(url)}, timeout=10)
        assert answer.status_code == 403
        (error,) = answer.json()["errors"]
        assert str(tmp_path / "keys") in error["message"]
        assert error["detail"] == f"the line to add: ssh-ed25519 {ollama_client.encoded}"
        (tmp_path / "keys").write_text(error["detail"].partition(": ")[2], encoding="utf-8")
        answer = requests.get(url, headers={"Authorization": ollama_client.sign(url)}, timeout=10)
        assert answer.status_code == 200


def test_other_machines_read_but_do_not_write(tmp_path: Path) -> None:
    """Beyond loopback the registry is read-only, whoever has the token, unless its owner says otherwise."""

    async def pass_on(_: web.Request) -> web.StreamResponse:
        return web.Response(text="through")

    async def ask(settings: Settings, remote: str, method: str) -> int:
        app, named = make_app(Store(tmp_path / "none"), settings=settings), {"namespace": "me", "model": "new"}
        headers = {"Authorization": f"Bearer {'t' * 20}", "Host": "models.example"}
        request = make_mocked_request(method, UPLOADS, headers=headers, app=app, match_info=named)
        return (await _check_access(request.clone(remote=remote), pass_on)).status

    closed = Settings(allow_remote=True, token="t" * 20)
    opened = Settings(allow_remote=True, remote_writes=True, token="t" * 20)
    assert asyncio.run(ask(closed, "192.0.2.1", "GET")) == 200
    assert asyncio.run(ask(closed, "127.0.0.1", "POST")) == 200
    assert asyncio.run(ask(opened, "192.0.2.1", "POST")) == 200
    with pytest.raises(RegistryError, match="--allow-remote-writes"):
        asyncio.run(ask(closed, "192.0.2.1", "POST"))
