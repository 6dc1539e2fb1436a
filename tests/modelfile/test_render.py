"""The Modelfile: what it says, and that Ollama's parser reads back exactly that."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import FormatError, InputError, UnsupportedError, UsageError
from pipeline.modelfile.families import families
from pipeline.modelfile.render import Overrides, make_modelfile, params_layer, parse_parameter, render_text
from pipeline.types import Modelfile

_CHATML = "<|im_start|>{{ messages }}<|im_end|>"
# Few characters, so that the nasty ones meet: quotes, blanks, line breaks, comments, braces, a dropped one.
_nasty = st.text(st.sampled_from('"""\n\r\t  #\\{}:ab漢'), max_size=12)
_texts = st.one_of(_nasty, st.text(max_size=40))


def _make(**more: Any) -> Modelfile:
    wanted: dict[str, Any] = {
        "chat_template": _CHATML,
        "generation_config": {},
        "eos_texts": (),
        "licenses": (),
        "overrides": Overrides(),
        "with_template": False,
        "families": families(),
    }
    return make_modelfile(**(wanted | more))


def _sayable(text: str) -> bool:
    """What the parser can hold at all: it drops characters, and three quotes at a line's end close any value."""
    if any(not c.isprintable() and c not in "\t\n\r" for c in text):
        return False
    lines = text.replace("\r", "\n").split("\n")
    return not any(line.rstrip(" \t").endswith('"""') for line in lines[:-1])


@given(_texts)
@example('"')
@example('""')
@example('"""')
@example('""""""')
@example('"a')
@example('a"\nb')
@example('"""\n')
@example("\n")
@example(" ")
@example("# no comment")
@example("\\n is two characters")
@example("ends with a backslash\\")
@example('"""a"""\nb')
@example('"" \nb')
def test_ollama_reads_back_each_text_exactly(ollama_parser: ModuleType, text: str) -> None:
    """Every text that a Modelfile can say comes back as it was; every other is refused, whatever command it is for."""
    modelfile = Modelfile(
        parameters=(("stop", text), ("top_k", 3)),
        template=text,
        system=text,
        licenses=(text,),
        messages=(("user", text),),
    )
    if not _sayable(text):
        with pytest.raises(InputError):
            render_text(modelfile, "./a.gguf")
        return
    assert ollama_parser.parse(render_text(modelfile, "./a.gguf")) == [
        ("model", "./a.gguf"),
        ("stop", text),
        ("top_k", "3"),
        ("template", text),
        ("system", text),
        ("message", f"user: {text}"),
        ("license", text),
    ]


@pytest.mark.parametrize("from_", ["./my model.gguf", "/tmp/a.gguf", "demo:latest", ' " odd.gguf'])
def test_from_is_read_back(ollama_parser: ModuleType, from_: str) -> None:
    """FROM names what it was given, blanks and quotes included."""
    assert ollama_parser.parse(render_text(Modelfile(), from_)) == [("model", from_)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\u00a0b", "U+00A0 at character 1"),
        ("\x0c", "U+000C"),
        ("\ud800", "U+D800"),
        ('so """ \nb', "three double quotes"),
    ],
)
def test_a_text_that_cannot_be_said_names_the_reason(text: str, says: str) -> None:
    """The error says which command, what in the text, and what to do."""
    with pytest.raises(InputError) as caught:
        render_text(Modelfile(licenses=(text,)), "x")
    assert caught.value.where == "LICENSE"
    assert says in str(caught.value)
    assert caught.value.hint


def test_the_whole_demo(ollama_parser: ModuleType, demo: Path) -> None:
    """All that the demo says, its template included, comes back from the text, and the params layer says the same."""
    license_text = (demo / "LICENSE").read_text(encoding="utf-8")
    made = _make(
        chat_template=(demo / "chat_template.jinja").read_text(encoding="utf-8"),
        generation_config=json.loads((demo / "generation_config.json").read_text(encoding="utf-8")),
        eos_texts=["<|im_end|>", "<|endoftext|>"],
        licenses=[license_text],
        overrides=Overrides(num_ctx=512, system="Answer in one sentence.\n", messages=(("user", "hi"),)),
        with_template=True,
    )
    commands = ollama_parser.parse(render_text(made, "demo.gguf"))
    assert [c for c in commands if c[0] in ("license", "system", "template", "message")] == [
        ("template", families()["chatml"].template),
        ("system", "Answer in one sentence.\n"),
        ("message", "user: hi"),
        ("license", license_text),
    ]
    stops = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    layer = {"num_ctx": 512, "stop": stops, "temperature": 0.01, "top_k": 1}
    assert params_layer(made) == layer
    assert ollama_parser.params(commands) == {k: v if k == "stop" else [str(v)] for k, v in layer.items()}


def test_there_is_no_template_unless_wanted() -> None:
    """The checkpoint's own template is the best one, so none is written by default; the family is known."""
    made = _make()
    assert (made.template, made.family) == (None, "chatml")
    assert "TEMPLATE" not in render_text(made, "x")


