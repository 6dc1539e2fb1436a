"""What is decided before a weight is read: the Modelfile of each kind of model, and models that Ollama can not use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from pipeline import decide, flow
from pipeline.cli import main
from pipeline.errors import UnsupportedError, UsageError
from pipeline.job import Job
from pipeline.modelfile import Overrides
from pipeline.types import Modelfile, u32

Decide = Callable[..., Modelfile]
Run = Callable[..., Result]
Archs = Callable[[str], Path]

_FILL = "<fim_prefix>{{ .Prompt }}<fim_suffix>{{ .Suffix }}<fim_middle>"


@pytest.fixture
def arch(repository: Path) -> Archs:
    """Find the small checkpoint of an architecture."""
    return lambda name: repository / "tests" / "fixtures" / "arch" / name


@pytest.fixture
def decided(silent_log: Any) -> Decide:
    """Decide what would be published with a model."""

    def run(model: str | Path, *, with_template: bool = False, **overrides: Any) -> Modelfile:
        job = Job(str(model), (), overrides=Overrides(**overrides), with_template=with_template)
        with flow.prepare(job.model, silent_log) as prepared:
            return decide.modelfile_of(prepared, job, silent_log)

    return run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Call the command line in this process, in an empty folder."""
    monkeypatch.setenv("GGUF_PIPELINE_STORE", str(tmp_path / "registry"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


def test_an_alias_says_what_its_modelfile_says(run: Run, demo: Path, tmp_path: Path) -> None:
    """The row's table is over the checkpoint, options are over the row; files are found beside models.toml."""
    (tmp_path / "mit.txt").write_text("MIT, mine")
    (tmp_path / "models.toml").write_text(
        f'[mine]\nfolder = "{demo}"\n[mine.modelfile]\nsystem = "row"\nlicenses = "mit.txt"\nrequires = "0.34.0"\n'
        'parameters = { top_k = 5, top_p = 0.5, stop = ["<x>"] }\n'
    )
    text = run("modelfile", "mine", "--system", "call", "--parameter", "top_k=6").stdout
    assert [line for line in text.splitlines()[1:] if line] == [
        "PARAMETER temperature 0.01",
        "PARAMETER top_p 0.5",
        "PARAMETER stop <x>",
        "PARAMETER top_k 6",
        "SYSTEM call",
        'LICENSE "MIT, mine"',
        "REQUIRES 0.34.0",
    ]
    (tmp_path / "models.toml").write_text(f'[mine]\nfolder = "{demo}"\n[mine.modelfile]\nsytem = "x"\n')
    for command in ("modelfile", "publish"):
        done = run(command, "mine")
        assert done.exit_code == 2
        assert "did you mean system?" in done.stderr
    assert not (tmp_path / "registry").exists()


def test_every_option_has_its_line(run: Run, tmp_path: Path) -> None:
    """All that a Modelfile can say can be said by an option, and comes out as it was said."""
    (tmp_path / "l").write_text("my licence")
    (tmp_path / "t").write_text("{{ .Prompt }}{{ .Suffix }}")
    said = ("--system", " hé\n", "--message", "user", "Hi", "--message", "assistant", "Yes", "--license", "l")
    engine = ("--renderer", "cohere", "--parser", "passthrough", "--requires", "v1.2", "--template", "t")
    done = run("modelfile", "demo", "--num-ctx", "256", "--parameter", "mirostat=1", *said, *engine)
    assert done.exit_code == 0, done.output
    for line in (
        "PARAMETER num_ctx 256", 'SYSTEM """ hé\n"""', "MESSAGE user Hi", "MESSAGE assistant Yes",
        'LICENSE "my licence"', "RENDERER cohere", "PARSER passthrough", "REQUIRES 1.2",
        'TEMPLATE "{{ .Prompt }}{{ .Suffix }}"',
    ):  # fmt: skip
        assert f"\n{line}\n" in done.stdout
    assert "mirostat" not in done.stdout
    assert "'mirostat': it is left out" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--parameter", "typical_p=1"), "no longer supports"),
        (("--message", "tool", "x"), "unknown role"),
        (("--renderer", "qwen3coder"), "did you mean qwen3-coder?"),
        (("--requires", "latest"), "not a version"),
        (("--fim",), "no tokens for filling in"),
    ],
)
def test_a_wish_that_cannot_be_granted_stops_before_the_work(run: Run, options: tuple[str, ...], says: str) -> None:
    """`modelfile`, `publish` and its --dry-run refuse alike, and say why."""
    for command in (("modelfile", "demo"), ("publish", "demo"), ("publish", "demo", "--dry-run")):
        done = run(*command, *options)
        assert done.exit_code in (2, 3)
        assert says in done.stderr
        assert not Path("registry").exists()


def test_a_base_model_gets_its_text_as_it_is(decided: Decide, arch: Archs, demo: Path) -> None:
    """Without a chat template Ollama would write ChatML around a text, so there is a TEMPLATE that does not."""
    assert decided(arch("gpt2")).template == "{{ .Prompt }}"
    assert decided(arch("gpt2"), renderer="cohere").template is None
    assert decided(demo).template is None


