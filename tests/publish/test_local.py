"""The local target: where its models lie and what is to be pasted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.publish import Release, ReleaseEntry, open_target


def test_the_commands(
    entry: Callable[..., ReleaseEntry], release: Callable[..., Release], tmp_path: Path, silent_log: Any
) -> None:
    """The commands serve, pull each quantization, and run the first."""
    first, second = entry(tmp_path / "a"), entry(tmp_path / "b", ("Q8_0",), b"GGUF2")
    with open_target("local") as target:
        published = target.publish(release(first, second), silent_log)
    assert published.commands == (
        "gguf-pipeline serve",
        "ollama pull --insecure localhost:11500/library/demo:Q4_K_M",
        "ollama pull --insecure localhost:11500/library/demo:Q8_0",
        "ollama run localhost:11500/library/demo:Q4_K_M",
    )


def test_another_port_changes_the_commands_only(
    entry: Callable[..., ReleaseEntry],
    release: Callable[..., Release],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    silent_log: Any,
) -> None:
    """Models lie under one folder whatever the registry's address, so that they are served on any port."""
    monkeypatch.setenv("GGUF_PIPELINE_ADDR", "127.0.0.1:5999")
    with open_target("local") as target:
        published = target.publish(release(entry(tmp_path / "a")), silent_log)
    assert published.commands[1] == "ollama pull --insecure localhost:5999/library/demo:Q4_K_M"
    assert (tmp_path / "local/manifests/localhost:11500/library/demo/Q4_K_M").is_file()
    assert str(published.names[0]) == "localhost:11500/library/demo:Q4_K_M"