@pytest.mark.parametrize("chat_template", [None, "[INST]"])
def test_a_wanted_template_needs_a_family(chat_template: str | None) -> None:
    """A Go template for a checkpoint of no known family is refused; without one it is fine."""
    with pytest.raises(UnsupportedError, match="no chat family"):
        _make(chat_template=chat_template, with_template=True)
    assert _make(chat_template=chat_template, eos_texts=["</s>"]).parameters == (("stop", "</s>"),)


@pytest.mark.parametrize(
    ("eos", "vocabulary", "stops"),
    [
        ((), None, ["<|im_start|>", "<|im_end|>"]),
        ((), {"<|im_end|>"}, ["<|im_end|>"]),
        (("<|im_start|>",), set(), ["<|im_start|>"]),
        (("</s>", "<|im_end|>", "</s>", ""), {"<|im_end|>"}, ["<|im_end|>", "</s>"]),
    ],
)
def test_stops_are_what_the_model_can_say(eos: tuple[str, ...], vocabulary: set[str] | None, stops: list[str]) -> None:
    """The family's stops that the vocabulary has, then the end-of-generation texts, each once."""
    assert params_layer(_make(eos_texts=eos, vocabulary=vocabulary)).get("stop", []) == stops


def test_overrides_win(tmp_path: Path) -> None:
    """The user's parameters win over the checkpoint's, those over the family's; own stops replace the found ones."""
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat/mine.j2").write_text(
        '{#\nname="mine"\nmatch=["<x>"]\nstops=["<x>"]\n[sampling]\ntop_k=7\ntop_p=0.5\nmin_p=0.1\n#}{{ "t" }}'
    )
    made = _make(
        chat_template="<x>",
        families=families(tmp_path),
        generation_config={"top_p": 0.6, "min_p": 0.2},
        overrides=Overrides(parameters=(("min_p", 0.3), ("stop", "a"), ("stop", "b"), ("use_mmap", False))),
    )
    assert params_layer(made) == {"min_p": 0.3, "stop": ["a", "b"], "top_k": 7, "top_p": 0.6, "use_mmap": False}
    assert "PARAMETER use_mmap false\n" in render_text(made, "x")


def test_numbers_are_ollamas() -> None:
    """Floats are rounded to float32 and written shortest, whole ones as Go writes them, names sorted."""
    made = _make(
        chat_template=None, generation_config={"temperature": 1.0, "top_p": 0.123456789012, "repetition_penalty": 2}
    )
    assert json.dumps(params_layer(made)) == '{"repeat_penalty": 2, "temperature": 1, "top_p": 0.12345679}'


@pytest.mark.parametrize(
    "overrides",
    [
        Overrides(parameters=(("typical_p", 0.9),)),
        Overrides(parameters=(("numa", True),)),
        Overrides(parameters=(("top_k", 1.5),)),
        Overrides(parameters=(("top_k", True),)),
        Overrides(parameters=(("seed", 2**63),)),
        Overrides(parameters=(("use_mmap", 1),)),
        Overrides(parameters=(("stop", ""),)),
        Overrides(parameters=(("top_k", 1), ("top_k", 2))),
        Overrides(num_ctx=0),
        Overrides(messages=(("tool", "x"),)),
    ],
    ids=str,
)
def test_what_ollama_would_refuse_is_refused_here(overrides: Overrides) -> None:
    """Unknown names, wrong types, repetitions and unknown roles are errors of the call."""
    with pytest.raises(UsageError):
        _make(overrides=overrides)


@pytest.mark.parametrize(
    ("setting", "pair"),
    [
        ("temperature=0.6", ("temperature", 0.6)),
        ("temperature=1", ("temperature", 1.0)),
        ("top_k=20", ("top_k", 20)),
        ("use_mmap=True", ("use_mmap", True)),
        ("stop=a=b ", ("stop", "a=b ")),
    ],
)
def test_settings_are_read(setting: str, pair: tuple[str, Any]) -> None:
    """name=value becomes a value of the parameter's own type."""
    found = parse_parameter(setting)
    assert found == pair
    assert type(found[1]) is type(pair[1])


@pytest.mark.parametrize(
    "setting", ["top_k", "top_k=x", "top_k=1.5", "top_p=nan", "use_mmap=1", "stop=", "typical_p=1"]
)
def test_bad_settings_are_refused(setting: str) -> None:
    """What is no setting of Ollama's is an error of the call."""
    with pytest.raises(UsageError):
        parse_parameter(setting)


def test_a_layout_of_the_users_own(tmp_path: Path) -> None:
    """A Modelfile.j2 in the user's folder replaces the layout; a folder without one does not; a broken one is named."""
    assert render_text(Modelfile(), "a b", tmp_path) == 'FROM "a b"\n'
    layout = tmp_path / "Modelfile.j2"
    layout.write_text("# mine\nFROM {{ from_ | quoted('FROM') }}\n")
    assert render_text(Modelfile(), "x", tmp_path) == "# mine\nFROM x\n"
    for broken in (b"{% if %}", b"{{ nothing }}", b"\xff"):
        layout.write_bytes(broken)
        with pytest.raises(FormatError, match="layout"):
            render_text(Modelfile(), "x", tmp_path)
