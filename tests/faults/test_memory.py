"""Too little memory, at whichever step of a publication: exit code 5 and the next step, and nothing is left of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")

_LIMITED = (
    "-c",
    "import pathlib, resource, sys\n"
    "from pipeline import cli, flow, progress, serve\n"  # what imports take does not count, nor where they fail
    "from pipeline.commands import _show\n"
    "now = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
    "resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv.pop(1)),) * 2)\n"
    "cli.main()",
)


@pytest.mark.parametrize("n_bytes", [20_000_000, 40_000_000, 70_000_000, 110_000_000, 150_000_000, 190_000_000])
def test_publish_with_too_little(n_bytes: int, home: Any, demo: Path, tally: Any) -> None:
    """Refused by an allocation, it ends as for a full disk."""
    with tally("too little memory"):
        files = home.files()
        publish = ("publish", demo, "--quant", "Q4_K_M", "--proof", "none", "--threads", "2")
        process = home.start(str(n_bytes), *publish, program=_LIMITED)
        said = "".join(process.communicate(timeout=120))
        assert process.returncode == 5, said
        assert "not enough memory\n  hint: " in said
        assert home.files() == files
        home.check_whole()


def test_publish_with_enough(home: Any, demo: Path) -> None:
    """The same with room enough succeeds, so it was the memory."""
    publish = ("publish", demo, "--quant", "Q4_K_M", "--proof", "none", "--threads", "2")
    process = home.start("2000000000", *publish, program=_LIMITED)
    said = "".join(process.communicate(timeout=120))
    assert process.returncode == 0, said
    home.check_whole()
