"""A calibration that was killed goes on, and makes the very file that llama-imatrix makes in one run."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import calibrate, crash
from pipeline.errors import FormatError
from pipeline.progress import Silent
from pipeline.runtime import Calibration

pytestmark = pytest.mark.native

SAVED = (12, 24)  # of 30 chunks: 128 tokens each, four at once
WISH = ("--ctx", "128", "--chunks", "30", "--save-frequency", "10")
KILLS = [f"matrix saved:{n}" for n in range(1, len(SAVED) + 1)]
KILLS += [name for name, command in crash.POINTS.items() if command == "imatrix" and name != "matrix saved"]


def _one_run(llama: Any, folder: Path, *options: str | Path) -> bytes:
    """What llama-imatrix itself makes of demo.gguf in *folder*."""
    command = [llama.program("llama-imatrix"), "-m", "demo.gguf", "-f", "text.txt", "-o", "theirs.gguf", "--offline"]
    subprocess.run([*command, *options], cwd=folder, check=True, capture_output=True, timeout=100)
    return (folder / "theirs.gguf").read_bytes()


@pytest.fixture(scope="module")
def made(cli: Any, llama: Any, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A folder with the demo as a GGUF and a text, and the matrix that llama-imatrix makes of them in one run."""
    folder = tmp_path_factory.mktemp("resumed")
    cli("convert", "demo", "-o", folder / "demo.gguf")
    shutil.copy(repository / "calibration" / "text.txt", folder)
    return folder, _one_run(llama, folder, "-c", "128", "-b", "512", "--chunks", "30")


@pytest.mark.parametrize("kill", KILLS)
def test_a_killed_run_goes_on(kill: str, made: tuple[Path, bytes], cli: Any, tmp_path: Path) -> None:
    """Killed at any point, it leaves no file under the output's name; the same command ends the work, to the byte."""
    folder, whole = made
    arguments = ("imatrix", folder / "demo.gguf", "-o", tmp_path / "m.gguf", "--text", folder / "text.txt", *WISH)
    assert cli(*arguments, check=False, GGUF_PIPELINE_CRASH=kill).returncode == -signal.SIGKILL
    name, _, number = kill.partition(":")
    assert (tmp_path / "m.gguf").exists() == (name == "matrix named")
    done = SAVED[int(number or len(SAVED)) - 1]
    assert f"goes on after chunk {done} of 30" in cli(*arguments).stderr
    assert (tmp_path / "m.gguf").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_checkpoint_goes_on(made: tuple[Path, bytes], cli: Any, tmp_path: Path) -> None:
    """A checkpoint is converted again, to the same bytes; whoever interrupts a run is told that it can go on."""
    folder, whole = made
    arguments = ("imatrix", "demo", "-o", tmp_path / "m.gguf", "--text", folder / "text.txt", *WISH)
    cli(*arguments, check=False, GGUF_PIPELINE_CRASH="matrix saved:2")
    (tmp_path / "llama-imatrix").symlink_to("/bin/false")
    stopped = cli(*arguments, check=False, GGUF_PIPELINE_LLAMA=str(tmp_path))
    assert "the same command goes on from there" in stopped.stderr
    (tmp_path / "llama-imatrix").unlink()
    assert "goes on after chunk 24 of 30" in cli(*arguments).stderr
    assert (tmp_path / "m.gguf").read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ("nothing", ("--no-resume",), ""),
        ("an option", ("--chunks", "28"), "of another model or text, or other options"),
        ("the text", (), "of another model or text, or other options"),
        ("the model", (), "of another model or text, or other options"),
        ("the kept one", (), "not an unfinished matrix, or a damaged one"),
        ("the threads", ("--threads", "1"), "goes on after chunk 12 of 30"),
        ("the frequency", ("--save-frequency", "30"), "goes on after chunk 12 of 30"),
    ],
)
def test_what_changed_starts_anew(
    change: str, options: tuple[str, ...], said: str, made: tuple[Path, bytes], cli: Any, llama: Any, tmp_path: Path
) -> None:
    """What was kept of anything else is not used, and that is said; what does not change the matrix does no harm."""
    for name in ("demo.gguf", "text.txt"):
        shutil.copy(made[0] / name, tmp_path)
    arguments = ("imatrix", tmp_path / "demo.gguf", "-o", tmp_path / "m.gguf", "--text", tmp_path / "text.txt", *WISH)
    cli(*arguments, check=False, GGUF_PIPELINE_CRASH="matrix saved")
    harmed = {"the text": "text.txt", "the model": "demo.gguf", "the kept one": ".m.gguf.unfinished"}.get(change)
    if harmed:
        data = bytearray((tmp_path / harmed).read_bytes())
        data[-30] ^= 1
        (tmp_path / harmed).write_bytes(data)
    done = cli(*arguments, *options)
    assert said in done.stderr
    assert ("goes on" in done.stderr) == said.startswith("goes on")
    limit = options if change == "an option" else ("--chunks", "30")
    assert (tmp_path / "m.gguf").read_bytes() == _one_run(llama, tmp_path, "-c", "128", "-b", "512", *limit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.gguf", "m.gguf", "text.txt", "theirs.gguf"]


def test_pieces_of_a_run_that_adds(made: tuple[Path, bytes], llama: Any, tmp_path: Path) -> None:
    """Matrices to add to and chunks to leave out are taken once, not by each piece; all metadata is right."""
    folder = made[0]
    (folder / "before.gguf").write_bytes(made[1])
    how = Calibration(64, 40, 5, before=(folder / "before.gguf",))
    calibrate.compute(str(folder / "demo.gguf"), tmp_path / "m.gguf", Silent(), folder / "text.txt", how, every=16)
    options = ("-c", "64", "-b", "512", "--chunks", "40", "--chunk", "5", "--in-file", folder / "before.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == _one_run(llama, folder, *options)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v2", "jamba"])
def test_pieces_of_other_architectures(name: str, repository: Path, tmp_path: Path) -> None:
    """Experts, of which a piece may not reach all, and layers without attention come out as in one run, too."""
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. 0123456789\n" * 30)
    fixture = str(repository / "tests" / "fixtures" / "arch" / name)
    found = [tmp_path / "pieces.gguf", tmp_path / "whole.gguf"]
    for path, every in zip(found, (32, None), strict=True):
        calibrate.compute(fixture, path, Silent(), tmp_path / "text.txt", Calibration(16), every=every)
    assert found[0].read_bytes() == found[1].read_bytes()


def test_a_model_that_changes_meanwhile(made: tuple[Path, bytes], tmp_path: Path) -> None:
    """What was computed of two models is not kept."""
    model = Path(shutil.copy(made[0] / "demo.gguf", tmp_path / "demo.gguf"))

    class Harm(Silent):
        def bar(self, text: str) -> Any:
            model.write_bytes((made[0] / "demo.gguf").read_bytes())
            return super().bar(text)

    with pytest.raises(FormatError, match="changed"):
        calibrate.compute(str(model), tmp_path / "m.gguf", Harm(), made[0] / "text.txt", Calibration(128), every=10)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.gguf"]
