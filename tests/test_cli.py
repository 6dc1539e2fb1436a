"""The command line as a user meets it: help, results, JSON, and errors with the next step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Call the command line in this process, with a store of its own."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))

    def call(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return call


def test_help_names_every_command_and_the_exit_codes(run: Run) -> None:
    """`--help` is where people start."""
    text = run("--help").output
    for name in (
        "publish",
        "plan",
        "convert",
        "quantize",
        "modelfile",
        "pull",
        "batch",
        "serve",
        "run",
        "list",
        "rm",
        "gc",
        "models",
    ):
        assert f"\n  {name} " in text
    assert "Exit codes: 0 done, 2 wrong usage" in text


def test_help_loads_nothing_heavy() -> None:
    """`--help` answers at once because no library but click is imported for it."""
    code = (
        "import sys; from pipeline import cli\n"
        "heavy = {'numpy', 'jinja2', 'aiohttp', 'huggingface_hub', 'requests', 'rich', 'tokenizers', 'gguf'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_publish_list_rm(run: Run) -> None:
    """A publication is listed, and gone after rm, blobs included."""
    assert run("publish", "demo", "--proof", "none").exit_code == 0
    listed = json.loads(run("list", "--json").stdout)
    assert {entry["name"] for entry in listed} == {
        "localhost:11500/library/demo:Q4_K_M",
        "localhost:11500/library/demo:latest",
    }
    assert run("rm", "demo:Q4_K_M", "demo").exit_code == 0
    assert json.loads(run("list", "--json").stdout) == []


def test_publish_prints_the_commands_to_paste(run: Run) -> None:
    """The output ends with commands, the pull with --insecure, which Ollama needs for http."""
    lines = run("publish", "demo", "--proof", "none", "--name", "me/my-demo").output.rstrip().splitlines()
    assert lines[-2:] == [
        "    ollama pull --insecure localhost:11500/me/my-demo:Q4_K_M",
        "    ollama run localhost:11500/me/my-demo:Q4_K_M",
    ]


def test_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    """`publish --dry-run` says what would be published and leaves the store as it is."""
    would = json.loads(run("publish", "demo", "--quant", "Q4_0,Q6_K", "--dry-run", "--json").stdout)
    assert [one["name"] for one in would] == ["library/demo:Q4_0", "library/demo:Q6_K"]
    assert not list(tmp_path.rglob("sha256-*"))


def test_plan_gives_the_exact_size(run: Run, tmp_path: Path) -> None:
    """What `plan` promises is what `convert` and `publish` write, to the byte."""
    for recipe in ("Q4_K_M", "Q8_0", "F16"):
        planned = json.loads(run("plan", "demo", "--quant", recipe, "--json").stdout)[0]
        run("convert", "demo", "-o", tmp_path / "auto.gguf")
        made = json.loads(
            run("quantize", tmp_path / "auto.gguf", "-o", tmp_path / "q.gguf", "--quant", recipe, "--json").stdout
        )
        assert planned["file_bytes"] == made["size"] == (tmp_path / "q.gguf").stat().st_size


def test_plan_for_people_shows_types_and_memory(run: Run) -> None:
    """The table names each tensor's type; the figures for disk, memory and the KV cache follow."""
    text = run("plan", "demo").stdout
    assert "blk.0.ffn_down.weight" in text
    assert "bits per weight" in text
    assert "KV cache at 512 tokens" in text


def test_inspect_shows_a_gguf(run: Run, tmp_path: Path) -> None:
    """Metadata, totals by type and, on request, tensors."""
    run("convert", "demo", "-o", tmp_path / "demo.gguf")
    text = run("inspect", tmp_path / "demo.gguf", "--tensors").stdout
    assert "general.architecture = qwen2" in text
    assert "BF16" in text
    assert "blk.2.attn_v.bias" in text
    assert json.loads(run("inspect", tmp_path / "demo.gguf", "--json").stdout)["parameters"] == 2624768


