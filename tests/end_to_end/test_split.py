"""Models in several files: written as llama-gguf-split writes them, read as llama.cpp reads them, all or nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow
from pipeline import parts as parts_module
from pipeline.errors import FormatError, InputError, PipelineError, UsageError
from pipeline.gguf import read_gguf, read_parts
from pipeline.types import Blob

SIZE = 2_000_000  # of 5.3 MB


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo: Path, silent_log: Any) -> Path:
    """The demo in one file, whole.gguf, and in three, cut-0000N-of-00003.gguf."""
    made = tmp_path_factory.mktemp("split")
    flow.convert(str(demo), made / "whole.gguf", "auto", silent_log)
    written = flow.convert(str(demo), made / "cut.gguf", "auto", silent_log, part_bytes=SIZE)
    assert [path.name for path, _ in written.files] == [f"cut-{no:05d}-of-00003.gguf" for no in range(1, 4)]
    assert [blob.digest for _, blob in written.files] == [f"sha256:{_sha256(path)}" for path, _ in written.files]
    return made


@pytest.fixture
def first(folder: Path) -> Path:
    """The first part of the demo."""
    return folder / "cut-00001-of-00003.gguf"


@pytest.mark.native
def test_parts_are_those_of_llama_gguf_split(folder: Path, llama: Any, tmp_path: Path) -> None:
    """Names, headers and data of every part are equal, and no other file is left."""
    split = [llama.program("llama-gguf-split"), "--split", "--split-max-size", "2M"]
    subprocess.run([*split, folder / "whole.gguf", tmp_path / "cut"], check=True, capture_output=True, timeout=60)
    theirs = {path.name: _sha256(path) for path in tmp_path.iterdir()}
    assert theirs == {path.name: _sha256(path) for path in folder.iterdir() if path.name != "whole.gguf"}


def test_a_split_model_is_quantized_as_the_whole_one(folder: Path, silent_log: Any, tmp_path: Path) -> None:
    """Whichever part is named, the file is the one that the undivided GGUF gives."""
    for name in ("whole.gguf", "cut-00001-of-00003.gguf", "cut-00003-of-00003.gguf"):
        flow.quantize(folder / name, tmp_path / name, "Q4_K_M", silent_log)
    assert len({_sha256(path) for path in tmp_path.iterdir()}) == 1


@pytest.mark.native
def test_llama_quantize_reads_our_parts_alike(first: Path, llama: Any, silent_log: Any, tmp_path: Path) -> None:
    """llama-quantize makes our file of our parts."""
    command = [llama.program("llama-quantize"), first, tmp_path / "theirs.gguf", "Q4_K_M"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    flow.quantize(first, tmp_path / "ours.gguf", "Q4_K_M", silent_log)
    assert _sha256(tmp_path / "ours.gguf") == _sha256(tmp_path / "theirs.gguf")


def test_publish_ships_one_file(cli: Any, folder: Path, first: Path, tmp_path: Path) -> None:
    """A split model is published as the undivided one would be, under the name without the part, and that is said."""
    made = []
    for model in (folder / "whole.gguf", first):
        done = cli("publish", model, "--json", "--proof", "none", GGUF_PIPELINE_STORE=str(tmp_path / model.name))
        made.append(json.loads(done.stdout))
    whole, cut = (report["files"][0] for report in made)
    assert cut["digest"] == whole["digest"]
    assert "/cut:" in cut["name"]
    assert any("3 parts become one file" in note for note in made[1]["notes"])


def test_the_command_says_each_part(cli: Any, tmp_path: Path) -> None:
    """`--split-size` prints a line, or with --json an entry, for each file; all in one if it fits."""
    done = cli("convert", "demo", "-o", tmp_path / "m.gguf", "--split-size", "2M", "--json")
    assert [Path(part["path"]).name for part in json.loads(done.stdout)["parts"]] == sorted(
        path.name for path in tmp_path.iterdir()
    )
    done = cli("convert", "demo", "-o", tmp_path / "m.gguf", "--split-size", "1G", "--json")
    assert json.loads(done.stdout)["path"] == str(tmp_path / "m.gguf")
    bad = cli("convert", "demo", "-o", tmp_path / "m.gguf", "--split-size", "2", check=False)
    assert bad.returncode == 2
    assert "500M or 2G" in bad.stderr


def test_an_output_never_replaces_a_part_that_is_read(first: Path, silent_log: Any) -> None:
    """Quantizing parts into parts of the same names is refused before anything is written."""
    before = {path.name: _sha256(path) for path in first.parent.iterdir()}
    with pytest.raises(UsageError, match="replace the input"):
        flow.quantize(first, first.with_name("cut.gguf"), "F16", silent_log, part_bytes=SIZE)
    assert before == {path.name: _sha256(path) for path in first.parent.iterdir()}


def test_an_error_leaves_the_older_parts(folder: Path, tmp_path: Path) -> None:
    """When the third part fails, the parts that were there stay, and nothing else is left."""
    plan = flow.plans.make_plan(flow.blueprints.from_gguf(read_parts(folder / "whole.gguf")), "auto")
    cut = parts_module.SplitModel.of(plan, tmp_path / "m.gguf", SIZE)
    for path in cut.paths:
        path.write_bytes(b"old")
    asked: list[Path] = []

    def write(_plans: Any, paths: Any) -> list[Blob]:
        asked.extend(paths)
        if len(asked) == 3:
            raise FormatError("a weight is NaN")
        paths[0].write_bytes(b"new")
        return [Blob("sha256:" + "0" * 64, 3)]

    with pytest.raises(FormatError):
        cut.write(write)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {path.name: b"old" for path in cut.paths}


def _copy(folder: Path, to: Path) -> list[Path]:
    made = []
    for path in sorted(folder.glob("cut-*")):
        (to / path.name).write_bytes(path.read_bytes())
        made.append(to / path.name)
    return made


def test_a_missing_part_is_named(folder: Path, tmp_path: Path) -> None:
    """The message names the file that is not there."""
    parts = _copy(folder, tmp_path)
    parts[2].unlink()
    with pytest.raises(InputError, match="cut-00003-of-00003") as caught:
        read_parts(parts[0])
    assert caught.value.found == "2 parts"


@pytest.mark.parametrize("case", ["renamed", "swapped", "other model", "twice", "undivided"])
def test_parts_that_do_not_belong_together_are_refused(case: str, folder: Path, tmp_path: Path) -> None:
    """A part under another name, at another place, of another model, or a whole model instead of a part."""
    parts = _copy(folder, tmp_path)
    if case == "renamed":
        parts[0] = parts[0].rename(tmp_path / "model.gguf")
    if case == "swapped":
        data = parts[1].read_bytes()
        parts[1].write_bytes(parts[2].read_bytes())
        parts[2].write_bytes(data)
    if case == "other model":
        data = parts[1].read_bytes()
        at = data.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
        parts[1].write_bytes(data[:at] + b"\x07" + data[at + 1 :])
    if case == "twice":
        data = parts[2].read_bytes().replace(b"blk.2.", b"blk.1.")
        parts[2].write_bytes(data)
    if case == "undivided":
        parts[1].write_bytes((folder / "whole.gguf").read_bytes())
    with pytest.raises(PipelineError):
        read_parts(parts[0])


@pytest.mark.native
def test_llama_cpp_loads_our_parts(first: Path, llama: Any) -> None:
    """llama.cpp loads the model from its first part and answers."""
    command = [llama.program("llama-completion"), "-m", first, "-n", "4", "-p", "What is", "-no-cnv"]
    done = subprocess.run(command, capture_output=True, timeout=120, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_gguf(first).split is not None
