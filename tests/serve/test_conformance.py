"""The OCI distribution-spec's own conformance program against our registry."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import data
from pipeline.serve import BackgroundServer, Settings
from pipeline.store import Store

pytestmark = pytest.mark.ollama  # the same Go builds it

TOKEN = "t" * 20

# What this registry does not offer, by the program's own switches: a store of models has no place for it.
NOT_OFFERED = {
    "DATA_SHA512": "Ollama knows sha256 alone",
    "DATA_INDEX": "an index names manifests for platforms; a model has none",
    "DATA_INDEX_LIST": "an index",
    "DATA_ARTIFACT_LIST": "an index",
    "DATA_CUSTOM_FIELDS": "its image passes; its second half is an index",
    "DATA_NO_LAYERS": "a model without a layer is none",
    "DATA_NONDISTRIBUTABLE": "layers that were never pushed: a model is whole or not there",
    "DATA_SUBJECT": "referrers are not kept",
    "DATA_SUBJECT_LIST": "referrers are not kept",
    "DATA_SUBJECT_MISSING": "referrers are not kept",
    "API_REFERRER": "referrers are not kept",
}
# The groups that fail with everything switched on; each is one of the above.
FAILING = {
    "artifact-index",
    "artifacts-with-subject",
    "custom-fields",
    "empty",  # an empty list of referrers
    "empty-index",
    "index",
    "index-with-subject",
    "missing-subject",
    "nested-index",
    "no-layers",
    "non-distributable-layers",
    "sha512",
    "sha512 blobs",
}
PASSED = 498  # with everything switched on


@pytest.fixture(scope="session")
def program(oracle: Callable[[str], Any]) -> Path:
    """The conformance program."""
    cache = data.cache_home() / "oci-conformance"
    if shutil.which("go") is None and not list(cache.glob("*/conformance")):
        pytest.skip("there is no Go to build the conformance program")
    built: Path = oracle("conformance").install_conformance(cache)
    return built


def run(oracle: Callable[[str], Any], program: Path, folder: Path, **switches: bool) -> dict[str, Counter[str]]:
    """Run it against an empty registry."""
    results = folder / "results"
    results.mkdir()
    with BackgroundServer(Store(folder / "store"), settings=Settings(token=TOKEN)) as server:
        groups: dict[str, Counter[str]] = oracle("conformance").run_conformance(
            program, results, server.address, TOKEN, **switches
        )
    return groups


def test_what_is_offered_conforms(oracle: Callable[[str], Any], program: Path, tmp_path: Path) -> None:
    """Nothing of what the registry offers fails: blobs in every way, manifests, tags, deletions, digest headers."""
    extra = dict.fromkeys(("API_BLOBS_UPLOAD_CANCEL", "API_BLOBS_DIGEST_HEADER", "API_MANIFESTS_DIGEST_HEADER"), True)
    groups = run(oracle, program, tmp_path, **dict.fromkeys(NOT_OFFERED, False), **extra)
    assert {name: counts for name, counts in groups.items() if counts["failure"] or counts["error"]} == {}
    assert sum(counts["passed"] for counts in groups.values()) >= 200
    assert {"image", "large-manifest", "sha256 blobs", "artifact", "invalid-digest-format"} <= set(groups)


def test_the_whole_figure_does_not_fall(oracle: Callable[[str], Any], program: Path, tmp_path: Path) -> None:
    """With everything switched on, what fails is what is not offered, by name, and no fewer tests pass than before."""
    groups = run(oracle, program, tmp_path)
    assert {name for name, counts in groups.items() if counts["failure"] or counts["error"]} == FAILING
    assert sum(counts["passed"] for counts in groups.values()) >= PASSED


@pytest.mark.registry
def test_docker_registry_beside_it(
    oracle: Callable[[str], Any], program: Path, docker_registry: Callable[..., Any], tmp_path: Path
) -> None:
    """The same program finds faults in docker-registry where ours has none: the order of chunks, bad digests."""
    results = tmp_path / "results"
    results.mkdir()
    groups = oracle("conformance").run_conformance(program, results, docker_registry().host, "")
    failing = {name for name, counts in groups.items() if counts["failure"] or counts["error"]}
    assert {"sha256 blobs", "invalid-digest-format"} <= failing - FAILING
    assert sum(counts["passed"] for counts in groups.values()) > 500
