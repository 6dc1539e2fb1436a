"""A token server for docker-registry: a small real one, that signs what it grants with a key made for the test."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

ISSUER, SERVICE = "the tests", "the registry"


@dataclass
class TokenServer:
    """Grants everything to *logins* ("user:password") and to who brings an identity token, and pulls to anybody.

    *named* is the name of the token in the answer, *seconds* how long one is good; *asked* are the scopes that were
    asked for.
    """

    url: str
    certificate: Path
    key: rsa.RSAPrivateKey
    logins: set[str] = field(default_factory=lambda: {"me:secret"})
    identities: set[str] = field(default_factory=lambda: {"an identity token"})
    named: str = "token"
    seconds: float = 300.0
    asked: list[str] = field(default_factory=list)

    @property
    def auth(self) -> dict[str, Any]:
        """The section "auth" of a registry that trusts this server."""
        values = {"realm": f"{self.url}/token", "service": SERVICE, "issuer": ISSUER}
        return {"token": values | {"rootcertbundle": str(self.certificate)}}

    def grant(self, scopes: list[str], *, is_known: bool) -> str:
        """Sign a token for what may be done of *scopes*."""
        self.asked += scopes
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            allowed = [action for action in actions.split(",") if is_known or action == "pull"]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = datetime.now(UTC)
        start, end = now - timedelta(minutes=5), now + timedelta(seconds=self.seconds)
        claims = {"iss": ISSUER, "sub": "me", "aud": SERVICE, "jti": "1", "access": access}
        claims |= {"nbf": int(start.timestamp()), "iat": int(start.timestamp()), "exp": int(end.timestamp())}
        certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        der = certificate.public_bytes(serialization.Encoding.DER)
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        text = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        return f"{text}.{_base64url(self.key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _certificate(key: rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "token server of the tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    return made.public_bytes(serialization.Encoding.PEM)


@contextlib.contextmanager
def token_server(folder: Path) -> Iterator[TokenServer]:
    """Serve on a free port until the block ends; the certificate lies in *folder*."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    certificate = folder / "token-server.pem"
    certificate.write_bytes(_certificate(key))
    holder: list[TokenServer] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            login = self.headers.get("Authorization", "")
            if not login:
                self._answer(asked.get("scope", []), is_known=False)
                return
            is_known = base64.b64decode(login.removeprefix("Basic ")).decode() in holder[0].logins
            self._answer(asked.get("scope", []), is_known=True) if is_known else self._send(401, {})

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            if form["grant_type"] == ["refresh_token"] and form["refresh_token"][0] in holder[0].identities:
                self._answer(form.get("scope", [""])[0].split(), is_known=True)
            else:
                self._send(401, {})

        def _answer(self, scopes: list[str], *, is_known: bool) -> None:
            split = [one for scope in scopes for one in scope.split()]
            self._send(200, {holder[0].named: holder[0].grant(split, is_known=is_known)})

        def _send(self, status: int, body: dict[str, str]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Keep the tests quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        holder.append(TokenServer(f"http://127.0.0.1:{server.server_port}", certificate, key))
        try:
            yield holder[0]
        finally:
            server.shutdown()
            thread.join()
