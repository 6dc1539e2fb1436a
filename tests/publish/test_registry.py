"""The registry target against a real docker-registry: logins, TLS, mounts, what is read back and what is printed."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import bcrypt
import pytest

from pipeline import flow
from pipeline.errors import AccessError, PipelineError, UsageError
from pipeline.job import Job
from pipeline.publish import Published, Release, ReleaseEntry, already_there, open_target
from pipeline.serve import BackgroundServer
from pipeline.store import Store

pytestmark = pytest.mark.registry

Publish = Callable[..., Published]


@pytest.fixture
def publish(entry: Callable[..., ReleaseEntry], silent_log: Any, tmp_path: Path) -> Publish:
    """Publish one small file to *text* as namespace/model."""

    def run(text: str, repository: str = "library/demo", data: bytes = b"GGUF") -> Published:
        namespace, model = repository.split("/")
        with open_target(text) as target:
            target.check(namespace, model, ["Q4_K_M"])
            return target.publish(Release(namespace, model, (entry(tmp_path / "a.gguf", data=data),)), silent_log)

    return run


@pytest.fixture
def closed(docker_registry: Callable[..., Any], tmp_path: Path) -> Any:
    """A registry that wants Basic authentication, from me:secret."""
    line = b"me:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4))
    (tmp_path / "htpasswd").write_bytes(line + b"\n")
    return docker_registry(auth={"htpasswd": {"realm": "closed", "path": str(tmp_path / "htpasswd")}})


@pytest.fixture
def tokens(oracle: Callable[[str], ModuleType], tmp_path: Path) -> Iterator[Any]:
    """A token server."""
    with oracle("token_server").token_server(tmp_path) as server:
        yield server


def _with_login(registry: Any, login: str = "me:secret") -> str:
    return f"{registry.scheme}://{login}@{registry.host}"


def _docker_config(folder: Path, **values: Any) -> None:
    """Write what `docker login` writes."""
    (folder / "docker").mkdir()
    (folder / "docker" / "config.json").write_text(json.dumps(values), encoding="utf-8")


def _auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def _helper(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, status: int = 0) -> None:
    """Put a credential helper called "tests" on PATH, which keeps what it was asked."""
    path = folder / "bin" / "docker-credential-tests"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\ncat > {folder}/asked\ncat <<'END'\n{answer}\nEND\nexit {status}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")


def test_the_commands(docker_registry: Callable[..., Any], publish: Publish) -> None:
    """Over http Ollama must be told so; each file has its line."""
    registry = docker_registry()
    published = publish(registry.url)
    name = f"{registry.host}/library/demo:Q4_K_M"
    assert published.commands == (f"ollama pull --insecure {name}", f"ollama run {name}")
    assert [(check.name, check.state) for check in published.checks] == [
        ("Q4_K_M layers", "proven"),
        ("latest layers", "proven"),
        ("ollama pull", "proven"),
    ]


def test_relative_addresses(docker_registry: Callable[..., Any], publish: Publish) -> None:
    """A registry may answer with addresses relative to the request."""
    registry = docker_registry(relative=True)
    publish(registry.url)
    assert set(registry.visible()) == {"library/demo:Q4_K_M", "library/demo:latest"}


def test_a_second_name_costs_no_upload(docker_registry: Callable[..., Any], publish: Publish) -> None:
    """A large blob that another repository has is mounted from there; nothing large is sent twice."""
    registry, data = docker_registry(), bytes(10_000_001)
    publish(registry.url, "library/demo", data)
    publish(registry.url, "me/demo", data)
    assert registry.visible()["me/demo:latest"] == registry.visible()["library/demo:latest"]
    mounts = [line for line in registry.log.splitlines() if "mount=sha256" in line and "status=" in line]
    assert ["status=201 " in line for line in mounts] == [True]
    sent = [line for line in registry.log.splitlines() if '"PUT /v2/me/demo/blobs' in line]
    assert len(sent) == len(registry.visible()["me/demo:latest"]) - 1


def test_a_dry_run_tells_what_is_there(
    docker_registry: Callable[..., Any], publish: Publish, entry: Callable[..., ReleaseEntry], tmp_path: Path
) -> None:
    """Small blobs are known by their digest, the coming GGUF by its size; what a tag names would be replaced."""
    registry = docker_registry()
    release = Release("library", "demo", (entry(tmp_path / "b.gguf"), entry(tmp_path / "c.gguf", ("F16",), b"GGUF16")))
    with open_target(registry.url) as target:
        before = already_there(target, release)
        publish(registry.url)
        same, other = already_there(target, release)
    assert [(one.n_there, one.replaces) for one in before] == [(0, ()), (0, ())]
    assert (same.n_there, same.replaces) == (len(same.blobs) - 1, ("Q4_K_M", "latest"))
    assert [blob.is_there for blob in same.blobs if blob.digest is None] == [None]
    assert same.bytes_to_send == 4
    assert (other.n_there, other.replaces, other.bytes_to_send) == (len(other.blobs) - 1, (), 6)


def test_the_login_of_the_url(closed: Any, publish: Publish) -> None:
    """User and password in the URL are sent; the name and what is printed do not have them."""
    published = publish(_with_login(closed))
    assert str(published.names[0]) == f"{closed.host}/library/demo:Q4_K_M"
    assert "secret" not in repr(published)
    (check,) = [check for check in published.checks if check.name == "ollama pull"]
    assert (check.state, "login" in check.detail) == ("different", True)


def test_the_report_has_no_password(closed: Any, silent_log: Any) -> None:
    """What is kept of a publication names the registry and not the login; a second one finds all there."""
    job = Job("demo", ("Q4_0",), targets=(_with_login(closed, "me:secret"),), proof="none")
    states = []
    for _ in range(2):
        report = flow.package(job, silent_log)
        assert "me:secret" not in json.dumps(report.as_dict()) + report.path.read_text(encoding="utf-8")
        states += [(one.target, one.state) for one in report.targets]
    assert states == [(closed.url, "published"), (closed.url, "unchanged")]


@pytest.mark.parametrize("login", ["me:wrong", "you:secret"])
def test_a_wrong_login_is_refused_before_the_work(closed: Any, login: str) -> None:
    """Whether we may write is asked before anything is converted, and the hint says how to log in."""
    with open_target(_with_login(closed, login)) as target, pytest.raises(AccessError, match="docker login") as caught:
        target.check("library", "demo", ["Q4_K_M"])
    assert login.partition(":")[2] not in str(caught.value)


def test_no_login(closed: Any, publish: Publish) -> None:
    """Without any login the registry's question is the error."""
    with pytest.raises(AccessError, match="who you are"):
        publish(closed.url)


