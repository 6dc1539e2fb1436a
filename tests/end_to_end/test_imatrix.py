"""`imatrix` computes importance matrices with llama-imatrix; the other commands take them, and say so."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.gguf import read_gguf
from pipeline.runtime import Calibration, compute_imatrix
from pipeline.tuning import read_importance

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def computed(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with the demo as a GGUF and a matrix over two chunks of the text that ships with the tool."""
    folder = tmp_path_factory.mktemp("imatrix")
    cli("convert", "demo", "-o", folder / "demo.gguf")
    said = cli("imatrix", "demo", "-o", folder / "m.gguf", "--ctx", "128", "--chunks", "2", "--json")
    return folder, json.loads(said.stdout)


def test_a_checkpoint_gets_a_matrix(computed: tuple[Path, dict[str, Any]]) -> None:
    """All matrices that are multiplied have importances; the text is named without its folder; nothing else is left."""
    folder, said = computed
    found = read_importance(folder / "m.gguf")
    assert (said["sha256"], said["matrices"], said["chunks"]) == (found.sha256, len(found.entries), 2)
    assert found.datasets == ("text.txt",)
    shapes = {t.name: t.shape for t in read_gguf(folder / "demo.gguf").tensors}
    assert {name for name in shapes if name.startswith("blk.") and len(shapes[name]) > 1} == set(found.entries)
    assert all(found.of(name, shapes[name]) is not None for name in found.entries)
    assert {path.name for path in folder.iterdir()} >= {"demo.gguf", "m.gguf"}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_quantize_takes_it(computed: tuple[Path, dict[str, Any]], cli: Any, llama: Any, tmp_path: Path) -> None:
    """A matrix that llama-imatrix made gives the bytes that llama-quantize makes with it."""
    folder, _ = computed
    cli(
        "quantize",
        folder / "demo.gguf",
        "-o",
        tmp_path / "ours.gguf",
        "--quant",
        "q3_k",
        "--imatrix",
        folder / "m.gguf",
    )
    command = [llama.program("llama-quantize"), "--imatrix", "m.gguf", "demo.gguf", tmp_path / "theirs.gguf", "Q3_K_M"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=100)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_more_chunks_are_added(computed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """A later run goes on from a matrix, and tells of its chunks as they are done."""
    folder, _ = computed
    text = tmp_path / "-text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    seen: list[tuple[int, int]] = []
    how = Calibration(64, 3, 1, before=(folder / "m.gguf",), threads=1)
    compute_imatrix(folder / "demo.gguf", text, tmp_path / "more.gguf", how, lambda *at: seen.append(at))
    assert read_importance(tmp_path / "more.gguf").n_chunks > 2
    assert seen[-1] == (3, 3)
    assert seen == sorted(set(seen))


def test_a_text_that_is_too_short(computed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The error says how many tokens are needed; no file is left."""
    (tmp_path / "short.txt").write_text("Hello.")
    with pytest.raises(UsageError, match="256 tokens"):
        compute_imatrix(
            computed[0] / "demo.gguf", tmp_path / "short.txt", tmp_path / "m.gguf", Calibration(128), lambda *_: None
        )
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_publish_reports_what_was_changed(computed: tuple[Path, dict[str, Any]], cli: Any, tmp_path: Path) -> None:
    """The tag stays the quantization's; the report says what was changed; another matrix is another publication."""
    folder, said = computed
    (tmp_path / "r.toml").write_text("recipe = 'Q4_K_S'\n[tensor-types]\n'attn_v' = 'Q8_0'\n")
    command = ("publish", "demo", "--recipe", tmp_path / "r.toml", "--proof", "none", "--json")
    store = {"GGUF_PIPELINE_STORE": str(tmp_path / "store")}
    first, again, other = (
        json.loads(cli(*command, *more, **store).stdout)["files"][0]
        for more in ((), (), ("--imatrix", folder / "m.gguf", "--output-type", "Q5_1"))
    )
    assert first["name"].endswith("demo:Q4_K_S")
    assert first["tuning"] == ["--tensor-type attn_v=Q8_0"]
    assert {t["type"] for t in first["tensors"] if "attn_v.weight" in t["name"]} == {"Q8_0"}
    assert again == first
    assert other["digest"] != first["digest"]
    assert other["tuning"] == [
        "--tensor-type attn_v=Q8_0",
        "--output-type Q5_1",
        f"--imatrix m.gguf ({said['matrices']} matrices, sha256:{said['sha256']})",
    ]


def test_verify_takes_the_same_options(computed: tuple[Path, dict[str, Any]], cli: Any, tmp_path: Path) -> None:
    """A tuned file is derived again with the same options, and differs without them."""
    folder, _ = computed
    options = ("--imatrix", folder / "m.gguf", "--tensor-type", "ffn_up=IQ4_NL")
    cli("quantize", folder / "demo.gguf", "-o", tmp_path / "q.gguf", "--quant", "Q2_K_S", *options)
    cli("verify", tmp_path / "q.gguf", "--source", folder / "demo.gguf", *options)
    assert cli("verify", tmp_path / "q.gguf", "--source", folder / "demo.gguf", check=False).returncode != 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--quant", "IQ2_XXS"), 2, "worthless without an importance matrix"),
        (("--quant", "Q2_K_S"), 2, "gguf-pipeline imatrix"),
        (("--quant", "Q4_K_M", "--tensor-type", "attn_v"), 2, "REGEX=TYPE"),
        (("--quant", "Q4_K_M", "--tensor-type", "(=Q8_0"), 2, "not a regular expression"),
        (("--quant", "Q4_K_M", "--tensor-type", "attn_v=Q9"), 2, "no such tensor type"),
        (("--quant", "Q4_K_M", "--output-type", "Q9"), 2, "no such tensor type"),
        ((), 2, "--quant or --recipe"),
    ],
)
def test_wrong_options(
    computed: tuple[Path, dict[str, Any]], arguments: tuple[str, ...], code: int, text: str, cli: Any, tmp_path: Path
) -> None:
    """Each says what is wrong and writes nothing."""
    done = cli("quantize", computed[0] / "demo.gguf", "-o", tmp_path / "x.gguf", *arguments, check=False)
    assert done.returncode == code
    assert text in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", ["missing model", "bad model", "bad matrix"])
