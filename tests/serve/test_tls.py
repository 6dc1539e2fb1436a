"""https with a certificate of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import trustme

from pipeline.errors import UsageError
from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Store


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that nobody knows."""
    return trustme.CA()


@pytest.fixture
def settings(authority: trustme.CA, tmp_path: Path) -> Settings:
    """Settings with a certificate for localhost."""
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return Settings(token="t" * 20, certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")


@pytest.fixture
def secure(store: Store, settings: Settings) -> Iterator[BackgroundServer]:
    """The store, served over https."""
    with BackgroundServer(store, settings=settings) as running:
        yield running


def test_reading_and_writing(secure: BackgroundServer, tmp_path: Path) -> None:
    """Who trusts the authority reads and writes; addresses in answers are https; others are turned away."""
    url, ca = f"https://{secure.registry}", str(tmp_path / "ca.pem")
    place = f"{url}/v2/me/new/blobs/uploads/"
    with requests.Session() as session:
        session.trust_env, session.verify, session.headers["Connection"] = False, ca, "close"
        assert session.get(f"{url}/v2/library/demo/tags/list", timeout=10).status_code == 200
        refused = session.post(place, timeout=10).headers["WWW-Authenticate"]
        assert f'realm="{url}/token"' in refused
        begun = session.post(place, auth=("", "t" * 20), timeout=10).headers["Location"]
        assert begun.startswith(place)
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{url}/v2/", timeout=10)


def test_the_page_shows_commands_for_https(secure: BackgroundServer, tmp_path: Path) -> None:
    """Over https a pull needs no --insecure."""
    page = requests.get(f"https://{secure.registry}/", verify=str(tmp_path / "ca.pem"), timeout=10).text
    assert f"ollama pull {secure.registry}/library/demo:Q4_K_M" in page
    assert "--insecure" not in page


@pytest.mark.parametrize("broken", ["certificate", "key", "mixed", "none"])
def test_a_bad_certificate(store: Store, settings: Settings, tmp_path: Path, broken: str) -> None:
    """A missing, broken or foreign file stops the server before it starts, with what is expected."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    if broken == "certificate":
        certificate.write_text("nonsense")
    elif broken == "key":
        key.unlink()
    elif broken == "mixed":
        trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(key)
    given = settings if broken != "none" else Settings(certificate=certificate)
    with pytest.raises(UsageError, match="certificate"), BackgroundServer(store, settings=given):
        pytest.fail("it must not start")
