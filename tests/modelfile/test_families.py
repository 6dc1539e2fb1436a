"""Chat families: what a file must be, which checkpoint is whose, and what the Go templates make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import pytest

from pipeline.errors import FormatError, UnsupportedError
from pipeline.modelfile.families import Family, families, match_family
from pipeline.modelfile.render import Overrides, make_modelfile
from pipeline.runtime import LlamaInstall

_GOOD = '{#\nname = "mine"\nmatch = ["<a>"]\nstops = ["<b>"]\n#}\n{%- raw -%}{{ .Prompt }}{%- endraw -%}\n'
_SEQUENCES = ("u", "su", "uau", "suau", "suauau", "ua", "sua", "uaua", "suaua", "s", "a")
_WITH_GO = [family for family in families().values() if family.template is not None]
_EXPECTED = json.loads((Path(__file__).parent / "families.json").read_text(encoding="utf-8"))
_ROLES = {"s": "system", "u": "user", "a": "assistant"}
_TEXTS = ("plain words", " blanks at both ends ", 'quotes " and {{ braces }}\nand lines\n', "ünïcödé 漢字 🦙", "0", "")


def _family(folder: Path, text: str, name: str = "mine") -> Path:
    (folder / "chat").mkdir(exist_ok=True)
    path = folder / "chat" / f"{name}.j2"
    path.write_text(text, encoding="utf-8")
    return path


def _conversation(sequence: str, shift: int) -> list[dict[str, str]]:
    return [{"role": _ROLES[letter], "content": _TEXTS[(i + shift) % len(_TEXTS)]} for i, letter in enumerate(sequence)]


def _reference(folder: Path, family: Family, messages: list[dict[str, str]], **more: Any) -> str:
    source = (folder / f"{family.name}.jinja").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=False).from_string(source).render(messages=messages, **more)  # noqa: S701


def _go(messages: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "System": "\n\n".join(m["content"] for m in messages if m["role"] == "system"),
        "Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages],
        "Response": "",
    }


@pytest.mark.parametrize("shift", range(len(_TEXTS)))
@pytest.mark.parametrize("sequence", _SEQUENCES)
@pytest.mark.parametrize("family", _WITH_GO, ids=lambda f: f.name)
def test_go_template_makes_the_checkpoints_prompt(
    family: Family, sequence: str, shift: int, go_template: ModuleType, chat_references: Path
) -> None:
    """From .Messages the Go template makes what the checkpoint's template makes; an open assistant turn stays open."""
    messages = _conversation(sequence, shift)
    if sequence.endswith("a"):
        before = _reference(chat_references, family, messages[:-1], add_generation_prompt=True)
        expected = before + messages[-1]["content"]
    else:
        expected = _reference(chat_references, family, messages, add_generation_prompt=True)
    assert family.template is not None
    assert go_template.execute(family.template, _go(messages)) == expected


@pytest.mark.parametrize("system", ["", "be brief"])
@pytest.mark.parametrize("family", _WITH_GO, ids=lambda f: f.name)
def test_go_template_works_turn_by_turn(
    family: Family, system: str, go_template: ModuleType, chat_references: Path
) -> None:
    """From .System, .Prompt and .Response it makes one whole turn, and up to .Response what the model goes on with."""
    asked = [{"role": "system", "content": system}] if system else []
    asked.append({"role": "user", "content": "why?"})
    data = {"System": system, "Prompt": "why?", "Response": ""}
    assert family.template is not None
    opened = _reference(chat_references, family, asked, add_generation_prompt=True)
    assert go_template.execute(family.template, data, cut_after=".Response") == opened
    whole = _reference(chat_references, family, [*asked, {"role": "assistant", "content": "so."}])
    assert go_template.execute(family.template, data | {"Response": "so."}) == whole


def test_each_family_matches_its_own_reference(chat_references: Path) -> None:
    """Every family with a Go template has a reference, and is the one that is found for it."""
    table = families()
    assert {family.name for family in _WITH_GO} == {path.stem for path in chat_references.glob("*.jinja")}
    for name in {family.name for family in _WITH_GO}:
        found = match_family((chat_references / f"{name}.jinja").read_text(encoding="utf-8"), table)
        assert found is not None
        assert found.name == name


@pytest.mark.parametrize(
    ("checkpoint", "name"), [("models/demo", "chatml"), ("qwen2", "chatml"), ("llama3", "llama3"), ("olmo", None)]
)
def test_real_chat_templates_find_their_family(repository: Path, checkpoint: str, name: str | None) -> None:
    """The demo and the small checkpoints are of the families they look like, or of none."""
    folder = repository / checkpoint if "/" in checkpoint else repository / "tests/fixtures/arch" / checkpoint
    found = match_family((folder / "chat_template.jinja").read_text(encoding="utf-8"), families())
    assert (found and found.name) == name


