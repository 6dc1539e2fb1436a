"""Who we are to a registry: the login that a person left for it, and the answer to its challenge.

Follows the distribution project's token authentication, and Docker's config.json and credential helpers.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote

from pipeline.errors import AccessError, FormatError, ToolError

TOKEN_VARIABLE = "GGUF_PIPELINE_REGISTRY_TOKEN"  # noqa: S105  # its name

_HELPER_SECONDS = 60.0
_MAX_CONFIG_BYTES = 4 << 20
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CHALLENGE = re.compile(r'\b(Basic|Bearer)\s+((?:[\w-]+=(?:"[^"]*"|[^\s,"]*)[\s,]*)+)', re.IGNORECASE)
_PARAMETER = re.compile(r'([\w-]+)=(?:"([^"]*)"|([^\s,"]*))')


@dataclass(frozen=True)
class Login:
    """A user with a password, or a token: *bearer* as it is, *identity* to be exchanged for one."""

    user: str = ""
    password: str = field(default="", repr=False)
    bearer: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)

    @property
    def basic(self) -> str | None:
        """The header of Basic authentication, or None without a user."""
        if not self.user:
            return None
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class TokenRequest:
    """What to ask the realm of a Bearer challenge; *form* is posted where there is one, else *query* is asked."""

    realm: str
    query: tuple[tuple[str, str], ...]
    form: Mapping[str, str] | None = field(default=None, repr=False)
    authorization: str | None = field(default=None, repr=False)


class Authorizer:
    """Holds the Authorization header for one registry; *fetch* asks a token server and returns its JSON."""

    def __init__(self, url: SplitResult, fetch: Callable[[TokenRequest], Any]) -> None:
        self._url, self._fetch = url, fetch
        self._login: Login | None = None
        token = os.environ.get(TOKEN_VARIABLE)
        self._is_given = bool(token) and not url.username
        self.header = f"Bearer {token}" if self._is_given else None

    def accept(self, challenge: str) -> bool:
        """Answer a WWW-Authenticate header; False if there is nothing (new) to say.

        Raises:
            AccessError, ToolError, FormatError: if the login can not be found out.
        """
        if self._is_given:
            return False  # the user said what to send
        before, login = self.header, self._known()
        realms = [known for scheme, known in challenges(challenge) if scheme == "bearer" and known.get("realm")]
        if login.bearer:
            self.header = f"Bearer {login.bearer}"
        else:
            self.header = f"Bearer {self._token(realms[0], login)}" if realms else login.basic
        return self.header is not None and self.header != before

    def _known(self) -> Login:
        """Look the login up when it is first needed: a credential helper may ask the user."""
        if self._login is None:
            self._login = find_login(self._url)
        return self._login

    def _token(self, parameters: Mapping[str, str], login: Login) -> str:
        answer = self._fetch(token_request(parameters, login))
        token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
        if not isinstance(token, str):
            raise AccessError("the token server gave no token", where=parameters["realm"])
        return token


def challenges(text: str) -> list[tuple[str, dict[str, str]]]:
    """Split a WWW-Authenticate header into its schemes, in lower case, and their parameters."""
    return [
        (scheme.lower(), {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(rest)})
        for scheme, rest in _CHALLENGE.findall(text)
    ]


def token_request(parameters: Mapping[str, str], login: Login) -> TokenRequest:
    """Make what Docker asks a token server: one scope each, with the user's name, or with an identity token."""
    service, scopes = parameters.get("service", ""), parameters.get("scope", "").split()
    if login.identity:
        form = {"grant_type": "refresh_token", "refresh_token": login.identity, "client_id": "gguf-pipeline"}
        return TokenRequest(parameters["realm"], (), form | {"service": service, "scope": " ".join(scopes)})
    query = [("service", service)] if service else []
    query += [("scope", scope) for scope in scopes]
    return TokenRequest(parameters["realm"], tuple(query), authorization=login.basic)


def find_login(url: SplitResult) -> Login:
    """Return the login for a registry: in its URL, else what `docker login` left; an empty one if there is none.

    Raises:
        ToolError: if Docker's settings name a credential helper that fails.
        FormatError: if Docker's config.json can not be read.
    """
    if url.username:
        return Login(unquote(url.username), unquote(url.password or ""))
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    config = _read(path)
    host = url.netloc
    helper = _object(config, "credHelpers").get(host) or config.get("credsStore")
    if helper:
        found = _ask_helper(str(helper), host, path)
        if found:
            return found
    auths = _object(config, "auths")
    for key in (host, f"{url.scheme}://{host}", f"https://{host}", f"https://{host}/v1/", f"https://{host}/v2/"):
        entry = auths.get(key)
        if isinstance(entry, dict):
            return _entry(entry, path)
    return Login()


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES)
        config = json.loads(data)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise FormatError("Docker's settings can not be read", where=path, found=exc, hint="mend or move it") from exc
    return config if isinstance(config, dict) else {}


def _object(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _entry(entry: Mapping[str, Any], path: Path) -> Login:
    """Read one entry of "auths"."""
    user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if entry.get("auth"):
        try:
            user, _, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
        except (binascii.Error, ValueError) as exc:
            raise FormatError("a login that is not base64", where=path, hint="log in again: docker login") from exc
    tokens = [str(entry.get(key) or "") for key in ("registrytoken", "identitytoken")]
    return Login(user, password.rstrip("\0"), *tokens)


def _ask_helper(name: str, host: str, path: Path) -> Login | None:
    """Ask docker-credential-<name> for the login; None if it has none."""
    program = f"docker-credential-{name}"
    if not _HELPER_NAME.fullmatch(name):
        raise FormatError("not a credential helper's name", where=path, found=repr(name)[:80])
    try:
        done = subprocess.run(
            [program, "get"], input=host, capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False
        )
        if done.returncode:
            if "not found" in done.stdout + done.stderr:
                return None
            raise ToolError(f"{program} failed", found=(done.stdout or done.stderr).strip()[:300], hint="docker login")
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise ToolError(
            f"{program} can not be run", where=path, found=exc, hint=f"install it, or set {TOKEN_VARIABLE}"
        ) from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise ToolError(f"{program} gave no login", found=type(exc).__name__, hint="docker login") from exc
    return Login(identity=secret) if user == "<token>" else Login(user, secret)
