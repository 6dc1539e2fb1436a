"""The command `serve`: its options, and what it says."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.store import Store


@contextmanager
def served(folder: Path, store: Store, *options: str) -> Iterator[tuple[str, list[str]]]:
    """Run `gguf-pipeline serve` on a free port in an empty home; gives its address and what it said."""
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder / "data"), "XDG_CONFIG_HOME": str(folder / "config")}
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "serve", "--port", "0", *options],
        env={**os.environ, **home, "GGUF_PIPELINE_STORE": str(store.root)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            lines = [process.stderr.readline()]
            found = re.search(r"http://(\S+)", lines[0])
            assert found, lines[0] + process.stderr.read()
            lines.append(process.stderr.readline())
            yield found[1], lines
        finally:
            process.terminate()
            assert process.wait(20) == 0
            process.stderr.read()


def test_it_says_where_the_token_is(store: Store, tmp_path: Path) -> None:
    """The token is made in the user's data folder, for the user alone, and the path is printed; it lets one push."""
    path = tmp_path / "data" / "gguf-pipeline" / "registry.token"
    with served(tmp_path, store) as (address, lines):
        assert str(path) in lines[1]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        token = path.read_text(encoding="ascii").strip()
        url = f"http://{address}/v2/me/new/blobs/uploads/"
        assert requests.post(url, timeout=10).status_code == 401
        assert requests.post(url, headers={"Authorization": f"Bearer {token}"}, timeout=10).status_code == 202
    with served(tmp_path, store) as (address, _):
        url = f"http://{address}/v2/me/new/blobs/uploads/"
        assert requests.post(url, headers={"Authorization": f"Bearer {token}"}, timeout=10).status_code == 202


def test_read_only(store: Store, tmp_path: Path) -> None:
    """With --read-only nothing is taken, and no token is made."""
    with served(tmp_path, store, "--read-only") as (address, lines):
        assert lines[1] == "read-only\n"
        assert requests.post(f"http://{address}/v2/me/new/blobs/uploads/", timeout=10).status_code == 405
    assert not (tmp_path / "data").exists()


def test_on_demand_shows_its_offers(store: Store, tmp_path: Path) -> None:
    """Entries of options and of a file are offered together."""
    (tmp_path / "allow").write_text("org/name\n", encoding="utf-8")
    options = ("--on-demand", "--allow", "demo", "--allow-file", str(tmp_path / "allow"), "--max-size", "0.001")
    with served(tmp_path, store, *options) as (address, _):
        page = requests.get(f"http://{address}/", timeout=10).text
        assert f"{address}/library/demo" in page
        assert f"{address}/hf/org-name" in page
        too_large = requests.get(f"http://{address}/v2/library/demo/manifests/Q5_K_M", timeout=120)
        assert too_large.status_code == 507


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--allow", "demo"), "add --on-demand"),
        (("--max-size", "1"), "add --on-demand"),
        (("--on-demand",), "add --allow MODEL"),
        (("--on-demand", "--allow", "no such"), "nothing that can be allowed"),
        (("--on-demand", "--allow-file", "/nonexistent"), "allow-list cannot be read"),
        (("--tls-cert", "/nonexistent"), "--tls-key"),
        (("--tls-cert", "/nonexistent", "--tls-key", "/nonexistent"), "certificate can not be used"),
        (("--host", "0.0.0.0"), "--allow-remote"),  # noqa: S104  refused
    ],
)
def test_options_that_do_not_fit(options: tuple[str, ...], told: str) -> None:
    """What cannot work is wrong usage, said before anything listens."""
    done = CliRunner().invoke(main, ["serve", "--port", "0", *options])
    assert done.exit_code == 2
    assert told in done.output
