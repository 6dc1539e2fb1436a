"""The proof `quick`: read back, open, load, decode, compare prompts.  Nothing is built for it.

It looks at the files before they get their names, so what is not proven right never replaces what was there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from pipeline.errors import InputError, PipelineError, ProofError, ResourceError, ToolError
from pipeline.gguf import read_gguf
from pipeline.prove.prompt import TemplateRaised, render_chat
from pipeline.prove.tokenizer import tokenizer_check
from pipeline.runtime import BUILD_HINT, ChatSession, open_runtime, runtime_at_hand
from pipeline.store import hash_file
from pipeline.types import Blob, Check

LEVELS = ("none", "quick")

_N_TOKENS = 4
_CONTEXT = 512
_LOG_LINES = 3

Message = Mapping[str, str]

CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hello!"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!\nHow are you?"}),
    (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Wie heißt du? 你好"},
    ),
)


@dataclass(frozen=True)
class Prompting:
    """How the checkpoint prompts.

    *template* is its own chat template; *bos* and *eos* are the texts that the template sees.  *has_go_template* says
    that the publication brings a TEMPLATE, which Ollama may render instead.  *tokenizer* is the folder of the
    checkpoint's own tokenizer, None for a GGUF.
    """

    template: str | None
    bos: str = ""
    eos: str = ""
    has_go_template: bool = False
    tokenizer: Path | None = None


def files(
    level: str, items: Sequence[tuple[str, Path, Blob]], prompting: Prompting, log: Callable[[str], None]
) -> tuple[Check, ...]:
    """Prove GGUF files that are about to be published.

    Args:
        level: one of LEVELS.
        items: recipe, file, and what the file's content must be.
        prompting: how the checkpoint prompts.
        log: told what is being checked.
    """
    if level == "none":
        return (Check("proof", "not checked", "it was not asked for", "gguf-pipeline publish ... --proof quick"),)
    log("proving what was written")
    checks = [check for item in items for check in (_content(*item), _opens(item[0], item[1]))]
    rendered = _rendered(prompting)
    if isinstance(rendered, Check) and rendered.state == "different":
        return (*checks, rendered)  # a template that hangs or is broken must not reach the engine
    return (*checks, *_runs(items, prompting, rendered))


def expected_prompts(prompting: Prompting) -> tuple[tuple[tuple[Message, ...], str], ...]:
    """Return conversations, and what the checkpoint's own template renders of each; none where it renders none."""
    rendered = _rendered(prompting)
    return () if isinstance(rendered, Check) else tuple(rendered)


def refuse_differences(name: str, checks: Sequence[Check]) -> None:
    """Stop where a check found something else than was meant.

    Raises:
        ProofError: naming every such check.
    """
    different = [check for check in checks if check.state == "different"]
    if different:
        raise ProofError(
            "what was made is not what was meant, so it is not published",
            where=name,
            found="; ".join(f"{check.name}: {check.detail}" for check in different),
            hint="if config.json, the template and the disk are sound, this is a bug: tell us. --proof none publishes",
        )


def _content(recipe: str, path: Path, blob: Blob) -> Check:
    """Read a file back from the disk and hash it."""
    found = hash_file(path)
    if found != blob:
        return Check(
            f"{recipe} blob", "different", f"{blob.digest} expected, {found.digest} ({found.size} bytes) found"
        )
    return Check(f"{recipe} blob", "proven", f"{found.size:,} bytes read back")


def _opens(recipe: str, path: Path) -> Check:
    """Open the GGUF with the strict reader."""
    try:
        file = read_gguf(path)
    except PipelineError as error:
        return Check(f"{recipe} file", "different", str(error))
    return Check(f"{recipe} file", "proven", f"{len(file.tensors)} tensors, {len(file.metadata)} keys")


def _rendered(prompting: Prompting) -> list[tuple[tuple[Message, ...], str]] | Check:
    """Render the conversations by the checkpoint's template in a sandboxed child, or say why that is not possible."""
    if prompting.template is None:
        return Check("prompt", "not checked", "the checkpoint has no chat template")
    made = []
    for messages in CONVERSATIONS:
        try:
            text = render_chat(prompting.template, messages, bos_token=prompting.bos, eos_token=prompting.eos)
        except TemplateRaised:
            continue  # the template refuses this kind of conversation, and so will the engine
        except (InputError, ResourceError) as error:
            return Check("prompt", "different", f"the chat template fails: {error.what} ({error.found})")
        made.append((messages, text))
    return made or Check("prompt", "not checked", "the chat template refuses every conversation that was tried")


