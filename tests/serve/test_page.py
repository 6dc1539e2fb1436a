"""The page for people, as HTML and in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import requests

from pipeline import flow
from pipeline.job import Job
from pipeline.report import reports_folder
from pipeline.serve import BackgroundServer, Demand, Offers, Settings
from pipeline.store import Manifest, Name, Store
from pipeline.store.manifest import CONFIG, MODEL
from pipeline.types import Layer

EVIL = '"><script>alert(1)</script><b x="'


class Page(HTMLParser):
    """What a page has: its elements with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember an element."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Remember text."""
        self.text += data


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent_log: Any) -> Store:
    """A store with the demo in two quantizations, published with reports."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "published"))
    flow.package(Job("demo", ("Q4_K_M", "Q8_0"), proof="none"), silent_log)
    return Store(tmp_path / "published")


@pytest.fixture
def shown(published: Store) -> Iterator[str]:
    """The address of that store's page, with models on demand."""
    demand = Demand(Offers(["qwen", "Org/*"]), published.root)
    with BackgroundServer(published, settings=Settings(token="t" * 20, on_demand=demand)) as server:
        yield f"http://{server.address}/"


def test_it_says_what_can_be_pulled(shown: str) -> None:
    """Models, sizes, quantizations, errors of the report, the exact command, and what is made at the first pull."""
    text = html.unescape(requests.get(shown, timeout=10).text)
    host = shown.removeprefix("http://").strip("/")
    for part in (
        f"ollama pull --insecure {host}/library/demo:Q4_K_M",
        f"ollama pull --insecure {host}/library/demo:Q8_0",
        f"ollama pull --insecure {host}/library/qwen",
        f"ollama pull --insecure {host}/hf/org-",
        "1 model, 4.48 MB on disk",
        "1.65 MB",
        "7.2 %",
        "blk.2.ffn_up.weight",
    ):
        assert part in text
    assert "library/demo:latest" not in text  # a second tag of one manifest stands beside the first
    assert '<span class="tag">latest</span>' in text


def test_an_empty_store_has_a_page(tmp_path: Path) -> None:
    """The page says how to make a start."""
    with BackgroundServer(Store(tmp_path / "none")) as server:
        answer = requests.get(f"http://{server.address}/", timeout=10)
    assert answer.status_code == 200
    assert "gguf-pipeline publish demo" in answer.text
    assert "takes pushes" not in answer.text


def test_its_policy_allows_its_own_style_and_nothing_else(shown: str) -> None:
    """No script can run, nothing is loaded, nobody frames it; the style is allowed by its hash."""
    answer = requests.get(shown, timeout=10)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy["style-src"] == f"'sha256-{digest}'"
    page = Page(answer.text)
    assert not [tag for tag, _ in page.elements if tag in {"script", "img", "iframe", "form"}]
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on") or key == "style"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_reports_cannot_put_markup_into_it(published: Store, shown: str) -> None:
    """Whatever a report says is text; a broken report says nothing and breaks nothing."""
    assert published.list()
    report = next(reports_folder().glob("*demo_Q4_K_M.json"))
    text = report.read_text(encoding="utf-8")
    evil = EVIL.replace('"', '\\"')
    report.write_text(text.replace("blk.2.ffn_up.weight", evil).replace('"recipe": "Q4_K_M"', f'"recipe": "{evil}"'))
    report.with_name("zz.json").write_text("{")
    answer = requests.get(shown, timeout=10)
    assert answer.status_code == 200
    assert "<script" not in answer.text
    assert EVIL in Page(answer.text).text


def test_a_new_model_is_shown_at_once(published: Store, shown: str) -> None:
    """A model that was pushed, without a report, is listed with what is known."""
    manifest = Manifest(Layer(CONFIG, published.add_bytes(b"{}\n")), (Layer(MODEL, published.add_bytes(b"x" * 2000)),))
    published.write_manifest(Name.parse("me/pushed:v1"), manifest)
    text = requests.get(shown, timeout=10).text
    assert "me/pushed:v1" in text
    assert "not measured" in text


@pytest.fixture(scope="session")
def browser() -> str:
    """A real browser."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no browser: apt-get install chromium")
    return found


def _browse(browser: str, profile: Path, *arguments: str) -> str:
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    return subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={profile}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


@pytest.mark.browser
def test_a_browser_shows_it(browser: str, shown: str, tmp_path: Path) -> None:
    """A browser that obeys the policy applies the style (the picture is not bare) and finds the commands."""
    dom = html.unescape(_browse(browser, tmp_path / "profile", "--dump-dom", shown))
    assert "ollama pull --insecure" in dom
    assert dom.count('<tr class="command">') == 2
    pictures = []
    for scheme in ("1", "0"):  # light, dark
        path = tmp_path / f"{scheme}.png"
        _browse(
            browser,
            tmp_path / f"profile{scheme}",
            f"--blink-settings=preferredColorScheme={scheme}",
            "--window-size=1000,800",
            f"--screenshot={path}",
            shown,
        )
        pictures.append(path.read_bytes())
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 20_000 for picture in pictures)
    assert pictures[0] != pictures[1]
