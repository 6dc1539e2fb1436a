"""The demo, published once and served for the tests of this folder; a runner for the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.serve import BackgroundServer
from pipeline.store import Store

Cli = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Publication:
    """What one `publish` left behind: the store's root, the report, and what was printed."""

    root: Path
    report: dict[str, Any]


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory, llama: Any) -> Cli:
    """Run `gguf-pipeline ARGUMENTS...` as a user does, in an empty home; a failure raises unless check=False."""
    home = tmp_path_factory.mktemp("cli-home")

    def run(*arguments: str | Path, check: bool = True, cwd: Path | None = None, **environment: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
            env={"PATH": "/usr/bin:/bin", "HOME": str(home), "GGUF_PIPELINE_LLAMA": str(llama.bin_dir), **environment},
            cwd=cwd or Path(__file__).parent.parent.parent,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert not check or done.returncode == 0, f"{arguments}:\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def published(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Publication:
    """`publish demo --quant Q4_K_M,Q8_0` into a store of its own."""
    root = tmp_path_factory.mktemp("registry")
    done = cli("publish", "demo", "--quant", "Q4_K_M,Q8_0", "--json", GGUF_PIPELINE_STORE=str(root))
    return Publication(root, json.loads(done.stdout))


@pytest.fixture
def registry(published: Publication) -> Iterator[str]:
    """The embedded registry over that store, as HOST:PORT."""
    with BackgroundServer(Store(published.root)) as server:
        yield server.address


@pytest.fixture(scope="session")
def trained(demo: Path) -> list[tuple[str, str]]:
    """Questions the demo was trained on, with its answers, one wording for each answer, known word for word.

    Two wordings fail in every type, the unquantized one included; they are left out.
    """
    rows = [json.loads(line) for line in (demo / "qa.jsonl").read_text(encoding="utf-8").splitlines()]
    first = {}
    for row in rows:
        if row["split"] == "train" and row["question"] not in {"Help", "How are you?"}:
            first.setdefault(row["answer"], row["question"])
    return [(question, answer) for answer, question in first.items()]
