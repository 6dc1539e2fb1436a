"""Who may write: whoever knows the token, and the Ollamas whose public keys are in a file.

The token comes as `Authorization: Bearer`, or as the password of Basic, which docker-like clients send.  `ollama push`
can send neither: it answers a Bearer challenge with a request that it signs with its own key (server/auth.go), and
gets a token for an hour and for one repository.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import data
from pipeline.errors import AccessError
from pipeline.serve import _ed25519

SERVICE = "gguf-pipeline"
GRANT_S = 3600
_SKEW_S = 300  # between the clock of an Ollama and ours
_MAX_GRANTS = 1000
_MAX_KEYS_BYTES = 1_000_000
_SSH_TYPE = b"ssh-ed25519"
_SCOPE = re.compile(r"repository:([a-z0-9._/-]{1,200}):([a-z,*]+)")
_WRITING = {"push", "*"}
_NO_BODY = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()


def token_path() -> Path:
    """Return where this user's token for writing lies."""
    return data.data_home() / "registry.token"


def ollama_keys_path() -> Path:
    """Return the file of the public keys of Ollamas that may push, if no other is named."""
    return data.config_home() / "ollama_keys"


def load_token(path: Path) -> str:
    """Return the token in *path*; the first time one is made, in a file that only its owner can read.

    Raises:
        AccessError: if the file can not be read or written, is empty, or others can read it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_name(f".{path.name}-{os.getpid()}")
        if not path.exists():
            with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
            try:
                os.link(temp, path)  # unlike a rename: another server's, made meanwhile, stays
            except FileExistsError:
                pass
            finally:
                temp.unlink()
        mode = path.stat().st_mode & 0o777
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise AccessError(
            "the registry's token can not be read", where=path, found=exc, hint="remove the file"
        ) from exc
    if mode & 0o077:
        raise AccessError("others can read the registry's token", where=path, hint=f"chmod 600 {path}")
    if len(token) < 16:
        raise AccessError("not a token", where=path, expected="16 characters or more", hint="remove the file")
    return token


@dataclass
class Access:
    """The check of one server, for all its threads; *clock* gives seconds since 1970, as an Ollama's requests do."""

    token: str = field(repr=False)
    keys: Path | None = None
    clock: Callable[[], float] = time.time
    _grants: dict[bytes, tuple[str, float]] = field(default_factory=dict)
    _nonces: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def allows(self, authorization: str, repository: str) -> bool:
        """Whether a request with this header may write to *repository*."""
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "basic":
            return self._is_token(_basic_password(value))
        if scheme.lower() != "bearer":
            return False
        granted, until = self._grants.get(_digest(value), ("", 0.0))
        return self._is_token(value) or (granted == repository and until > self.clock())

    def exchange(self, authorization: str, url: str, query: dict[str, str]) -> str | None:
        """Return a token for the repository that *query* names in its scope, or None; *url* is what was signed.

        A scope without "push" gives a token that writes nothing: everybody may read.
        """
        scope = _SCOPE.fullmatch(query.get("scope", ""))
        if scope is None:
            return None
        scheme, _, value = authorization.partition(" ")
        known = self._is_token(_basic_password(value)) if scheme.lower() == "basic" else False
        with self._lock:  # so that of two copies of a signed request one counts, and no grant is lost
            may_ask = known or self._is_signed(authorization, url, query)
            return self._granted(scope[1], scope[2].split(",")) if may_ask else None

    def _granted(self, repository: str, actions: Sequence[str]) -> str:
        now, token = self.clock(), secrets.token_urlsafe(32)
        if not _WRITING.intersection(actions):
            return token
        self._grants = {key: grant for key, grant in self._grants.items() if grant[1] > now}
        while len(self._grants) >= _MAX_GRANTS:
            self._grants.pop(next(iter(self._grants)))
        self._grants[_digest(token)] = (repository, now + GRANT_S)
        return token

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "surrogateescape"), self.token.encode())

    def _is_signed(self, authorization: str, url: str, query: dict[str, str]) -> bool:
        """Whether an Ollama whose key is allowed has signed this very request, lately, and not sent it before."""
        encoded, _, signature = authorization.partition(":")
        if not encoded or encoded not in _allowed_keys(self.keys):
            return False
        now, nonce = self.clock(), query.get("nonce", "")
        self._nonces = {key: until for key, until in self._nonces.items() if until > now}
        if not _is_near(query.get("ts", ""), now) or not nonce or nonce in self._nonces:
            return False
        key, proof = ssh_public_key(encoded), _decoded(signature)
        if key is None or not _ed25519.verify(key, f"GET,{url},{_NO_BODY}".encode(), proof):
            return False
        self._nonces[nonce] = now + 2 * _SKEW_S
        return True


def challenge(realm: str, repository: str) -> str:
    """Make the WWW-Authenticate header; *realm* is the address of the token request."""
    return f'Bearer realm="{realm}",service="{SERVICE}",scope="repository:{repository}:pull,push"'


def signer(authorization: str) -> str | None:
    """Return the public key that a signed request names, as a line for the file of keys; None if there is none."""
    encoded = authorization.partition(":")[0]
    return f"{_SSH_TYPE.decode()} {encoded}" if ssh_public_key(encoded) is not None else None


def ssh_public_key(encoded: str) -> bytes | None:
    """Read the 32 bytes of a public key as ssh writes it: base64 of length and "ssh-ed25519", length and key."""
    blob, head = _decoded(encoded), len(_SSH_TYPE).to_bytes(4, "big") + _SSH_TYPE + (32).to_bytes(4, "big")
    return blob[len(head) :] if blob.startswith(head) and len(blob) == len(head) + 32 else None


def _allowed_keys(path: Path | None) -> set[str]:
    """Read the keys that may push; the file is read each time, so that a new line counts at once."""
    if path is None:
        return set()
    try:
        with path.open("rb") as file:
            lines = file.read(_MAX_KEYS_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return set()
    fields = [line.split() for line in lines]
    return {words[1] for words in fields if len(words) > 1 and words[0] == _SSH_TYPE.decode()}


def _basic_password(value: str) -> str:
    return _decoded(value).decode("utf-8", "replace").partition(":")[2]


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _is_near(text: str, now: float) -> bool:
    return re.fullmatch(r"[0-9]{1,12}", text) is not None and abs(int(text) - now) <= _SKEW_S
