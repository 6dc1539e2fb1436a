"""Proves what a file does in llama.cpp: it loads, decodes, cuts texts and makes prompts as its checkpoint does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from pipeline.errors import InputError, ResourceError, ToolError, UnsupportedError
from pipeline.prove._ollama import ollama_check
from pipeline.prove._reference import Reference, open_reference
from pipeline.prove._template import Rendered, Template
from pipeline.prove._tokens import Tokens
from pipeline.prove.conversations import BARE, Message, Setting, abilities, askable
from pipeline.prove.prompts import LlamaServer, compare_prompts, refuses_all, render_all
from pipeline.prove.tokenizer import compare_session
from pipeline.runtime import BUILD_HINT, ChatSession, open_runtime, runtime_at_hand
from pipeline.types import KV, Blob, Check

_N_TOKENS = 4
_CONTEXT = 512
_LOG_LINES = 3

Metadata = Mapping[str, KV]


@dataclass(frozen=True)
class Prompting:
    """How the checkpoint prompts.

    *template* is its own chat template.  *go_template* is a TEMPLATE that the publication brings, which Ollama may
    render instead.  *tokenizer* is the folder of the checkpoint's own tokenizer, None for a GGUF.  *for_ollama* says
    that the model goes straight into this machine's Ollama, which can be asked.  *renderer* is a part of Ollama that
    the publication names, which makes prompts instead of any template.  *setting* is what it says before every
    conversation.
    """

    template: Template | None
    go_template: str | None = None
    renderer: str | None = None
    tokenizer: Path | None = None
    for_ollama: bool = False
    setting: Setting = BARE


@dataclass(frozen=True)
class Item:
    """A file that is about to be published: *metadata* is its header, *blob* what its content must be."""

    recipe: str
    path: Path
    blob: Blob
    metadata: Metadata


def runs(items: Sequence[Item], prompting: Prompting) -> list[Check]:
    """Load each file in llama.cpp, where that is at hand, and compare what it does."""
    rendered = _rendered(prompting.template)
    if isinstance(rendered, Check) and rendered.state == "different":
        return [rendered]  # a template that hangs or is broken must not reach the engine
    if runtime_at_hand() is None:
        return [
            Check(name, "not checked", "no llama.cpp is at hand", BUILD_HINT.partition("` ")[0].strip("`"))
            for name in ("load", "prompt", "tokenizer")
        ]
    # Template and vocabulary are the same in every file.
    return [check for number, item in enumerate(items) for check in _run(item, None if number else prompting, rendered)]


def expected_prompts(prompting: Prompting) -> tuple[tuple[tuple[Message, ...], str], ...]:
    """Return conversations that need no ability, and what the checkpoint's own template makes of each.

    None where Ollama is told to prompt in another way, or the template renders nothing.
    """
    template = prompting.template
    if template is None or prompting.go_template or prompting.renderer:
        return ()
    rendered = _rendered(template)
    pairs = [] if isinstance(rendered, Check) else list(zip(askable(abilities(template.source)), rendered, strict=True))
    return tuple((one.messages, text) for one, text in pairs if one.is_plain and isinstance(text, str))


def _rendered(template: Template | None) -> list[Rendered] | Check:
    """Render all conversations by the checkpoint's template in a sandboxed child, or say why that is not possible."""
    if template is None:
        return Check("prompt", "not checked", "the checkpoint has no chat template")
    try:
        rendered = render_all(template)
    except (InputError, ResourceError) as error:
        return Check("prompt", "different", f"the chat template fails: {error.what} ({error.found})")
    failed = refuses_all(rendered)
    if failed is not None:
        return Check("prompt", "different", f"the chat template fails: {failed.what} ({failed.found})")
    return rendered


def _run(item: Item, prompting: Prompting | None, rendered: list[Rendered] | Check) -> list[Check]:
    checks = []
    try:
        vectors = _vectors(item.metadata)
        patience = 60 + item.blob.size / 50e6
        with open_runtime(item.path, n_ctx=_CONTEXT, patience=patience, embedding=vectors is not None) as session:
            if vectors is not None:  # nobody prompts it
                return [_embeds(item.recipe, session, pools=vectors)]
            checks.append(_decodes(item.recipe, session))
            if prompting is not None:
                checks += _cuts_and_prompts(session, item.metadata, prompting, rendered)
    except (ToolError, InputError, ResourceError) as error:
        last = (error.found or "").strip().splitlines()[-_LOG_LINES:]
        checks.append(Check(f"{item.recipe} load", "different", " / ".join([error.what, *last])))
    return checks


def _vectors(metadata: Metadata) -> bool | None:
    """Say whether the file tells how to make one vector of a text; None for a model that makes more text."""
    if any(key.endswith(".pooling_type") for key in metadata):
        return True
    is_encoder = any(key.endswith(".attention.causal") and kv.value is False for key, kv in metadata.items())
    return False if is_encoder else None


def _embeds(recipe: str, session: ChatSession, *, pools: bool) -> Check:
    if not pools:
        return Check(f"{recipe} load", "proven", f"loaded by {session.kind}; the file does not say how to pool vectors")
    vector = session.embed("Hello")
    state = "proven" if vector and all(map(isfinite, vector)) and any(vector) else "different"
    return Check(f"{recipe} load", state, f"a vector of {len(vector)} numbers made by {session.kind}")


def _decodes(recipe: str, session: ChatSession) -> Check:
    answer = session.complete("Hello", _N_TOKENS)
    state = "proven" if answer.tokens else "different"
    return Check(f"{recipe} load", state, f"{len(answer.tokens)} tokens decoded by {session.kind}")


def _cuts_and_prompts(
    session: ChatSession, metadata: Metadata, prompting: Prompting, rendered: list[Rendered] | Check
) -> list[Check]:
    """Compare llama.cpp's tokens and prompts with those of the checkpoint's own tokenizer and template."""
    reference, check = _reference(session, metadata, prompting.tokenizer)
    if isinstance(rendered, Check) or prompting.template is None:
        return [check, *([rendered] if isinstance(rendered, Check) else [])]
    engine = LlamaServer(session, abilities(prompting.template.source))
    tokens = None if reference is None else Tokens(session, metadata, reference)
    if prompting.renderer is not None:
        return [
            check,
            Check("prompt", "not checked", f"Ollama's own renderer {prompting.renderer!r} makes the prompts"),
        ]
    if prompting.go_template is None:
        prompts = compare_prompts(prompting.template, engine, tokens, rendered).check()
    else:
        prompts = Check("prompt", "not checked", "Ollama may render the TEMPLATE instead of the model's own")
    if not prompting.for_ollama:
        return [check, prompts]
    asked = ollama_check(prompting.template, metadata, engine.texts, tokens, prompting.go_template, prompting.setting)
    return [check, prompts, asked]


def _reference(session: ChatSession, metadata: Metadata, folder: Path | None) -> tuple[Reference | None, Check]:
    if folder is None:
        return None, Check("tokenizer", "not checked", "a GGUF has no other tokenizer to be compared with")
    try:
        reference = open_reference(folder)
        return reference, compare_session(session, metadata, reference).check()
    except UnsupportedError as error:  # the library cannot run it: nobody can say what is right
        return None, Check("tokenizer", "not checked", f"{error.what}: {error.found}")
