"""The wire to one registry: requests sent once or insisted on, redirects and logins, and refusals in our words."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

import requests

from pipeline.errors import AccessError, PipelineError
from pipeline.patience import Patience, asked_wait
from pipeline.publish import _refusals
from pipeline.publish._body import Body
from pipeline.publish._login import Authorizer, TokenRequest
from pipeline.publish._refusals import Answer
from pipeline.runtime.web import session

T = TypeVar("T")

PATIENCE = Patience()

_CONNECT_SECONDS = 30.0  # also how long the registry may take none of the bytes that are sent
_ANSWER_SECONDS = 60.0
_MAX_ANSWER_BYTES = 4 << 20
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 429, 502, 503, 504)


class TransientError(Exception):
    """What may pass by itself; *final* is what to say if it does not, *asked* the seconds that the registry asked for.

    *is_absent* says that nobody took the connection.
    """

    def __init__(self, final: PipelineError, asked: float | None = None, *, is_absent: bool = False) -> None:
        super().__init__(str(final))
        self.final, self.asked, self.is_absent = final, asked, is_absent


class Tries:
    """Counts the failures of one task since it last got ahead, and waits after each."""

    def __init__(self, patience: Patience) -> None:
        self._patience, self._failures, self._never = patience, 0, threading.Event()

    def got_ahead(self) -> None:
        """Start counting anew."""
        self._failures = 0

    def again(self, error: TransientError) -> None:
        """Wait before the next try.

        Raises:
            PipelineError: if it has failed too often.
        """
        self._failures += 1
        wait = self._patience.wait_after(self._failures, error.asked)
        if wait is None:
            raise error.final from error
        self._patience.pause(self._never, wait)


@dataclass(frozen=True)
class Request:
    """What is sent; *body* makes the body anew for each sending.  *seconds* is how long the answer may take."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], Body | bytes] | None = None
    seconds: float = _ANSWER_SECONDS


