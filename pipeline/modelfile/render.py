"""Decide what a model's Modelfile says, and write it as text or as the store's params layer."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2

from pipeline import data
from pipeline.errors import FormatError, UnsupportedError, UsageError
from pipeline.modelfile import _engine, _fim, _parameters
from pipeline.modelfile._parameters import Parameter
from pipeline.modelfile._quoting import quoted
from pipeline.modelfile.families import Family, match_family
from pipeline.modelfile.overrides import Overrides
from pipeline.modelfile.sampling import generation_config_of, sampling_metadata, sampling_parameters
from pipeline.types import Modelfile

__all__ = [
    "Overrides",
    "generation_config_of",
    "make_embedding_modelfile",
    "make_modelfile",
    "params_layer",
    "parse_parameter",
    "render_text",
    "sampling_metadata",
]

parse_parameter = _parameters.parse


def make_modelfile(
    *,
    chat_template: str | None,
    generation_config: Mapping[str, Any],
    eos_texts: Sequence[str],
    licenses: Sequence[str],
    overrides: Overrides,
    with_template: bool,
    families: Mapping[str, Family],
    family_name: str | None = None,
    vocabulary: Container[str] | None = None,
    architecture: str = "",
    tokens: Container[str] = (),
) -> Modelfile:
    """Decide what the Modelfile of a model that writes text says; *licenses* are the checkpoint's.

    Stops are those of the family that the model can say, then *eos_texts* (the texts of its end-of-generation tokens).
    The model can say what is in *vocabulary*; without one, what its chat template or *eos_texts* name.

    There is no template where the checkpoint has its own, unless *with_template* or the user brings one.  A base model,
    which has none, gets its text as it is (Ollama would put it into ChatML), and `insert` where *architecture* or the
    user says that it was trained to fill in the middle and *tokens* has what that needs.

    Raises:
        FormatError: if generation_config.json has a value of a wrong type, or two families match equally.
        UnsupportedError: if a template or `insert` is wanted and there is nothing to make it of.
        UsageError: if an override is nothing that Ollama takes, or *family_name*, which wins over the template, is no
            family.
    """
    overrides.check()
    family = match_family(chat_template, families) if family_name is None else _named(family_name, families)
    if with_template and overrides.template is None and (family is None or family.template is None):
        raise UnsupportedError(
            f"chat family {family.name!r} has no Go template"
            if family
            else "no chat family fits this checkpoint, so there is no Go template for it",
            expected=f"one of {', '.join(sorted(name for name, one in families.items() if one.template))}",
            hint="publish without a template: Ollama then uses the checkpoint's own; or add templates/chat/<family>.j2",
        )
    found = dict(family.sampling if family else ()) | dict(sampling_parameters(generation_config))
    stops = [s for s in family.stops if _can_say(s, chat_template, eos_texts, vocabulary)] if family else []
    stops = list(dict.fromkeys(s for s in (*stops, *eos_texts) if s))
    template = overrides.template or (family.template if family and with_template else None)
    if template is None and chat_template is None and overrides.renderer is None:
        template = _fim.PLAIN
    made = _said(overrides, [*found.items(), *(("stop", s) for s in stops)], licenses)
    fills = _with_fim(template, overrides, architecture, tokens)
    notes = made.notes if fills == template else (*made.notes, *_fim_notes(chat_template, fills or ""))
    return replace(made, template=fills, family=family.name if family else None, notes=notes)


def make_embedding_modelfile(*, max_tokens: int | None, licenses: Sequence[str], overrides: Overrides) -> Modelfile:
    """Decide what the Modelfile of an embedding model says; *max_tokens* is where its makers cut a text.

    Raises:
        UsageError: if an override is nothing that Ollama takes, or means nothing for an embedding model.
    """
    overrides.check()
    chatty = ("system", "messages", "template", "renderer", "parser", "fim")
    useless = [name for name in chatty if getattr(overrides, name) not in (None, ())]
    if useless:
        raise UsageError("an embedding model is not prompted", where=useless[0], hint=f"leave out {', '.join(useless)}")
    return _said(overrides, [] if max_tokens is None else [("num_ctx", max_tokens)], licenses)


def _said(overrides: Overrides, rows: Sequence[Parameter], licenses: Sequence[str]) -> Modelfile:
    """Lay what the user says over the *rows* and *licenses* that were found."""
    wanted = overrides.rows()
    ignored = sorted({name for name, _ in wanted if name in _parameters.IGNORED})
    replaced = {name for name, _ in wanted}
    return Modelfile(
        parameters=(
            *(row for row in rows if row[0] not in replaced),
            *(row for row in wanted if row[0] not in ignored),
        ),
        system=overrides.system or None,
        licenses=tuple(text for text in (licenses if overrides.licenses is None else overrides.licenses) if text),
        messages=overrides.messages,
        requires=_engine.version(overrides.requires) if overrides.requires else None,
        renderer=overrides.renderer or None,
        parser=overrides.parser or None,
        notes=tuple(f"Ollama no longer has the parameter {name!r}: it is left out" for name in ignored),
    )


def _fim_notes(chat_template: str | None, template: str) -> tuple[str, ...]:
    """Say what `insert` costs.

    Raises:
        UnsupportedError: if Ollama would use the checkpoint's own template all the same.
    """
    lost = _fim.lost(chat_template, template)
    if lost is None:
        raise UnsupportedError(
            "Ollama would not offer `insert`: it takes the checkpoint's own chat template, which shows more abilities",
            where="fim",
            hint="leave fim out; or publish it once more under another name, from a copy without a chat template",
        )
    return tuple(f"for `insert`, Ollama prompts this model by a Go TEMPLATE: {name} is lost" for name in sorted(lost))


def _with_fim(template: str | None, overrides: Overrides, architecture: str, tokens: Container[str]) -> str | None:
    """Let *template* fill in the middle, where the model was trained for it or the user says so."""
    trained = architecture in _fim.TRAINED and template == _fim.PLAIN
    if overrides.fim is False or not (trained or overrides.fim):
        return template
    fim = _fim.find(tokens)
    if fim is not None and template is not None:
        return _fim.template(fim, template)
    if not overrides.fim:
        return template
    if fim is None:
        raise UnsupportedError(
            "the tokenizer has no tokens for filling in the middle",
            where="fim",
            expected="such as <fim_prefix>, <fim_suffix> and <fim_middle>",
            hint="leave fim out, or bring a template of your own that uses .Suffix",
        )
    raise UnsupportedError(
        "Ollama offers `insert` through a Go template alone, and this model is prompted by its own chat template",
        where="fim",
        hint="add --with-template if its chat family has one, or bring a template of your own",
    )


def render_text(modelfile: Modelfile, from_: str, templates_dir: Path | None = None) -> str:
    """Write the Modelfile as text; *from_* is what its FROM names, a GGUF's path or a model.

    The layout is Modelfile.j2 in *templates_dir* where it has one, else the shipped one.

    Raises:
        InputError: if a text cannot be said in a Modelfile.
        FormatError: if the layout is no good Jinja.
    """
    path = data.path("templates") / "Modelfile.j2"
    if templates_dir is not None and (templates_dir / "Modelfile.j2").is_file():
        path = templates_dir / "Modelfile.j2"
    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 - this is no HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["quoted"] = quoted
    try:
        return environment.from_string(path.read_text(encoding="utf-8")).render(
            from_=from_,
            parameters=[(name, _text(value)) for name, value in modelfile.parameters],
            template=modelfile.template,
            system=modelfile.system,
            messages=modelfile.messages,
            licenses=modelfile.licenses,
            requires=modelfile.requires,
            renderer=modelfile.renderer,
            parser=modelfile.parser,
        )
    except (jinja2.TemplateError, UnicodeDecodeError) as exc:
        raise FormatError("the Modelfile layout cannot be rendered", where=path, found=str(exc)) from exc


def params_layer(modelfile: Modelfile) -> dict[str, int | float | bool | str | list[str]]:
    """Give the content of the store's params layer: sorted names, stops as a list, whole floats as Go writes them."""
    layer: dict[str, int | float | bool | str | list[str]] = {}
    stops: list[str] = []
    for name, value in sorted(modelfile.parameters, key=lambda pair: pair[0]):
        if name == "stop":
            stops.append(str(value))
            layer[name] = stops
        elif isinstance(value, float) and value.is_integer():
            layer[name] = int(value)
        else:
            layer[name] = value
    return layer


def _named(name: str, families: Mapping[str, Family]) -> Family:
    if name not in families:
        raise UsageError(
            f"no chat family is called {name!r}", expected=", ".join(sorted(families)), hint="correct models.toml"
        )
    return families[name]


def _can_say(stop: str, chat_template: str | None, eos_texts: Sequence[str], vocabulary: Container[str] | None) -> bool:
    if stop in eos_texts:
        return True
    return stop in (chat_template or "") if vocabulary is None else stop in vocabulary


def _text(value: int | float | bool | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
