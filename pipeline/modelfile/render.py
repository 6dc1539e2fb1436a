"""Decide what a model's Modelfile says, and write it as text or as the store's params layer."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from pipeline import data
from pipeline.errors import FormatError, UnsupportedError, UsageError
from pipeline.modelfile import _parameters
from pipeline.modelfile._quoting import quoted
from pipeline.modelfile.families import Family, match_family
from pipeline.modelfile.sampling import generation_config_of, sampling_metadata, sampling_parameters
from pipeline.types import Modelfile

__all__ = [
    "Overrides",
    "generation_config_of",
    "make_modelfile",
    "params_layer",
    "parse_parameter",
    "render_text",
    "sampling_metadata",
]

Parameter = tuple[str, int | float | bool | str]
parse_parameter = _parameters.parse
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Overrides:
    """What the user says; it wins over the checkpoint and the family.

    A name in *parameters* replaces all found rows of that name (stops too); *num_ctx* is in tokens; *messages* are
    (role, content) that every conversation starts with.
    """

    parameters: tuple[Parameter, ...] = ()
    num_ctx: int | None = None
    system: str | None = None
    messages: tuple[tuple[str, str], ...] = ()


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
) -> Modelfile:
    """Decide parameters, system prompt, licences and, if *with_template*, the Go template.

    Stops are those of the family that the model can say, then *eos_texts* (the texts of its end-of-generation tokens).
    The model can say what is in *vocabulary*; without one, what its chat template or *eos_texts* name.

    Raises:
        FormatError: if generation_config.json has a value of a wrong type, or two families match equally.
        UnsupportedError: if a template is wanted and no family matches.
        UsageError: if an override is nothing that Ollama takes, or *family_name*, which wins over the template, is no
            family.
    """
    family = match_family(chat_template, families) if family_name is None else _named(family_name, families)
    if with_template and (family is None or family.template is None):
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
    wanted = _wanted(overrides)
    replaced = {name for name, _ in wanted}
    rows = [*found.items(), *(("stop", s) for s in stops)]
    return Modelfile(
        parameters=(*(row for row in rows if row[0] not in replaced), *wanted),
        template=family.template if family and with_template else None,
        system=overrides.system or None,
        licenses=tuple(text for text in licenses if text),
        messages=_messages(overrides),
        family=family.name if family else None,
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


def _wanted(overrides: Overrides) -> tuple[Parameter, ...]:
    pairs = list(overrides.parameters)
    if overrides.num_ctx is not None:
        pairs.append(("num_ctx", overrides.num_ctx))
    rows = [_parameters.checked(name, value, where="parameter") for name, value in pairs]
    names = [name for name, _ in rows if name != "stop"]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"parameter {twice!r} is given twice")
    if any(name == "num_ctx" and int(value) <= 0 for name, value in rows):
        raise UsageError("num_ctx is a number of tokens", expected="1 or more")
    return tuple(rows)


def _messages(overrides: Overrides) -> tuple[tuple[str, str], ...]:
    for role, _ in overrides.messages:
        if role not in _ROLES:
            raise UsageError("a message has an unknown role", expected=", ".join(_ROLES), found=role)
    return overrides.messages


def _text(value: int | float | bool | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