class Wire:
    """Speaks to the registry at *url* ("http://host:port"); relative addresses are resolved against it."""

    def __init__(self, url: SplitResult, patience: Patience | None = None) -> None:
        self.base = f"{url.scheme}://{url.hostname}" + (f":{url.port}" if url.port else "")
        self.patience = patience or PATIENCE
        self._authorizer = Authorizer(url, self._fetch_token)
        self.host = url.hostname or ""
        self._session = session(self.host)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @property
    def is_logged_in(self) -> bool:
        """Whether the registry wanted to know who we are."""
        return self._authorizer.header is not None

    def login(self, challenge: str) -> str | None:
        """Answer a WWW-Authenticate header of the registry: the header to send to it, or None if we have no login.

        Raises:
            PipelineError: if the login cannot be found out.
        """
        self._authorizer.accept(challenge)
        return self._authorizer.header

    def ask(self, request: Request) -> Answer:
        """Send a request that may be repeated, until an answer comes; the answer may be a refusal.

        Raises:
            AccessError: if the registry can not be reached, or stays out of order.
        """
        return self.insist(lambda: self.send(request))

    def insist(self, act: Callable[[], T]) -> T:
        """Call *act* as often as the patience allows while it raises TransientError.

        Raises:
            PipelineError: what the last one stands for.
        """
        tries = Tries(self.patience)
        while True:
            try:
                return act()
            except TransientError as error:
                tries.again(error)

    def send(self, request: Request) -> Answer:
        """Send a request once; follow redirects, and answer a challenge.

        Raises:
            TransientError: if the connection breaks, or the registry asks to come again.
            AccessError: if it can not be sent at all.
        """
        url = urljoin(self.base + "/", request.url)
        for _ in range(_MAX_REDIRECTS):
            answer = self._authorized(request, url)
            if answer.status in _TRANSIENT:
                raise TransientError(_refusals.refusal(answer), asked_wait(answer.headers))
            target = answer.headers.get("Location")
            keeps_method = request.method in ("GET", "HEAD") or answer.status in (307, 308)
            if answer.status not in _REDIRECTS or not keeps_method or not target:
                return answer
            url = self.resolve(url, target)
        raise AccessError("the registry redirects in a circle", where=url)

    def resolve(self, url: str, location: str) -> str:
        """Return the address that a Location header means.

        Raises:
            AccessError: if it leads from https to http: the bytes, and the login, would be readable on their way.
        """
        target = urljoin(url, location)
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            raise AccessError(
                "the registry leads from https to http",
                where=url,
                found=without_query(target),
                hint="behind a proxy that speaks TLS, tell the registry so: X-Forwarded-Proto, or http.relativeurls",
            )
        return target

    def _authorized(self, request: Request, url: str) -> Answer:
        """Send with the login, which is for the registry alone, and once more if it is asked for."""
        is_ours = _origin(url) == _origin(self.base)
        header = self._authorizer.header if is_ours else None
        answer = self._once(request, url, header)
        if answer.status == 401 and is_ours and self._authorizer.accept(answer.headers.get("WWW-Authenticate", "")):
            return self._once(request, url, self._authorizer.header)
        return answer

    def _once(self, request: Request, url: str, authorization: str | None) -> Answer:
        headers = {"Accept-Encoding": "identity", **request.headers}
        if authorization:
            headers["Authorization"] = authorization
        try:
            with self._session.request(
                request.method, url, headers=headers, data=request.body() if request.body else None,
                timeout=(_CONNECT_SECONDS, request.seconds), allow_redirects=False, stream=True,
            ) as response:  # fmt: skip
                data = bounded(response, _MAX_ANSWER_BYTES)
                return Answer(request.method, without_query(url), response.status_code, response.headers, data)
        except requests.exceptions.SSLError as exc:
            raise _refusals.untrusted(self.base, exc) from exc
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as exc:
            raise TransientError(_refusals.unreachable(self.base, exc), is_absent=_refusals.is_absent(exc)) from exc
        except requests.RequestException as exc:
            raise AccessError("not an address to send to", where=without_query(url), found=exc) from exc

    def _fetch_token(self, wanted: TokenRequest) -> Any:
        realm = self.resolve(self.base, wanted.realm)
        query = requests.models.PreparedRequest()
        query.prepare_url(realm, list(wanted.query))
        form = wanted.form
        request = Request("POST" if form else "GET", str(query.url), {"Accept": "application/json"})
        if form:
            made = requests.Request("POST", realm, data=dict(form)).prepare()
            text = str(made.body).encode()
            headers = {**request.headers, "Content-Type": "application/x-www-form-urlencoded"}
            request = Request("POST", request.url, headers, lambda: text)
        answer = self.insist(lambda: self._transient(self._once(request, request.url, wanted.authorization)))
        if answer.status != 200:
            raise _refusals.refusal(answer, self.base)
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as exc:
            raise AccessError("the token server's answer is not JSON", where=answer.url) from exc

    @staticmethod
    def _transient(answer: Answer) -> Answer:
        if answer.status in _TRANSIENT:
            raise TransientError(_refusals.refusal(answer), asked_wait(answer.headers))
        return answer


@contextmanager
def login_for(target: str) -> Iterator[Callable[[str], str | None]]:
    """Give what answers the challenges of the registry at *target* with the login that publishing there takes."""
    wire = Wire(urlsplit(target))
    try:
        yield wire.login
    finally:
        wire.close()


def bounded(response: requests.Response, limit: int) -> bytes:
    """Return the body of an answer, or its first *limit* bytes."""
    data = b""
    for piece in response.iter_content(1 << 16):
        data += piece
        if len(data) >= limit:
            break
    return data[:limit]


def without_query(url: str) -> str:
    """Return an address that may be shown: the query of an upload's or a signed address is a secret."""
    return url.partition("?")[0]


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
