"""What `list` tells of the published models, and which of them a pattern means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.errors import UsageError
from pipeline.inventory import choose, inventory
from pipeline.store import Name, Store

Run = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The demo in two quantizations, and once more under another name with a system prompt."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    quickly = ("--proof", "none", "--errors", "none")
    for options in (("--quant", "Q4_0,Q8_0"), ("--quant", "Q8_0", "--name", "me/brief", "--system", "Be brief.")):
        done = CliRunner().invoke(main, ["publish", "demo", *options, *quickly])
        assert done.exit_code == 0, done.output
    return Store(tmp_path / "registry")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_the_inventory(store: Store, demo: Path) -> None:
    """Quantization by the config, the bytes that others need too, and the source by the report."""
    items = {f"{item.name.repository}:{item.name.tag}": item for item in inventory(store)}
    assert set(items) == {f"library/demo:{tag}" for tag in ("Q4_0", "Q8_0", "latest")} | {
        "me/brief:Q8_0", "me/brief:latest"
    }  # fmt: skip
    assert {name: item.quantization for name, item in items.items()} == {
        "library/demo:Q4_0": "Q4_0", "library/demo:latest": "Q4_0", "library/demo:Q8_0": "Q8_0",
        "me/brief:Q8_0": "Q8_0", "me/brief:latest": "Q8_0",
    }  # fmt: skip
    assert items["library/demo:Q4_0"].shared == items["library/demo:Q4_0"].size  # "latest" needs all of it
    gguf = store.model_path(Name.parse("demo:Q8_0")).stat().st_size
    assert gguf < items["library/demo:Q8_0"].shared <= items["library/demo:Q8_0"].size
    for item in items.values():
        assert item.source is not None
        assert item.source["folder"] == item.origin == str(demo)
        assert item.report is not None
        assert json.loads(Path(item.report).read_text())["written"] == item.made


def test_a_model_of_somebody_else(store: Store) -> None:
    """A model without a report and with a config that says nothing is listed all the same."""
    name = Name.parse("demo:Q4_0")
    made = store.read_manifest(name)
    other = store.add_bytes(b"[]")
    store.write_manifest(
        Name.parse("strange"), type(made)(type(made.config)(made.config.media_type, other), made.layers)
    )
    [item] = inventory(store, ["strange"])
    assert (item.quantization, item.source, item.report, item.origin) == (None, None, None, "")


PATTERNS = {
    "demo:*": {"library/demo:Q4_0", "library/demo:Q8_0", "library/demo:latest"},
    "*:Q8_0": {"library/demo:Q8_0", "me/brief:Q8_0"},
    "me/*": {"me/brief:Q8_0", "me/brief:latest"},
    "localhost:11500/library/demo:Q[48]_0": {"library/demo:Q4_0", "library/demo:Q8_0"},
    "demo": {"library/demo:latest"},
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(store: Store, pattern: str) -> None:
    """A name is one name; a pattern is what it fits, in any of a name's spellings."""
    assert {f"{name.repository}:{name.tag}" for name in choose(store, [pattern])} == PATTERNS[pattern]


def test_a_pattern_that_fits_nothing(store: Store) -> None:
    """It is an error, not an empty answer."""
    with pytest.raises(UsageError, match="no published model fits"):
        choose(store, ["dema:*"])


def test_a_name_that_is_not_there(store: Store) -> None:
    """It is not an empty stock: the nearest name is offered."""
    done = _run("list", "demo:Q8_0", "dema:Q8_0")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "did you mean localhost:11500/library/demo:Q8_0?" in done.stderr
    assert "nothing is published" not in done.stderr


def test_list_for_people_and_programs(store: Store, demo: Path) -> None:
    """One line for a name; JSON with everything; a pattern limits both."""
    lines = _run("list").stdout.splitlines()
    assert len(lines) == 5
    line = next(line for line in lines if "me/brief:Q8_0" in line)
    for part in ("Q8_0", "MB", "shared", str(demo)):
        assert part in line
    rows = json.loads(_run("list", "demo:*", "--json").stdout)
    assert len(rows) == 3
    assert set(rows[0]) >= {"name", "digest", "size", "shared", "modified", "quantization", "source", "report", "made"}
    assert len(inventory(store)) == 5


def test_rm_by_pattern(store: Store) -> None:
    """A dry run tells what would go and how much is free then; the removal frees just that."""
    told = json.loads(_run("rm", "demo:*", "--dry-run", "--json").stdout)
    assert (len(told["names"]), told["removed"], len(store.list())) == (3, False, 5)
    before = sum(path.stat().st_size for path in store.blobs_dir.iterdir())
    assert _run("rm", "demo:*", "never:*").exit_code == 2
    assert _run("rm", "demo:*", "never").exit_code == 2
    assert len(store.list()) == 5
    done = _run("rm", "demo:*")
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 4)
    assert before - sum(path.stat().st_size for path in store.blobs_dir.iterdir()) == told["size"] > 1_000_000
    assert {entry.name.repository for entry in store.list()} == {"me/brief"}
    assert all(found.ok for entry in store.list() for found in store.verify(entry.name))


def test_verify_tells_of_the_manifest(store: Store) -> None:
    """`verify REF` reads the manifest, hashes every blob of it, and says which report tells of it."""
    assert store.list()
    found = json.loads(_run("verify", "me/brief:Q8_0", "--json").stdout)["checks"]
    assert [(check["name"], check["state"]) for check in found] == [
        ("manifest", "proven"), ("blobs", "proven"), ("file", "proven")
    ]  # fmt: skip
    assert "library_" not in found[0]["detail"]
    assert "me_brief_Q8_0.json says" in found[0]["detail"]