def test_inspect_takes_a_published_name(run: Run, tmp_path: Path) -> None:
    """A REF is the GGUF of that publication; what is neither a file nor a name is an error."""
    run("publish", "demo", "--quant", "Q8_0", "--proof", "none")
    assert "general.architecture = qwen2" in run("inspect", "demo:Q8_0").stdout
    assert run("inspect", tmp_path / "no.gguf").exit_code == 2
    assert run("inspect", "never-published").exit_code == 2


def test_inspect_shows_a_report(run: Run) -> None:
    """Provenance, then the errors of one publication, the worst first; by name, "latest" or file, also as JSON."""
    made = json.loads(run("publish", "demo", "--quant", "Q4_0,F16", "--proof", "none", "--json").stdout)
    text = run("inspect", "--report", "demo:Q4_0").stdout
    assert made["sources"][0]["sha256"] in text
    assert "library/demo:F16" not in text
    shown = [line.split() for line in text.splitlines() if line.startswith("blk.")]
    relative = [float(line[2]) for line in shown]
    assert len(shown) == 21
    assert relative == sorted(relative, reverse=True)
    assert 5 < relative[0] < 20
    assert "16 tensors keep their values" in text
    assert run("inspect", "--report", "demo").stdout == text
    assert "library/demo:F16" in run("inspect", made["path"], "--report").stdout
    assert json.loads(run("inspect", "demo:F16", "--report", "--json").stdout)["model"] == "demo"


def test_inspect_says_where_a_report_is_missing(run: Run, tmp_path: Path) -> None:
    """No report, no publication, no file: each a message with the next step."""
    made = json.loads(run("publish", "demo", "--proof", "none", "--errors", "none", "--json").stdout)
    assert "errors were not measured" in run("inspect", "demo", "--report").stdout
    Path(made["path"]).unlink()
    done = run("inspect", "demo", "--report")
    assert (done.exit_code, "publish it again" in done.stderr) == (2, True)
    assert run("inspect", "never-published", "--report").exit_code == 2
    assert run("inspect", tmp_path / "no.json", "--report").exit_code == 2


def test_modelfile_names_stops_and_licence(run: Run, demo: Path) -> None:
    """The Modelfile has the stops, the sampling and the licence, and no TEMPLATE unless wanted."""
    text = run("modelfile", "demo").stdout
    assert "PARAMETER stop <|im_end|>" in text or 'PARAMETER stop "<|im_end|>"' in text
    assert "PARAMETER temperature 0.01" in text
    assert "TEMPLATE" not in text
    assert (demo / "LICENSE").read_text(encoding="utf-8").splitlines()[0] in text
    assert "TEMPLATE" in run("modelfile", "demo", "--with-template").stdout


@pytest.mark.parametrize("point", ["text written", "text named"])
def test_a_killed_modelfile_is_the_old_one_or_the_new(point: str, run: Run, tmp_path: Path) -> None:
    """With -o the file is exchanged in one step, the next run clears what a killed one left, and a pipe is refused."""
    folder = tmp_path / "out"
    folder.mkdir()
    output = folder / "Modelfile"
    output.write_text("old")
    command = [sys.executable, "-m", "pipeline.cli", "modelfile", "demo", "-o", str(output)]
    killed = subprocess.run(
        command, env=os.environ | {"GGUF_PIPELINE_CRASH": point}, check=False, capture_output=True, timeout=100
    )
    assert killed.returncode == -signal.SIGKILL
    text = run("modelfile", "demo").stdout
    assert output.read_text(encoding="utf-8") == ("old" if point == "text written" else text)
    assert run("modelfile", "demo", "-o", output).exit_code == 0
    assert [path.name for path in folder.iterdir()] == ["Modelfile"]
    assert output.read_text(encoding="utf-8") == text
    os.mkfifo(folder / "pipe")
    assert run("modelfile", "demo", "-o", folder / "pipe").exit_code == 2