def _runs(
    items: Sequence[tuple[str, Path, Blob]],
    prompting: Prompting,
    rendered: list[tuple[tuple[Message, ...], str]] | Check,
) -> list[Check]:
    """Load each file in llama.cpp, decode a few tokens, and compare prompts, where llama.cpp is at hand."""
    if runtime_at_hand() is None:
        return [
            Check(name, "not checked", "no llama.cpp is at hand", BUILD_HINT.partition("` ")[0].strip("`"))
            for name in ("load", "prompt", "tokenizer")
        ]
    checks = []
    for number, (recipe, path, blob) in enumerate(items):
        try:
            vectors = _vectors(path)
            patience = 60 + blob.size / 50e6
            with open_runtime(path, n_ctx=_CONTEXT, patience=patience, embedding=vectors is not None) as session:
                if vectors is not None:
                    checks.append(_embeds(recipe, session, pools=vectors))
                    continue  # nobody prompts it
                checks.append(_decodes(recipe, session))
                if number == 0:  # template and vocabulary are the same in every file
                    checks.append(_tokenizer(session, path, prompting.tokenizer))
                    checks.append(rendered if isinstance(rendered, Check) else _prompts(session, prompting, rendered))
        except (ToolError, InputError) as error:
            last = (error.found or "").strip().splitlines()[-_LOG_LINES:]
            checks.append(Check(f"{recipe} load", "different", " / ".join([error.what, *last])))
    return checks


def _vectors(path: Path) -> bool | None:
    """Say whether the file tells how to make one vector of a text; None for a model that makes more text."""
    metadata = read_gguf(path).metadata
    if not any(key.endswith(".attention.causal") and kv.value is False for key, kv in metadata.items()):
        return None
    return any(key.endswith(".pooling_type") for key in metadata)


def _embeds(recipe: str, session: ChatSession, *, pools: bool) -> Check:
    if not pools:
        return Check(f"{recipe} load", "proven", f"loaded by {session.kind}; the file does not say how to pool vectors")
    vector = session.embed("Hello")
    state = "proven" if vector and all(map(isfinite, vector)) and any(vector) else "different"
    return Check(f"{recipe} load", state, f"a vector of {len(vector)} numbers made by {session.kind}")


def _tokenizer(session: ChatSession, path: Path, folder: Path | None) -> Check:
    """Compare llama.cpp's tokens with those of the checkpoint's own tokenizer."""
    if folder is None:
        return Check("tokenizer", "not checked", "a GGUF has no other tokenizer to be compared with")
    return tokenizer_check(session, path, folder)


def _decodes(recipe: str, session: ChatSession) -> Check:
    answer = session.complete("Hello", _N_TOKENS)
    state = "proven" if answer.tokens else "different"
    return Check(f"{recipe} load", state, f"{len(answer.tokens)} tokens decoded by {session.kind}")


def _prompts(session: ChatSession, prompting: Prompting, rendered: Sequence[tuple[tuple[Message, ...], str]]) -> Check:
    """Compare what llama.cpp would send with what the checkpoint's own template renders."""
    for messages, text in rendered:
        # llama.cpp takes a leading BOS out of the text: its tokenizer adds the token itself.
        expected, found = (t.removeprefix(prompting.bos) for t in (text, session.apply_template(messages)))
        if found != expected:
            said = [message["content"] for message in messages]
            return Check("prompt", "different", f"in {said}, {_first_difference(expected, found)}")
    if prompting.has_go_template:
        return Check(
            "prompt", "not checked", "Ollama may render the TEMPLATE that you asked for instead of the model's own"
        )
    return Check("prompt", "proven", f"{len(rendered)} conversations rendered alike")


def _first_difference(expected: str, found: str) -> str:
    """Say where two prompts part, with what stands there in each."""
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    if at is None:
        at = min(len(expected), len(found))
    start, stop = max(0, at - 20), at + 40
    return f"at character {at}: expected {expected[start:stop]!r}, llama.cpp renders {found[start:stop]!r}"
