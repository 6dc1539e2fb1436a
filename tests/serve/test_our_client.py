"""`publish --to http://...` of this package, against the embedded registry of another store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import flow
from pipeline.errors import AccessError
from pipeline.job import Job
from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Name, Store

TOKEN = "t" * 20


@pytest.mark.parametrize("login", ["variable", "address"])
def test_publish_to_our_registry(monkeypatch: pytest.MonkeyPatch, silent_log: Any, tmp_path: Path, login: str) -> None:
    """A model is published from elsewhere with the token, in the variable or as the password of the address."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "here"))
    store = Store(tmp_path / "there")
    with BackgroundServer(store, settings=Settings(token=TOKEN)) as server:
        job = Job("demo", ("Q8_0",), targets=(f"http://{server.registry}",), proof="none")
        with pytest.raises(AccessError):
            flow.package(job, silent_log)
        assert store.list() == ()
        if login == "variable":
            monkeypatch.setenv("GGUF_PIPELINE_REGISTRY_TOKEN", TOKEN)
        else:
            job = Job("demo", ("Q8_0",), targets=(f"http://me:{TOKEN}@{server.registry}",), proof="none")
        report = flow.package(job, silent_log)
    assert [one.target for one in report.targets] == [f"http://{server.registry}"]
    assert TOKEN not in report.path.read_text()
    for tag in ("Q8_0", "latest"):
        assert all(row.ok for row in store.verify(Name.parse(f"demo:{tag}")))
    assert {check.state for check in report.checks if "pull" in check.name} <= {"proven"}
    assert f"ollama pull --insecure {server.registry}/library/demo:Q8_0" in report.targets[0].commands
