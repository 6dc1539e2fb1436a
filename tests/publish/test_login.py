"""Logins and challenges: what is found where, what is asked of a token server, and bad settings."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import AccessError, FormatError, PipelineError, ToolError
from pipeline.publish._login import Authorizer, Login, TokenRequest, challenges, find_login, token_request

URL = urlsplit("https://registry.example.com:5000")
BEARER = 'Bearer realm="https://auth.example.com/token",service="r",scope="repository:a/b:pull,push"'


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write Docker's config.json."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def write(text: str = "", **values: Any) -> None:
        (tmp_path / "config.json").write_text(text or json.dumps(values), encoding="utf-8")

    return write


def _auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    "key",
    [
        "registry.example.com:5000",
        "https://registry.example.com:5000",
        "https://registry.example.com:5000/v1/",
        "https://registry.example.com:5000/v2/",
    ],
)
def test_dockers_logins(config: Callable[..., None], key: str) -> None:
    """A login is found under every key that Docker has written; a colon may be in the password, none in the user."""
    config(auths={key: _auth("me:pa:ss"), "other": _auth("x:y")})
    assert find_login(URL) == Login("me", "pa:ss")


def test_the_url_wins(config: Callable[..., None]) -> None:
    """A login in the URL, percent-encoded, is taken before Docker's."""
    config(auths={"registry.example.com:5000": _auth("me:docker")})
    assert find_login(urlsplit("https://a%40b:p%2Fw@registry.example.com:5000")) == Login("a@b", "p/w")


@pytest.mark.parametrize(
    ("entry", "login"),
    [
        ({"username": "me", "password": "secret"}, Login("me", "secret")),
        ({"registrytoken": "abc"}, Login(bearer="abc")),
        ({"identitytoken": "abc"} | _auth("me:"), Login("me", "", identity="abc")),
        ({}, Login()),
    ],
)
def test_other_entries(config: Callable[..., None], entry: dict[str, str], login: Login) -> None:
    """Docker's other ways to keep a login."""
    config(auths={"registry.example.com:5000": entry})
    assert find_login(URL) == login


@pytest.mark.parametrize("values", [{}, {"auths": []}, {"auths": {"other": {}}}, {"credHelpers": {"other": "x"}}])
def test_no_login(config: Callable[..., None], values: dict[str, Any]) -> None:
    """Settings without this registry give an empty login, as does no file."""
    assert find_login(URL) == Login()
    config(**values)
    assert find_login(URL) == Login()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"auths": {"registry.example.com:5000": {"auth": "%%"}}}'])
def test_bad_settings(config: Callable[..., None], text: str) -> None:
    """Settings that can not be read are said, with their file."""
    config(text)
    with pytest.raises(FormatError, match=r"config\.json"):
        find_login(URL)


@pytest.mark.parametrize("name", ["../x", "a b", ""])
def test_a_helper_is_a_program_of_its_name(config: Callable[..., None], name: str) -> None:
    """A helper's name can not be a path or a command line."""
    config(credsStore=name)
    if name:
        with pytest.raises(FormatError, match="helper"):
            find_login(URL)
    else:
        assert find_login(URL) == Login()


@pytest.mark.parametrize(
    ("answer", "status", "found"),
    [
        ('{"Username": "me", "Secret": "s"}', 0, Login("me", "s")),
        ('{"Username": "<token>", "Secret": "t"}', 0, Login(identity="t")),
        ("credentials not found in native keychain", 1, Login()),
        ("the keychain is locked", 1, ToolError),
        ("no JSON", 0, ToolError),
        ("{}", 0, ToolError),
    ],
)
def test_what_helpers_answer(
    config: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    status: int,
    found: Login | type[PipelineError],
) -> None:
    """A helper's login, its token, that it has none, and its failures."""
    program = tmp_path / "docker-credential-tests"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {status}\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    config(credsStore="tests")
    if isinstance(found, Login):
        assert find_login(URL) == found
        return
    with pytest.raises(found, match="docker-credential-tests"):
        find_login(URL)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Basic realm="r"', [("basic", {"realm": "r"})]),
        (
            BEARER,
            [
                (
                    "bearer",
                    {"realm": "https://auth.example.com/token", "service": "r", "scope": "repository:a/b:pull,push"},
                )
            ],
        ),
        (
            'bearer Realm=x, service="a, b" , Basic realm=y',
            [("bearer", {"realm": "x", "service": "a, b"}), ("basic", {"realm": "y"})],
        ),
        ('Negotiate abc, Basic realm=""', [("basic", {"realm": ""})]),
        ("Bearer", []),
        ("", []),
    ],
)  # fmt: skip
def test_challenges(text: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    """Schemes in any case and order, parameters quoted or not."""
    assert challenges(text) == expected


@given(st.text(alphabet='Basicrl Bea="\\,;-_ ', max_size=300))
def test_any_challenge_is_read(text: str) -> None:
    """No header breaks the reader."""
    assert all(scheme in ("basic", "bearer") for scheme, _ in challenges(text))


def test_what_a_token_server_is_asked() -> None:
    """Each scope by itself, with the user's name; an identity token is posted as OAuth2 wants it."""
    ((_, parameters),) = challenges(BEARER.replace("push", "push repository:c/d:pull"))
    asked = token_request(parameters, Login("me", "secret"))
    assert asked.query == (
        ("service", "r"),
        ("scope", "repository:a/b:pull,push"),
        ("scope", "repository:c/d:pull"),
    )
    assert asked.authorization == "Basic " + base64.b64encode(b"me:secret").decode()
    posted = token_request(parameters, Login(identity="t"))
    assert posted.form is not None
    assert (posted.form["grant_type"], posted.form["refresh_token"]) == ("refresh_token", "t")
    assert posted.authorization is None


@pytest.mark.parametrize("answer", [None, [], {}, {"token": 1}, {"token": ""}])
def test_a_token_servers_nonsense(answer: object) -> None:
    """What is no token is an error that names the server."""
    authorizer = Authorizer(URL, lambda _request: answer)
    with pytest.raises(AccessError, match=r"auth\.example\.com"):
        authorizer.accept(BEARER)


def test_secrets_are_not_shown() -> None:
    """Neither a login nor what is asked with it shows a secret when it is printed."""
    login = Login("me", "s3cret", "s3cret", "s3cret")
    assert "s3cret" not in repr(login)
    assert "s3cret" not in repr(token_request({"realm": "r"}, login))
    assert "czNjcmV0" not in repr(TokenRequest("r", (), authorization="Basic bWU6czNjcmV0"))
