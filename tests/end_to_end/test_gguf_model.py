"""A GGUF file as MODEL: published as it is, quantized, and quantized again."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline import flow
from pipeline.gguf import read_gguf
from pipeline.progress import Reporter

pytestmark = pytest.mark.native
QUIET = Reporter(quiet=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo in several types, with file names as people give them."""
    folder = tmp_path_factory.mktemp("ggufs")
    paths = {"auto": folder / "Demo-Model-BF16.gguf"}
    flow.convert("demo", paths["auto"], "auto", QUIET)
    for recipe in ("Q4_K_M", "Q8_0", "Q6_K", "Q5_K_S", "Q4_0", "F16"):
        paths[recipe] = folder / f"Demo-Model-{recipe}.gguf"
        flow.quantize(paths["auto"], paths[recipe], recipe, QUIET)
    return paths


def _publish(cli: Any, store: Path, *arguments: Any, check: bool = True) -> Any:
    done = cli("publish", *arguments, "--json", check=check, GGUF_PIPELINE_STORE=str(store))
    return json.loads(done.stdout) if done.returncode == 0 else done


@pytest.mark.parametrize("recipe", ["Q4_K_M", "F16"])
@pytest.mark.parametrize("said", [True, False])
def test_as_it_is(ggufs: dict[str, Path], cli: Any, tmp_path: Path, recipe: str, said: bool) -> None:
    """A file that has the wanted type, or where nobody wants another, is published byte by byte and proven."""
    report = _publish(cli, tmp_path, ggufs[recipe], *(("--quant", recipe) if said else ()))
    (file,) = report["files"]
    assert file["digest"] == _sha256(ggufs[recipe])
    assert file["recipe"] == recipe
    assert file["name"].endswith(f"/library/demo-model:{recipe}")
    assert not [check for check in report["checks"] if check["state"] == "different"]
    assert next(check for check in report["checks"] if check["name"] == "prompt")["state"] == "proven"


def test_from_a_plain_one(ggufs: dict[str, Path], cli: Any, tmp_path: Path) -> None:
    """An unquantized GGUF gives the bytes that its checkpoint gives; its own type beside them is a copy."""
    report = _publish(cli, tmp_path, ggufs["auto"], "--quant", "Q4_K_M,BF16,Q8_0", "--proof", "none")
    paths = [ggufs["Q4_K_M"], ggufs["auto"], ggufs["Q8_0"]]
    assert [file["digest"] for file in report["files"]] == [_sha256(path) for path in paths]


def test_the_modelfile_is_that_of_the_checkpoint(ggufs: dict[str, Path], cli: Any) -> None:
    """Sampling and template come out of the header as they went in, and the stop that the header names.

    Further stops of generation_config.json are in no key: llama.cpp knows such tokens by their texts.
    """

    def lines(*arguments: Any) -> list[str]:
        text = cli("modelfile", *arguments, "--with-template").stdout.split("LICENSE")[0]
        return [line for line in text.splitlines() if not line.startswith(("FROM", "#", "PARAMETER stop"))]

    of_gguf = cli("modelfile", ggufs["Q4_K_M"]).stdout
    assert f"FROM {ggufs['Q4_K_M']}\n" in of_gguf
    assert "FROM ./demo-model-Q8_0.gguf\n" in cli("modelfile", ggufs["auto"], "--quant", "Q8_0").stdout
    assert lines(ggufs["Q4_K_M"]) == lines("demo")
    assert "PARAMETER stop <|im_end|>" in of_gguf


def test_quantized_twice_only_if_wanted(ggufs: dict[str, Path], cli: Any, tmp_path: Path) -> None:
    """Without --requantize a quantized file is refused before a byte is written, by all commands alike."""
    for arguments in (
        ("publish", ggufs["Q8_0"], "--quant", "Q4_K_M"),
        ("plan", ggufs["Q8_0"], "--quant", "Q4_K_M"),
        ("quantize", ggufs["Q8_0"], "--quant", "Q4_K_M", "-o", tmp_path / "x.gguf"),
    ):
        done = cli(*arguments, check=False, GGUF_PIPELINE_STORE=str(tmp_path))
        assert done.returncode == 3
        assert "is quantized already" in done.stderr
        assert "--requantize" in done.stderr
    assert cli("plan", ggufs["Q8_0"], "--quant", "Q4_K_M", "--requantize").stdout