def test_what_cannot_be_calibrated(bad: str, computed: tuple[Path, dict[str, Any]], cli: Any, tmp_path: Path) -> None:
    """A model or a matrix to add to that is not sound is an error that names it, before llama-imatrix is started."""
    (tmp_path / "bad").write_bytes(b"GGUF\3")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\3")
    arguments = {
        "missing model": (tmp_path / "none.gguf",),
        "bad model": (tmp_path / "bad.gguf",),
        "bad matrix": (computed[0] / "demo.gguf", "--in-file", tmp_path / "bad"),
    }[bad]
    done = cli("imatrix", *arguments, "-o", tmp_path / "m.gguf", check=False)
    assert done.returncode == 3
    assert f"error: {arguments[-1]}" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "bad.gguf"]


def test_a_matrix_that_lacks_tensors_is_said(computed: tuple[Path, dict[str, Any]], cli: Any, tmp_path: Path) -> None:
    """Tensors without importance are quantized without, and named."""
    matrix = read_importance(computed[0] / "m.gguf")
    name, values = next(iter(matrix.entries.items()))
    entry = len(name).to_bytes(4, "little") + name.encode() + (1).to_bytes(4, "little")
    data = (1).to_bytes(4, "little") + entry + len(values).to_bytes(4, "little") + values.tobytes()
    (tmp_path / "one.dat").write_bytes(data)
    done = cli(
        "quantize", computed[0] / "demo.gguf", "-o", tmp_path / "x.gguf", "--quant", "Q4_K_M", "--imatrix",
        tmp_path / "one.dat",
    )  # fmt: skip
    assert f"knows nothing of {len(matrix.entries) - 1} tensors" in done.stderr