def test_the_login_of_docker(closed: Any, publish: Publish, tmp_path: Path) -> None:
    """What `docker login` left in config.json is used."""
    _docker_config(tmp_path, auths={closed.host: _auth("me:secret")})
    publish(closed.url)
    assert closed.visible()


@pytest.mark.parametrize("kind", ["credsStore", "credHelpers"])
def test_the_login_of_a_helper(
    closed: Any, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A credential helper is asked for the host, when the registry asks us."""
    _helper(tmp_path, monkeypatch, '{"ServerURL": "", "Username": "me", "Secret": "secret"}')
    _docker_config(tmp_path, **{kind: "tests" if kind == "credsStore" else {closed.host: "tests"}})
    publish(closed.url)
    assert (tmp_path / "asked").read_text(encoding="utf-8") == closed.host


def test_a_helper_that_is_not_there(closed: Any, publish: Publish, tmp_path: Path) -> None:
    """A missing helper is an error only where a login is wanted."""
    _docker_config(tmp_path, credsStore="nowhere")
    with pytest.raises(PipelineError, match="docker-credential-nowhere"):
        publish(closed.url)


def test_a_helper_is_not_asked_in_vain(docker_registry: Callable[..., Any], publish: Publish, tmp_path: Path) -> None:
    """An open registry needs no helper."""
    _docker_config(tmp_path, credsStore="nowhere")
    publish(docker_registry().url)


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_a_token_server(docker_registry: Callable[..., Any], tokens: Any, publish: Publish, field: str) -> None:
    """The token that the realm gives for our login is taken, under either name, for pushing to this repository."""
    tokens.field = field
    registry = docker_registry(auth=tokens.auth)
    published = publish(_with_login(registry))
    assert "proven" in {check.state for check in published.checks}
    assert any("push" in scope and "library/demo" in scope for scope in tokens.asked)


def test_an_identity_token(docker_registry: Callable[..., Any], tokens: Any, publish: Publish, tmp_path: Path) -> None:
    """An identity token of `docker login` is exchanged for a token."""
    registry = docker_registry(auth=tokens.auth)
    _docker_config(tmp_path, auths={registry.host: {"identitytoken": "an identity token"}})
    publish(registry.url)
    assert registry.visible()


def test_a_token_of_the_environment(
    docker_registry: Callable[..., Any], tokens: Any, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that the user has is sent as it is, and nobody is asked for another."""
    registry = docker_registry(auth=tokens.auth)
    token = tokens.grant(["repository:library/demo:pull,push"], is_known=True)
    tokens.asked.clear()
    monkeypatch.setenv("GGUF_PIPELINE_REGISTRY_TOKEN", token)
    publish(registry.url)
    assert registry.visible()
    assert not [scope for scope in tokens.asked if "push" in scope]


def test_tokens_that_expire(docker_registry: Callable[..., Any], tokens: Any, publish: Publish) -> None:
    """A token that is over already at the next request is replaced."""
    registry = docker_registry(auth=tokens.auth)
    tokens.seconds = -59.0  # the registry allows a minute for clocks that differ: each is good for a second
    publish(_with_login(registry))
    assert registry.visible()


@pytest.mark.parametrize("login", ["me:wrong", "you:secret"])
def test_a_token_server_that_refuses(
    docker_registry: Callable[..., Any], tokens: Any, publish: Publish, login: str
) -> None:
    """A login that the token server does not take is the error, with the next step."""
    registry = docker_registry(auth=tokens.auth)
    with pytest.raises(AccessError, match="docker login"):
        publish(_with_login(registry, login))
    assert registry.visible() == {}


def test_reading_only(docker_registry: Callable[..., Any], tokens: Any, publish: Publish) -> None:
    """Whoever may only pull is told so, and does not get into a circle of tokens."""
    registry = docker_registry(auth=tokens.auth)
    with pytest.raises(AccessError, match=r"who you are|does not allow"):
        publish(registry.url)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_tls(secure: tuple[Any, Path], publish: Publish, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """With its CA in the environment the registry is trusted, and Ollama needs no --insecure."""
    registry, ca = secure
    monkeypatch.setenv(variable, str(ca))
    published = publish(registry.url)
    assert published.commands[0] == f"ollama pull {registry.host}/library/demo:Q4_K_M"
    assert "different" not in {check.state for check in published.checks}


def test_an_unknown_ca(secure: tuple[Any, Path], publish: Publish) -> None:
    """A certificate that nobody vouches for is refused at once, with what makes it trusted."""
    with pytest.raises(AccessError, match="not trusted") as caught:
        publish(secure[0].url)
    assert "SSL_CERT_FILE=" in str(caught.value)


def test_the_wrong_scheme(secure: tuple[Any, Path], docker_registry: Callable[..., Any], publish: Publish) -> None:
    """Speaking http to TLS, or TLS to http, says which one is right."""
    plain = docker_registry()
    with pytest.raises(PipelineError, match=f"--to http://{plain.host}"):
        publish(f"https://{plain.host}")
    with pytest.raises(PipelineError, match=f"--to https://{secure[0].host}"):
        publish(f"http://{secure[0].host}")


def test_an_upload_that_leads_elsewhere(
    docker_registry: Callable[..., Any], oracle: Callable[[str], ModuleType], closed: Any, publish: Publish
) -> None:
    """Where a registry leads to another origin, the login does not go along."""
    proxy, other = oracle("proxy"), docker_registry()
    with proxy.fault_proxy(closed.host) as front, proxy.fault_proxy(other.host) as elsewhere:
        leads = proxy.Fault(
            answer=proxy.answer(307, Location=f"http://{elsewhere.host}/v2/library/demo/blobs/uploads/")
        )
        with front.failing(lambda _number, method, _path: leads if method == "POST" else None):
            seen: list[str] = []
            elsewhere.listen = seen.append
            with pytest.raises(AccessError):  # what arrives there is not in the registry
                publish(f"http://me:secret@{front.host}")
    assert any(head.startswith("POST ") for head in seen)
    assert not any("authorization" in head.lower() for head in seen)


def test_our_own_registry_says_that_it_takes_nothing(publish: Publish, tmp_path: Path) -> None:
    """A registry without writing is refused before the work."""
    with (
        BackgroundServer(Store(tmp_path / "own")) as server,
        pytest.raises(AccessError, match=r"takes no models|login"),
    ):
        publish(f"http://{server.address}")


@pytest.mark.parametrize(
    "text",
    [
        "http://",
        "http://host:port",
        "http://host:99999",
        "http://host/path",
        "http://host?x",
        "http://host#x",
        "https://[::1]:5000",
    ],
)
def test_what_is_no_registrys_address(text: str) -> None:
    """An address with more or less than scheme, login, host and port is refused, with the form."""
    with pytest.raises(UsageError, match="--to"):
        open_target(text)


def test_a_password_is_never_shown() -> None:
    """An error about the address leaves the login out."""
    with pytest.raises(UsageError) as caught:
        open_target("http://me:se/cret@host/path")
    assert "se/cret" not in str(caught.value)