@pytest.mark.native
def test_each_real_template_finds_its_family(
    llama: LlamaInstall, oracle: Callable[[str], Any], repository: Path
) -> None:
    """A hundred templates of real models: each is of the family that the table says, or of none."""
    assert llama.source_dir is not None
    real = oracle("chat_templates")
    templates = real.from_files(llama.source_dir) | real.from_tests(llama.source_dir)
    assert len(templates) > 100
    table = families()
    found = {name: match_family(text, table) for name, text in templates.items()}
    assert {name: family and family.name for name, family in found.items()} == _EXPECTED
    # Every family has one, but for those of which neither llama.cpp nor this repository has a template.
    folder = repository / "tests" / "fixtures" / "arch"
    small = [match_family(path.read_text("utf-8"), table) for path in folder.glob("*/chat_template.jinja")]
    seen = {family.name for family in (*found.values(), *small) if family is not None}
    assert set(table) - seen == {"llama4", "nemotron", "olmo2", "zephyr"}


def test_two_shipped_families_that_fit_alike_are_none() -> None:
    """A template with the marks of two families is of none: publishing goes on without one's stops."""
    assert match_family("USER: ASSISTANT: [|assistant|] [|endofturn|]", families()) is None


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("llama4", "<|header_start|>user<|header_end|>\n\nx<|eot|>"),
        ("nemotron", "<extra_id_0>System\n\n<extra_id_1>User"),
        ("olmo2", "{{ '<|user|>\\n' + message['content'] + '\\n' }}{{ '<|assistant|>\\n' }}"),
        ("zephyr", "{{ '<|user|>\\n' + message['content'] + eos_token }}{{ '<|assistant|>' }}"),
    ],
)
def test_families_without_a_template_at_hand_are_found_by_their_form(name: str, template: str) -> None:
    """The form that the model's makers publish is that of the family."""
    found = match_family(template, families())
    assert found is not None
    assert found.name == name


def test_a_family_may_be_without_a_go_template(tmp_path: Path) -> None:
    """A header alone is a family; nothing can be published with a TEMPLATE of it."""
    _family(tmp_path, _GOOD.partition("{%-")[0])
    assert families(tmp_path)["mine"].template is None
    with pytest.raises(UnsupportedError, match="chat family 'mine' has no Go template"):
        make_modelfile(
            chat_template="<a>",
            generation_config={},
            eos_texts=(),
            licenses=(),
            overrides=Overrides(),
            with_template=True,
            families=families(tmp_path),
        )


def test_no_template_no_family() -> None:
    """A checkpoint without a chat template has no family."""
    assert match_family(None, families()) is None


def test_more_markers_win_and_a_tie_names_both_files(tmp_path: Path) -> None:
    """Of several matching families the one with most markers is taken; equals are refused."""
    _family(tmp_path, _GOOD)
    _family(tmp_path, _GOOD.replace('"mine"', '"more"').replace('["<a>"]', '["<a>", "<c>"]'), "more")
    table = families(tmp_path)
    assert match_family("<a> <c>", table) is table["more"]
    assert match_family("<a>", table) is table["mine"]
    tie = _family(tmp_path, _GOOD.replace('"mine"', '"other"'), "other")
    with pytest.raises(FormatError) as caught:
        match_family("<a>", families(tmp_path))
    assert str(tie) in str(caught.value)
    assert "mine.j2" in str(caught.value)


def test_the_users_file_wins_over_a_shipped_one(tmp_path: Path) -> None:
    """A file of the same name in the user's folder replaces the shipped family."""
    _family(tmp_path, _GOOD.replace('"mine"', '"chatml"'), "chatml")
    table = families(tmp_path)
    assert table["chatml"].template == "{{ .Prompt }}"
    assert "llama3" in table


def test_sampling_defaults_are_read(tmp_path: Path) -> None:
    """The sampling table of a family gives its parameters in order."""
    _family(tmp_path, _GOOD.replace("#}", "[sampling]\ntop_k = 20\ntemperature = 1\n#}"))
    assert families(tmp_path)["mine"].sampling == (("top_k", 20), ("temperature", 1.0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("{#", "x{#"), "starts with its own description"),
        (('name = "mine"', 'name = "yours"'), "name of its file"),
        (('name = "mine"\n', ""), "name of its file"),
        (("match = [", "match = "), "not TOML"),
        (('match = ["<a>"]', "match = []"), "'match' is a list"),
        (('match = ["<a>"]', 'match = "<a>"'), "'match' is a list"),
        (('match = ["<a>"]', 'match = ["<a>", ""]'), "'match' is a list"),
        (('stops = ["<b>"]', 'stops = ["<b>", "<b>"]'), "'stops' is a list"),
        (('stops = ["<b>"]\n', ""), "'stops' is a list"),
        (("#}", "stop = 1\n#}"), "unknown key"),
        (("#}", "sampling = 1\n#}"), "'sampling' is a table"),
        (("#}", "[sampling]\nstop = 'x'\n#}"), "'sampling' is a table"),
        (("#}", "[sampling]\nheat = 1\n#}"), "no parameter 'heat'"),
        (("#}", "[sampling]\ntop_k = 0.5\n#}"), "bad value"),
        (("{%- raw -%}", ""), "no plain text to Jinja"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    """Whatever is wrong with a family's file is said, with the file's name."""
    path = _family(tmp_path, _GOOD.replace(*change, 1))
    with pytest.raises(FormatError) as caught:
        families(tmp_path)
    assert says in str(caught.value)
    assert caught.value.where == str(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are an error of the file, not an accident."""
    path = _family(tmp_path, _GOOD)
    path.write_bytes(b"{#\n\xff#}")
    with pytest.raises(FormatError, match="UTF-8"):
        families(tmp_path)