def test_filling_in_the_middle_is_offered_where_it_was_trained(decided: Decide, arch: Archs) -> None:
    """StarCoder's makers trained it; elsewhere tokens alone prove nothing, and the user decides."""
    for name in ("starcoder2", "gpt_bigcode"):
        assert (
            decided(arch(name)).template == f"{{{{ if .Suffix }}}}{_FILL}{{{{ else }}}}{{{{ .Prompt }}}}{{{{ end }}}}"
        )
    assert decided(arch("starcoder2"), fim=False).template == "{{ .Prompt }}"
    assert decided(arch("starcoder2"), template="mine").template == "mine"
    with pytest.raises(UnsupportedError, match="own chat template"):
        decided(arch("granite"), fim=True)
    with pytest.raises(UnsupportedError, match="no tokens"):
        decided(arch("gpt2"), fim=True)


def test_a_chat_model_fills_in_through_its_familys_template(decided: Decide, arch: Archs, tmp_path: Path) -> None:
    """Where a Go template is wanted anyway, it can fill in too."""
    folder = shutil.copytree(arch("granite"), tmp_path / "coder")
    (folder / "chat_template.jinja").write_text("<|im_start|>{{ messages }}<|im_end|>")
    chatml = decided(folder, with_template=True).template
    assert chatml is not None
    assert "Suffix" not in chatml
    made = decided(folder, with_template=True, fim=True).template
    assert made == f"{{{{ if .Suffix }}}}{_FILL}{{{{ else }}}}{chatml}{{{{ end }}}}"


def test_an_embedding_model_is_not_prompted(decided: Decide, arch: Archs, tmp_path: Path) -> None:
    """It has no stops and no template, and the length at which its makers cut a text; chat settings are refused."""
    assert decided(arch("bert")) == Modelfile()
    folder = shutil.copytree(arch("bert"), tmp_path / "mini")
    (folder / "LICENSE").write_text("MIT")
    lengths = folder / "sentence_bert_config.json"
    for length, parameters in ((16, (("num_ctx", 16),)), (10_000, ())):
        lengths.write_text(json.dumps({"max_seq_length": length}))
        assert decided(folder) == Modelfile(parameters=parameters, licenses=("MIT",))
    assert decided(folder, num_ctx=32).parameters == (("num_ctx", 32),)
    with pytest.raises(UsageError, match="leave out system, fim"):
        decided(folder, system="Be brief.", fim=False)


@pytest.mark.parametrize("is_bare", [False, True])
def test_a_decoder_that_pools_is_an_embedding_model(
    decided: Decide, arch: Archs, tmp_path: Path, silent_log: Any, is_bare: bool
) -> None:
    """Qwen's embedding models, with or without the head's name before their tensors', say how they pool."""
    folder = shutil.copytree(arch("qwen3"), tmp_path / "qwen3-embedding")
    shutil.copy(arch("bert") / "modules.json", folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    if is_bare:
        tensors = load_file(folder / "model.safetensors")
        bare = {name.removeprefix("model."): value for name, value in tensors.items() if name != "lm_head.weight"}
        save_file(bare, folder / "model.safetensors")
    with flow.prepare(str(folder), silent_log) as prepared:
        assert prepared.blueprint.pooling_type == 3
        assert "blk.0.attn_q.weight" in {draft.name for draft in prepared.blueprint.drafts}
    assert decided(folder).template is None
    assert decided(folder).parameters == ()


@pytest.mark.parametrize("command", [("publish",), ("publish", "--dry-run"), ("modelfile",)])
def test_vectors_without_pooling_are_refused(run: Run, arch: Archs, command: tuple[str, ...], tmp_path: Path) -> None:
    """Ollama would crash on an encoder that does not say how to pool: it is refused with the files to add."""
    done = run(command[0], arch("roberta"), *command[1:])
    assert (done.exit_code, "1_Pooling/config.json" in done.stderr) == (3, True)
    assert not (tmp_path / "registry").exists()
    assert run("convert", arch("roberta"), "-o", tmp_path / "roberta.gguf").exit_code == 0


@pytest.mark.parametrize(
    "name", ["BertForSequenceClassification", "XLMRobertaForSequenceClassification", "Qwen3ForSequenceClassification"]
)
def test_rerankers_are_refused_with_the_reason(run: Run, arch: Archs, tmp_path: Path, name: str) -> None:
    """A head that gives scores is named as such, with what can serve it."""
    folder = shutil.copytree(arch("bert"), tmp_path / "reranker")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
    done = run("publish", folder)
    assert done.exit_code == 3
    assert "gives scores" in done.stderr
    assert "llama-server --reranking" in done.stderr


def test_a_reranker_that_is_a_gguf_already_is_refused(silent_log: Any, arch: Archs) -> None:
    """The pooling "rank" in a header means scores."""
    with flow.prepare(str(arch("bert")), silent_log) as prepared:
        blueprint = prepared.blueprint
        decide.require_use(blueprint, "bert")
        metadata = tuple(
            u32("bert.pooling_type", 4) if kv.key == "bert.pooling_type" else kv for kv in blueprint.metadata
        )
        with pytest.raises(UnsupportedError, match="reranker"):
            decide.require_use(replace(blueprint, metadata=metadata), "bert")


def test_what_ollama_does_otherwise_is_noted(arch: Archs, tmp_path: Path, silent_log: Any) -> None:
    """A checkpoint with prompts, or without the step to unit length, is published with a note on each."""
    folder = shutil.copytree(arch("bert"), tmp_path / "e5")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query: ", "doc": ""}}))
    with flow.prepare(str(folder), silent_log) as prepared:
        notes = "\n".join(prepared.blueprint.notes)
    assert "query: 'query: '" in notes
    assert "doc" not in notes
    assert "vectors of length 1" in notes
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with flow.prepare(str(folder), silent_log) as prepared:
        assert "length 1" not in "\n".join(prepared.blueprint.notes)
