"""What people are told of a release: its licence, its worst tensor, what was checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import decide, flow
from pipeline import release as releases
from pipeline.job import Job
from pipeline.types import Check


@pytest.mark.parametrize(
    ("card", "license_"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\ntags:\n- x\n---\n# text\n", "apache-2.0"),
        ('---\r\nlicense: "llama3.1"\r\n---\r\n', "llama3.1"),
        ("# license: mit\nlicense: mit\n", None),
        ("---\nlicense:\n- mit\n- other\n---\n", None),
        ("---\nlicense: a b; rm -rf\n---\n", None),
        ("---\nlicense: mit", None),
        ("\xff\xfe", None),
        (None, None),
    ],
)
def test_the_licence_is_the_model_cards(
    demo: Path, tmp_path: Path, silent_log: Any, card: str | None, license_: str | None
) -> None:
    """The id comes from the metadata of the checkpoint's card, and only if it is one."""
    folder = shutil.copytree(demo, tmp_path / "demo")
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_bytes(card.encode("latin-1"))
    job = Job(str(folder), ("Q4_K_M",))
    with flow.prepare(job.model, silent_log) as prepared:
        modelfile = decide.modelfile_of(prepared, job, silent_log)
        about = releases.describe(prepared, [], modelfile, [Check("prompt", "proven")], None)
    assert about.license == license_
    assert (about.repository, about.is_embedding, about.errors) == (None, False, {})
    assert about.checks == (Check("prompt", "proven"),)
    assert about.notes == prepared.blueprint.notes


def test_prompts_are_rendered_when_they_are_asked_for(demo: Path, silent_log: Any) -> None:
    """A target that can be asked gets what the checkpoint's template makes; none where nothing is to be proven."""
    prompts = {}
    for proof in ("quick", "none"):
        job = Job(str(demo), ("Q4_K_M",), proof=proof)
        with flow.prepare(job.model, silent_log) as prepared:
            modelfile = decide.modelfile_of(prepared, job, silent_log)
            prompts[proof] = releases.make_release(job, prepared, [], modelfile, [], []).prompts()
    assert prompts["none"] == ()
    assert len(prompts["quick"]) >= 3
    assert all(prompt.text.startswith("<|im_start|>") for prompt in prompts["quick"])
