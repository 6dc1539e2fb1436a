"""Rendering the checkpoint's own chat template: as transformers does, and safely."""

from __future__ import annotations

import os
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FormatError, PipelineError, ResourceError, UnsupportedError, UsageError
from pipeline.prove.prompt import Limits, TemplateRaised, render_chats, variables

_TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Why? \n"},
    {"role": "assistant", "content": "So."},
    {"role": "user", "content": "Grüße <b> 🦙"},
]
_QUICK = Limits(seconds=1, memory_mb=256, text_mb=1)
_FOR = "{% for i in range(99999) %}"
_END = "{% endfor %}"


def _render(
    template: str,
    *,
    now: datetime | None = None,
    limits: Limits | None = None,
    messages: list[dict[str, Any]] = _TALK,
    **more: Any,
) -> str:
    (found,) = render_chats(template, [variables(messages, **more)], now=now, limits=limits or Limits())
    if isinstance(found, PipelineError):
        raise found
    return found


def _fixture(repository: Path, name: str) -> str:
    return (repository / "tests/fixtures/arch" / name / "chat_template.jinja").read_text(encoding="utf-8")


def test_the_demos_template(demo: Path) -> None:
    """The demo's ChatML: texts trimmed, and the assistant's turn opened only if asked for."""
    template = (demo / "chat_template.jinja").read_text(encoding="utf-8")
    turns = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\nSo.<|im_end|>\n<|im_start|>user\nGrüße <b> 🦙<|im_end|>\n"
    )
    assert _render(template) == turns + "<|im_start|>assistant\n"
    assert _render(template, add_generation_prompt=False) == turns


def test_the_small_checkpoints_templates(repository: Path) -> None:
    """BOS and EOS stand where the templates put them; a role that a template leaves out is left out."""
    llama3 = {"bos_token": "<|begin|>"}
    llama2 = {"bos_token": "<s>", "eos_token": "</s>"}
    assert _render(_fixture(repository, "llama3"), **llama3) == (
        "<|begin|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nSo.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nGrüße <b> 🦙<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert _render(_fixture(repository, "llama2"), **llama2) == (
        "<s>[INST]  Why? \n [/INST] So.</s>[INST] Grüße <b> 🦙 [/INST]"
    )
    assert _render(_fixture(repository, "qwen2")).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Why?"
    )


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),  # trim_blocks, lstrip_blocks, last line break dropped
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "13"),
        ("{% for x in [1, 2] %}{{ x }}{% break %}{% endfor %}", "1"),
        ("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "21"),
        ("{{ {'b': '<é>', 'a': [1, 2.0, none]} | tojson }}", '{"b": "<é>", "a": [1, 2.0, null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{{ tools is none }} {{ documents is none }} {{ pad_token is defined }}", "True True False"),
        ("{{ messages[0].content | upper }} {{ messages[0]['role'][:3] }}", "BE BRIEF. sys"),
        ("{{ strftime_now('%d %b %Y') }}", "05 Jan 2031"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "4"),
        ("{{ missing }}{{ '<&>' }}{{ none }}", "<&>None"),
        ("{{ '\ud800' }}", "\ud800"),
    ],
)
def test_the_environment_is_the_one_of_transformers(template: str, text: str) -> None:
    """White space rules, extensions, filters and functions are what transformers gives to a chat template."""
    assert _render(template, now=datetime(2031, 1, 5)) == text