def test_models_lists_the_aliases(run: Run) -> None:
    """The demo and qwen are there; JSON has the repository."""
    rows = {row["name"]: row for row in json.loads(run("models", "--json").stdout)}
    assert rows["qwen"]["repo"].startswith("Qwen/")
    assert rows["demo"]["folder"]


def test_doctor_never_fails(run: Run) -> None:
    """`doctor` names every part and, for what is missing, the way to get it."""
    done = run("doctor", "--json")
    assert done.exit_code == 0
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert {"gguf-pipeline", "llama.cpp", "Ollama", "our registry"} <= set(found)
    assert all(one["ok"] or one["fix"] for one in found.values())


def _broken(folder: Path, demo: Path, file: str, change: Callable[[Any], Any]) -> Path:
    shutil.copytree(demo, folder)
    path = folder / file
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    return folder


def _pre_tokenizer(regex: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split, level]}


BAD_INPUT: dict[str, tuple[str, Callable[[Any], Any], list[str]]] = {
    "unknown architecture": (
        "config.json",
        lambda c: c | {"architectures": ["Qwen9ForCausalLM"]},
        ["architecture 'Qwen9ForCausalLM' is not supported", "the closest is Qwen"],
    ),
    "unknown rope scaling": (
        "config.json",
        lambda c: c | {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
        ["rope scaling 'spiral' is not supported", "default"],
    ),
    "two rope scalings": (
        "config.json",
        lambda c: (
            c
            | {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            }
        ),
        ["'rope_parameters' and 'rope_scaling'", "contradict"],
    ),
    "a base as text": (
        "config.json",
        lambda c: c | {"rope_parameters": {"rope_type": "default", "rope_theta": "10000"}},
        ["config.json", "rope_theta", "a number"],
    ),
    "NaN for a number": ("config.json", lambda c: c | {"rms_norm_eps": float("nan")}, ["rms_norm_eps", "finite"]),
    "beyond float32": ("config.json", lambda c: c | {"rms_norm_eps": 1e300}, ["config.json", "rms_epsilon", "float32"]),
    "another activation": ("config.json", lambda c: c | {"hidden_act": "gelu"}, ["hidden_act", "'silu'"]),
    "packed weights": (
        "config.json",
        lambda c: c | {"quantization_config": {"quant_method": "gptq"}},
        ["packed by another quantizer", "original checkpoint"],
    ),
    "a missing layer": (
        "config.json",
        lambda c: c | {"num_hidden_layers": 4},
        ["lacks a tensor", "model.layers.3.input_layernorm.weight"],
    ),
    "a layer too many": ("config.json", lambda c: c | {"num_hidden_layers": 2}, ["fits no row of 'qwen2'", "layers.2"]),
    "a text for a number": ("config.json", lambda c: c | {"hidden_size": "256"}, ["hidden_size", "a whole number"]),
    "an unknown pre-tokenizer": (
        "tokenizer.json",
        lambda t: t | {"pre_tokenizer": _pre_tokenizer("x+")},
        ["pre-tokenizer is unknown", "nearest is"],
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named_and_nothing_is_left(case: str, run: Run, demo: Path, tmp_path: Path) -> None:
    """Exit code 3, a message with the place and what was expected, and no file in the store."""
    file, change, parts = BAD_INPUT[case]
    done = run("publish", _broken(tmp_path / "model", demo, file, change))
    assert done.exit_code == 3, done.output
    for part in parts:
        assert part in done.stderr
    assert not list((tmp_path / "registry").rglob("sha256-*"))


def test_an_unknown_class_with_no_close_one_lists_all(run: Run, demo: Path, tmp_path: Path) -> None:
    """The message has every class that is supported, and names no command that does not exist."""
    done = run("plan", _broken(tmp_path / "m", demo, "config.json", lambda c: c | {"architectures": ["Zzz"]}))
    assert done.exit_code == 3
    assert "LlamaForCausalLM" in done.stderr
    assert "Qwen2ForCausalLM" in done.stderr
    assert "--architectures" not in done.stderr


def test_nan_weights_are_refused_by_name(run: Run, demo: Path, tmp_path: Path) -> None:
    """A NaN stops the work, and the message has tensor, row and column."""
    shutil.copytree(demo, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    at = start + header["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0] + 2 * (256 * 3 + 5)
    data[at : at + 2] = b"\xc0\x7f"
    path.write_bytes(data)
    done = run("publish", tmp_path / "model")
    assert done.exit_code == 3
    assert "model.layers.1.mlp.up_proj.weight" in done.stderr
    assert "row 3, column 5" in done.stderr
    assert not [p for p in (tmp_path / "registry").rglob("*") if p.is_file() and p.stat().st_size > 0]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("publish", "no-such-model"), 2, "gguf-pipeline models"),
        (("publish", "demo", "--quant", "Q9_X"), 2, "unknown quantization Q9_X"),
        (("plan", "demo", "--quant", ""), 2, "unknown quantization"),
        (("modelfile", "demo", "-o", "/no/such/folder/Modelfile"), 2, "/no/such/folder/Modelfile"),
        (("publish", "demo", "--to", "moon"), 2, "no such publish target"),
        (("publish", "demo", "--to", "me:s3cret@moon"), 2, "--to moon: no such publish target"),
        (("publish", "./nowhere"), 3, "nowhere"),
        (("publish", "~nobody-of-this-name/x"), 2, "~nobody-of-this-name/x"),
        (("publish", "demo", "--name", "A/B/C/D"), 2, "two parts at most"),
        (("publish", "demo", "--name", "Me/Demo", "--dry-run"), 2, "try --name me/demo"),
        (("run", "never-published", "hi"), 2, "gguf-pipeline list"),
        (("run", "nowhere.gguf", "hi"), 3, "no such file"),
        (("run", "./nowhere", "hi"), 3, "no such file"),
        (("run", "./tests", "hi"), 3, "not a regular file"),
        (("rm", "never-published"), 2, "no such model"),
        (("list", "never-published"), 2, "no such model"),
        (("inspect", "/no/such/file.gguf"), 2, "no such file"),
        (("inspect", "--report", "/no/such/file.json"), 2, "no such file"),
        (("verify", "./nowhere"), 2, "no such file"),
        (("verify", "./tests"), 2, "is no file"),
        (("doctor", "--registry", "http://127.0.0.1:1"), 4, "check the address"),
        (("convert", "demo", "-o", "/no/such/folder/x.gguf"), 2, "does not exist"),
    ],
)
def test_wrong_usage_says_what_to_do(arguments: tuple[str, ...], code: int, text: str, run: Run) -> None:
    """Each mistake has its exit code and a message with the next step."""
    done = run(*arguments)
    assert done.exit_code == code, done.output
    assert text in done.stderr


def test_a_type_without_an_encoder_is_refused_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IQ3_S needs llama.cpp's library: where it is not built, nothing is begun, let alone downloaded."""
    assert run("convert", "demo", "-o", tmp_path / "demo.gguf").exit_code == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GGUF_PIPELINE_LLAMA", raising=False)
    for arguments in (
        ("publish", "demo", "--quant", "Q8_0,IQ3_S", "--proof", "none"),
        ("quantize", tmp_path / "demo.gguf", "-o", tmp_path / "out.gguf", "--quant", "IQ3_S"),
    ):
        done = run(*arguments)
        assert (done.exit_code, "make llama" in done.stderr, "writing" in done.stderr) == (1, True, False)


def test_running_what_is_no_gguf_is_an_input_error(run: Run, tmp_path: Path) -> None:
    """A file that is no GGUF is named, with what is wrong, before any llama.cpp sees it; a broken blob too."""
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"not a model at all" * 100)
    done = run("run", garbage, "hi")
    assert done.exit_code == 3
    assert done.stderr.startswith(f"error: {garbage}, byte 0: not a GGUF file")
    assert run("publish", "demo", "--proof", "none").exit_code == 0
    blob = max((tmp_path / "registry" / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    blob.write_bytes(b"garbage")
    done = run("run", "demo:Q4_K_M", "hi")
    assert done.exit_code == 3
    assert str(blob) in done.stderr


def test_list_of_a_store_that_is_a_file(run: Run, tmp_path: Path) -> None:
    """A wrong path is an error that names it, not an empty store."""
    (tmp_path / "registry").write_bytes(b"")
    done = run("list")
    assert done.exit_code == 4
    assert str(tmp_path / "registry") in done.stderr
    assert "nothing is published" not in done.stderr


def test_list_warns_of_what_names_no_model(run: Run, tmp_path: Path) -> None:
    """A broken manifest is a warning on stderr, beside the models that are listed."""
    assert run("publish", "demo", "--proof", "none").exit_code == 0
    broken = tmp_path / "registry/manifests/localhost:11500/library/demo/broken"
    broken.write_bytes(b"{")
    done = run("list", "--json")
    assert len(json.loads(done.stdout)) == 2
    assert f"warning: {broken} names no model: " in done.stderr


def test_gc_removes_what_nobody_uses(run: Run, tmp_path: Path) -> None:
    """`gc` takes old blobs and temporaries that no model needs; --dry-run only names them."""
    assert run("publish", "demo", "--proof", "none").exit_code == 0
    blobs = tmp_path / "registry" / "blobs"
    left = [blobs / "sha256-pkg-x", blobs / ("sha256-" + "0" * 64)]
    for path in left:
        path.write_bytes(b"12345")
        os.utime(path, (1e9, 1e9))
    before = set(blobs.iterdir())
    text = run("gc", "--dry-run").stdout
    assert "would remove 2 files, 10 B" in text
    assert all(str(path) in text for path in left)
    assert set(blobs.iterdir()) == before
    found = json.loads(run("gc", "--json").stdout)
    assert (found["size"], found["removed"]) == (10, True)
    assert {file["path"] for file in found["files"]} == {str(path) for path in left}
    assert set(blobs.iterdir()) == before - set(left)
    assert "removed 0 files" in run("gc").stdout


def test_quantizing_twice_is_refused(run: Run, tmp_path: Path) -> None:
    """A quantized GGUF as input is an error that names a tensor."""
    run("convert", "demo", "-o", tmp_path / "auto.gguf")
    run("quantize", tmp_path / "auto.gguf", "-o", tmp_path / "q8.gguf", "--quant", "Q8_0")
    done = run("quantize", tmp_path / "q8.gguf", "-o", tmp_path / "q4.gguf", "--quant", "Q4_0")
    assert done.exit_code == 3
    assert "is quantized already" in done.stderr
    assert not (tmp_path / "q4.gguf").exists()


def test_a_copy_under_another_name_gives_the_same_bytes(run: Run, demo: Path, tmp_path: Path) -> None:
    """Neither the folder's name nor the alias gets into the file."""
    digests = set()
    for name in ("demo", "first-copy", "Second Copy"):
        model = "demo" if name == "demo" else shutil.copytree(demo, tmp_path / name)
        report = json.loads(run("publish", model, "--quant", "Q8_0", "--proof", "none", "--json").stdout)
        digests.add(report["files"][0]["digest"])
    assert len(digests) == 1


def test_wrong_target_and_name_are_found_before_any_work(run: Run) -> None:
    """A model that does not exist is not even looked for when the target or the name is wrong."""
    assert "no such publish target" in run("publish", "org/never", "--to", "moon").stderr
    assert run("publish", "org/never", "--name", "!!!").exit_code == 2


@pytest.mark.parametrize(("arguments", "status"), [(["models", "--json"], 0), (["models", "--nothing"], 2)])
def test_the_program_ends_with_all_said(arguments: list[str], status: int) -> None:
    """The quick end of the process loses neither what was printed nor the exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert json.loads(done.stdout) if status == 0 else "--nothing" in done.stderr