@pytest.mark.parametrize(
    ("source", "recipe"),
    [
        ("Q8_0", "Q4_K_M"), ("Q8_0", "F16"), ("Q6_K", "Q4_0"), ("Q5_K_S", "Q8_0"), ("Q4_K_M", "Q5_K_M"),
        ("Q4_0", "F32"), ("Q4_K_M", "BF16"), ("Q4_0", "Q6_K"),
    ],
)  # fmt: skip
def test_requantize_writes_the_bytes_of_llama_quantize(
    ggufs: dict[str, Path], source: str, recipe: str, llama: Any, tmp_path: Path
) -> None:
    """Quantizing again equals llama-quantize --allow-requantize, tensors that keep their type included."""
    flow.quantize(ggufs[source], tmp_path / "ours.gguf", recipe, QUIET, requantize=True)
    program = llama.program("llama-quantize")
    subprocess.run(
        [program, "--allow-requantize", ggufs[source], tmp_path / "theirs.gguf", recipe],
        check=True,
        capture_output=True,
    )
    assert _sha256(tmp_path / "ours.gguf") == _sha256(tmp_path / "theirs.gguf")


def test_publish_requantized(ggufs: dict[str, Path], cli: Any, tmp_path: Path) -> None:
    """Publish --requantize gives the file of quantize --requantize, and says what it costs."""
    cli("quantize", ggufs["Q8_0"], "-o", tmp_path / "x.gguf", "--quant", "Q4_K_M", "--requantize")
    report = _publish(cli, tmp_path / "store", ggufs["Q8_0"], "--quant", "Q4_K_M", "--requantize", "--proof", "none")
    assert report["files"][0]["digest"] == _sha256(tmp_path / "x.gguf")
    assert any("already" in note for note in report["notes"])


def test_a_file_of_llama_quantize(ggufs: dict[str, Path], cli: Any, llama: Any, tmp_path: Path) -> None:
    """A file of a type with a table of values is published as it is, and quantized again as llama-quantize does it."""
    path, theirs = tmp_path / "Demo-IQ4_XS.gguf", tmp_path / "theirs.gguf"
    program = llama.program("llama-quantize")
    subprocess.run([program, ggufs["auto"], path, "IQ4_XS"], check=True, capture_output=True)
    assert "IQ4_XS" in {tensor.type for tensor in read_gguf(path).tensors}
    report = _publish(cli, tmp_path / "store", path, "--proof", "none")
    assert report["files"][0]["digest"] == _sha256(path)
    assert report["files"][0]["recipe"] == "IQ4_XS"
    subprocess.run([program, "--allow-requantize", path, theirs, "Q4_K_M"], check=True, capture_output=True)
    cli("quantize", path, "-o", tmp_path / "ours.gguf", "--quant", "Q4_K_M", "--requantize")
    assert _sha256(tmp_path / "ours.gguf") == _sha256(theirs)


def test_what_is_no_model(ggufs: dict[str, Path], cli: Any, tmp_path: Path) -> None:
    """Converting a GGUF, a broken one and a missing one are refused, each in its own words."""
    (tmp_path / "broken.gguf").write_bytes(ggufs["Q4_0"].read_bytes()[:1000])
    for arguments, code, message in (
        (("convert", ggufs["Q4_0"], "-o", tmp_path / "x.gguf"), 2, "is a GGUF already"),
        (("plan", tmp_path / "broken.gguf"), 3, "broken.gguf"),
        (("plan", tmp_path / "none.gguf"), 3, "is not there"),
    ):
        done = cli(*arguments, check=False)
        assert done.returncode == code, done.stderr
        assert message in done.stderr
