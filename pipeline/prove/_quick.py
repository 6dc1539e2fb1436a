"""The proof `quick`: read back, open, load, decode, compare prompts.  Nothing is built for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.errors import PipelineError, ProofError
from pipeline.gguf import read_gguf
from pipeline.prove.prompt import TemplateRaised, render_chat
from pipeline.runtime import BUILD_HINT, ChatSession, open_runtime, runtime_at_hand
from pipeline.store import Name, Store
from pipeline.types import Check

_N_TOKENS = 4
_CONTEXT = 512

CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Hello!"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!\nHow are you?"}),
    (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Wie heißt du? 你好"},
    ),
)


def run(
    level: str,
    store: Store,
    names: Sequence[Name],
    *,
    chat_template: str | None,
    tokens: dict[str, str],
    log: Callable[[str], None],
) -> tuple[Check, ...]:
    """Prove what was published under *names* in *store*.

    Args:
        level: "none" or "quick".
        store: where the publication lies.
        names: the published names, one for each file.
        chat_template: the checkpoint's own template, None if it has none.
        tokens: "bos_token" and "eos_token" as texts, for the template.
        log: told what is being checked.
    """
    if level == "none":
        return (
            Check(
                "proof", "not checked", "it was not asked for", f"gguf-pipeline publish --proof quick {names[0].model}"
            ),
        )
    log("proving what was published")
    checks = [check for name in names for check in (read_back(store, name), _opens(store, name))]
    checks.extend(_runs(store, names, chat_template, tokens))
    return tuple(checks)


def refuse_differences(name: Name, checks: Sequence[Check]) -> None:
    """Stop where a check found something else than was meant.

    Raises:
        ProofError: naming every such check.
    """
    different = [check for check in checks if check.state == "different"]
    if different:
        raise ProofError(
            "the publication is not what was meant",
            where=name,
            found="; ".join(f"{check.name}: {check.detail}" for check in different),
            hint="remove it with `gguf-pipeline rm`; if the disk and the settings are sound, this is a bug: tell us",
        )


def read_back(store: Store, name: Name) -> Check:
    """Read every blob of a publication back through the store and hash it."""
    verified = list(store.verify(name))
    bad = [f"{one.layer.blob.digest} is {one.found}" for one in verified if not one.ok]
    total = sum(one.layer.blob.size for one in verified)
    detail = "; ".join(bad) or f"{len(verified)} blobs, {total:,} bytes read back"
    return Check(f"{name.tag} blobs", "different" if bad else "proven", detail)


def _opens(store: Store, name: Name) -> Check:
    """Open the GGUF with the strict reader."""
    try:
        file = read_gguf(store.model_path(name))
    except PipelineError as error:
        return Check(f"{name.tag} file", "different", str(error))
    return Check(f"{name.tag} file", "proven", f"{len(file.tensors)} tensors, {len(file.metadata)} keys")


def _runs(store: Store, names: Sequence[Name], template: str | None, tokens: dict[str, str]) -> list[Check]:
    """Load each file in llama.cpp, decode a few tokens, and compare prompts, where llama.cpp is at hand."""
    if runtime_at_hand() is None:
        run = f"gguf-pipeline run {names[0]} Hello"
        return [Check("load", "not checked", f"no llama.cpp at hand; {BUILD_HINT}", run)]
    checks = []
    for name in names:
        with open_runtime(store.model_path(name), n_ctx=_CONTEXT) as session:
            checks.append(_decodes(session, name))
            if name == names[0]:  # the template is the same in every file
                checks.append(_prompts(session, template, tokens))
    return checks


def _decodes(session: ChatSession, name: Name) -> Check:
    answer = session.complete("Hello", _N_TOKENS)
    state = "proven" if answer.tokens else "different"
    return Check(f"{name.tag} load", state, f"{len(answer.tokens)} tokens decoded by {session.kind}")


def _prompts(session: ChatSession, template: str | None, tokens: dict[str, str]) -> Check:
    """Compare what llama.cpp would send with what the checkpoint's own template renders, in a sandboxed child."""
    if template is None:
        return Check("prompt", "not checked", "the checkpoint has no chat template")
    compared = 0
    for messages in CONVERSATIONS:
        try:
            expected = render_chat(template, messages, bos_token=tokens["bos_token"], eos_token=tokens["eos_token"])
        except TemplateRaised:
            continue  # the template refuses this kind of conversation, and so will the engine
        expected, found = (_without_bos(text, tokens) for text in (expected, session.apply_template(messages)))
        compared += 1
        if found != expected:
            said = [message["content"] for message in messages]
            return Check("prompt", "different", f"in {said}, {_first_difference(expected, found)}")
    return Check("prompt", "proven", f"{compared} conversations rendered alike")


def _first_difference(expected: str, found: str) -> str:
    """Say where two prompts part, with what stands there in each."""
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    if at is None:
        at = min(len(expected), len(found))
    start, stop = max(0, at - 20), at + 40
    return f"at character {at}: expected {expected[start:stop]!r}, llama.cpp renders {found[start:stop]!r}"


def _without_bos(text: str, tokens: dict[str, str]) -> str:
    # llama.cpp takes a leading BOS out of the text: its tokenizer adds the token itself.
    return text.removeprefix(tokens["bos_token"]) if tokens["bos_token"] else text