def test_tools_and_variables_arrive_in_their_order() -> None:
    """Tools keep the order of their keys, and further variables are seen; they may also replace ours."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"z": 1.0, "a": None}}}]
    assert _render("{{ tools | tojson }}", tools=tools) == (
        '[{"type": "function", "function": {"name": "f", "parameters": {"z": 1.0, "a": null}}}]'
    )
    extra = {"enable_thinking": False, "documents": ["d"]}
    assert _render("{{ enable_thinking }} {{ documents[0] }}", extra=extra) == "False d"


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(f"{_FOR * 3}{_END * 3}", id="endless loop"),
        pytest.param("{{ 2 ** (10 ** 9) }}", id="one endless operation"),
        pytest.param("{% for i in range(10**9) %}{% endfor %}", id="huge range"),
        pytest.param("{{ ('x' * 10**9) | length }}", id="huge text"),
        pytest.param("{% set a = 'x' * (10**8) %}{{ (a ~ a ~ a) | length }}", id="texts that grow"),
        pytest.param("{{ '%1000000000d' % 1 }}", id="huge format"),
        pytest.param("{{ [0] * 10**9 }}", id="huge list"),
        pytest.param(f"{_FOR}{{{{ 'x' * 1000 }}}}{_END}", id="output without end"),
        pytest.param("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", id="deep recursion"),
        pytest.param("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", id="deep nesting"),
    ],
)
def test_a_template_that_takes_too_much_is_stopped(template: str) -> None:
    """Time, memory, output and depth are bounded: each bomb ends soon, as an error of ours."""
    start = time.monotonic()
    with pytest.raises(ResourceError):
        _render(template, limits=_QUICK)
    assert time.monotonic() - start < 60  # 1 second of its own; the rest is for a busy machine


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ strftime_now.__self__.x }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ self.__init__ }}{{ self._TemplateReference__context.environment.x }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ (''|attr('__class__')).x }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_that_reaches_out_is_refused(template: str) -> None:
    """No attribute leads out of the sandbox, nothing given is changed, and no file is there to include."""
    with pytest.raises(UnsupportedError):
        _render(template, limits=_QUICK)


def test_raise_exception_is_told_apart() -> None:
    """What a template says by raise_exception is an error of its own kind, with the template's words."""
    with pytest.raises(TemplateRaised) as caught:
        _render("{{ raise_exception('Roles must alternate') }}")
    assert caught.value.found == "Roles must alternate"
    assert isinstance(caught.value, UnsupportedError)


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ x | no_such_filter }}", "{% no_such_tag %}", "{% generation %}", "{{ a"]
)
def test_bad_jinja_is_a_format_error(template: str) -> None:
    """A template that is no Jinja is a bad file; the line is named."""
    with pytest.raises(FormatError, match="line 2"):
        _render("\n" + template)


@pytest.mark.parametrize("template", ["{{ x.y }}", "{{ 'a' + 1 }}", "{{ 1 / 0 }}", "{% for x in tools %}{% endfor %}"])
def test_a_template_that_fails_is_not_supported(template: str) -> None:
    """A template that breaks on a conversation is an error with the reason, and not a refusal of its own."""
    with pytest.raises(UnsupportedError, match="Error: ") as caught:
        _render(template)
    assert not isinstance(caught.value, TemplateRaised)


def test_cases_are_rendered_one_by_one() -> None:
    """One process renders several conversations; an error is the answer for its own case alone."""
    template = "{{ messages[0].content.x }}{% if n %}{{ raise_exception('no') }}{% endif %}{{ 'x' * size }}"
    cases = [variables(_TALK, extra={"n": n, "size": size}) for n, size in ((0, 1), (1, 1), (0, 2 << 20), (0, 2))]
    first, raised, long, last = render_chats(template, cases, limits=_QUICK)
    assert isinstance(raised, TemplateRaised)
    assert isinstance(long, ResourceError)
    assert (first, isinstance(last, ResourceError)) == ("x", True)  # the room is that of all together


def test_a_conversation_is_json() -> None:
    """A message with a value that JSON does not know is a wrong call."""
    with pytest.raises(UsageError):
        _render("", messages=[{"role": "user", "content": object()}])


def test_too_little_memory_for_any_rendering_is_an_error_of_ours() -> None:
    """A limit that not even the interpreter fits in ends as an error, not as a crash or an empty prompt."""
    with pytest.raises(PipelineError):
        _render("x", limits=Limits(memory_mb=1))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_the_child_inherits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a template runs, its process has no environment of ours, and bounds; afterwards it is gone."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    errors: list[PipelineError] = []

    def work() -> None:
        try:
            _render(f"{_FOR * 3}{_END * 3}", limits=Limits(seconds=1.5))
        except PipelineError as exc:
            errors.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        child = _find_child(time.monotonic() + 5)
        names = {item.split(b"=")[0] for item in (child / "environ").read_bytes().split(b"\0") if item}
        limits = (child / "limits").read_text()
    finally:
        thread.join()
    assert names <= {b"LD_LIBRARY_PATH", b"LC_CTYPE"}
    assert f"Max address space         {512 << 20}" in limits
    assert "Max processes             0" in limits
    assert not child.exists()
    assert [type(error) for error in errors] == [ResourceError]


def _find_child(deadline: float) -> Path:
    """Wait for the rendering process of ours that has set its limits."""
    while time.monotonic() < deadline:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (
                    f"\nPPid:\t{os.getpid()}\n" in (folder / "status").read_text()
                    and b"_template_child.py" in (folder / "cmdline").read_bytes()
                    and str(512 << 20) in (folder / "limits").read_text()
                ):
                    return folder
            except OSError:
                continue  # that process has just ended
    raise AssertionError("no child was seen")
