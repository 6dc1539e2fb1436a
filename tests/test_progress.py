"""What a person sees while work goes on."""

from __future__ import annotations

import io

from rich.console import Console

from pipeline.progress import Reporter


def test_a_path_with_brackets_is_no_markup() -> None:
    """A path is shown as it is, even where rich would read it as the end of a style."""
    reporter = Reporter()
    shown = io.StringIO()
    reporter.console = Console(file=shown, force_terminal=True, width=80)
    with reporter.bar("reading ./a[/b]") as progress:
        progress(1, 2)
    assert "./a[/b]" in shown.getvalue()
