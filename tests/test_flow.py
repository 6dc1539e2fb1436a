"""Choices of the flow that no stage makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import flow
from pipeline.progress import Reporter

QUIET = Reporter(quiet=True)


def test_quantization_where_nobody_says_one(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    """The user's word comes first, then a GGUF's own type, then the alias's row, then the default."""
    (tmp_path / "models.toml").write_text(f'[mine]\nfolder = "{demo}"\nquant = "Q5_K_S"\ndescription = "x"\n')
    monkeypatch.chdir(tmp_path)
    with flow.prepare("mine", QUIET) as mine:
        assert flow.choose_quants((), mine) == ("Q5_K_S",)
        assert flow.choose_quants(("Q8_0", "F16"), mine) == ("Q8_0", "F16")
    with flow.prepare(str(demo), QUIET) as folder:
        assert flow.choose_quants((), folder) == ("Q4_K_M",)
    flow.convert("mine", tmp_path / "x.gguf", "F16", QUIET)
    with flow.prepare("x.gguf", QUIET) as file:
        assert flow.choose_quants((), file) == ("F16",)
