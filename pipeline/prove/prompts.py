"""Compares the prompts that an engine makes with those of the checkpoint's own chat template: by text and by tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import combinations, compress
from typing import Any, Protocol

from pipeline.errors import InputError, PipelineError
from pipeline.prove._prompt_limits import PROMPT_LIMITS, Case, PromptLimit
from pipeline.prove._template import Rendered, Template
from pipeline.prove._tokens import Tokens, first_difference
from pipeline.prove.conversations import (
    BARE,
    Conversation,
    Inputs,
    Setting,
    abilities,
    askable,
    handed_on,
    server_request,
)
from pipeline.prove.prompt import Limits, TemplateRaised
from pipeline.runtime import ChatSession
from pipeline.types import Check

_LIMITS_AT_ONCE = 3
# A wrong template differs everywhere: how many conversations are looked into.
_EXPLAINED = 6
# A template that says the time may be asked on two sides of a change of date.
_TRIES = 3
_BEFORE, _AFTER = 20, 40
# For the hundreds of renderings that explain differences, by a template that is known to come to an end.
_PATIENT = Limits(seconds=120)


class Engine(Protocol):
    """What makes prompts; *name* is for people."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def texts(self) -> tuple[str, str]:
        """What it takes for the texts of BOS and EOS."""

    @property
    def setting(self) -> Setting:
        """What it says before every conversation."""

    def render(self, conversation: Conversation) -> str:
        """Give the prompt; InputError if the engine refuses."""


@dataclass(frozen=True)
class LlamaServer:
    """llama.cpp's server, handed what Ollama hands to it."""

    session: ChatSession
    able: frozenset[str]
    name: str = "llama.cpp"
    setting: Setting = BARE

    @cached_property
    def texts(self) -> tuple[str, str]:
        """The texts of BOS and EOS that its templates see."""
        return self.session.special_texts()

    def render(self, conversation: Conversation) -> str:
        """Give the prompt of /apply-template."""
        request = server_request(handed_on(conversation, self.able))
        return self.session.apply_template(request.pop("messages"), request)


@dataclass(frozen=True)
class PromptDifference:
    """A conversation of which the engine makes another prompt.

    *expected* and *found* are what stands around the first difference, *at* its character; *token* is the first token
    that differs, None where tokens were not compared.  *limits* are the known limits that explain it, by name; none
    means that something is wrong.
    """

    conversation: str
    kind: str
    expected: str
    found: str
    at: int = 0
    token: int | None = None
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptComparison:
    """What came out over *n_conversations*; *engine* made the prompts, *says* gives the limits in words.

    *refused* are the conversations that the checkpoint's own template does not render, with its reasons.  *untokenized*
    is why tokens were not compared, None where they were.
    """

    engine: str
    n_conversations: int
    differences: tuple[PromptDifference, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    untokenized: str | None = None
    says: dict[str, str] = field(default_factory=dict)

    @property
    def unexplained(self) -> tuple[PromptDifference, ...]:
        """The differences that no known limit explains."""
        return tuple(one for one in self.differences if not one.limits)

    @property
    def limits(self) -> dict[str, int]:
        """The known limits that showed, with the number of conversations."""
        return dict(Counter(name for one in self.differences for name in one.limits))

    @property
    def n_compared(self) -> int:
        """Number of conversations that both made a prompt of."""
        return self.n_conversations - len(self.refused)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def check(self, name: str = "prompt") -> Check:
        """Say it as one part of a proof."""
        if self.unexplained:
            first = self.unexplained[0]
            token = "" if first.token is None else f", token {first.token}"
            place = f"first {first.conversation!r}, at character {first.at}{token}"
            return Check(
                name,
                "different",
                f"{len(self.unexplained)} of {self.n_conversations} conversations differ, {place}: "
                f"expected {first.expected!r}, {self.engine} gives {first.found!r}",
            )
        if not self.n_compared:
            return Check(
                name,
                "not checked",
                f"the chat template refuses every conversation that was tried: {self.refused[0][1]}",
            )
        what = (
            "texts and tokens" if self.untokenized is None else f"texts; tokens were not compared: {self.untokenized}"
        )
        detail = f"{self.n_compared} conversations rendered alike, {what}"
        if self.differences:
            known = "; ".join(f"{self.says[limit]} ({n})" for limit, n in self.limits.items())
            detail += f"; but for known limits of the engine in {len(self.differences)}: {known}"
        if self.refused:
            detail += f"; {len(self.refused)} more are refused by the template itself"
        return Check(name, "proven", detail)


def compare_prompts(
    template: Template,
    engine: Engine,
    tokens: Tokens | None = None,
    expected: Sequence[Rendered] | None = None,
    *,
    plain: bool = False,
) -> PromptComparison:
    """Compare the prompts of *engine* with those that *template* renders.

    Args:
        template: the checkpoint's own.
        engine: makes the prompts.
        tokens: compares tokens too.
        expected: what `render_all` gave, so that a template which hangs never reaches the engine.
        plain: compare only what a Go template can say.

    Raises:
        InputError, ResourceError: if the template cannot be rendered at all.
        ToolError: if the engine fails.
    """
    conversations = askable(abilities(template.source))
    expected = render_all(template, engine.setting) if expected is None else expected
    if plain:
        chosen = [one.is_plain for one in conversations]
        conversations, expected = list(compress(conversations, chosen)), list(compress(expected, chosen))
    found = _Trial(template, engine, tokens).differences(conversations, expected)
    refused = tuple(
        (conversation.name, _reason(text))
        for conversation, text in zip(conversations, expected, strict=True)
        if isinstance(text, PipelineError) and conversation.name not in found
    )
    return PromptComparison(
        engine.name,
        len(conversations),
        tuple(found[one.name] for one in conversations if one.name in found),
        refused,
        "no tokenizer to compare with" if tokens is None else tokens.unable,
        {limit.name: limit.says for limit in PROMPT_LIMITS} | (tokens.says if tokens else {}),
    )


def render_all(template: Template, setting: Setting = BARE) -> list[Rendered]:
    """Render all conversations that a model with *template* can be asked in a *setting*; see `Template.render`."""
    able = abilities(template.source)
    return template.render([handed_on(setting.around(one), able) for one in askable(able)], datetime.now())


def refuses_all(rendered: Sequence[Rendered]) -> PipelineError | None:
    """Give the error of a template that renders nothing because it fails; None where it only refuses, or renders."""
    errors = [one for one in rendered if isinstance(one, PipelineError)]
    if len(errors) < len(rendered):
        return None
    return next((error for error in errors if not isinstance(error, TemplateRaised)), None)


def _reason(error: PipelineError) -> str:
    return error.found or error.what


class _Trial:
    """One template beside one engine."""

    def __init__(self, template: Template, engine: Engine, tokens: Tokens | None) -> None:
        self._template = template
        self._engine = engine
        self._tokens = tokens
        self._able = abilities(template.source)
        self._is_timely = template.speaks_of("strftime_now") or template.speaks_of("date")

    def differences(
        self, conversations: Sequence[Conversation], expected: Sequence[Rendered]
    ) -> dict[str, PromptDifference]:
        """Compare conversations, by name; where one differs, find out why.

        What the template refuses differs only if a limit shows what the engine made of it.
        """
        result = self._differences(conversations, expected)
        for _ in range(_TRIES - 1):
            again = [one for one in conversations if one.name in result and not result[one.name].limits]
            if not again or not self._is_timely:
                break
            fresh = self._template.render([self._handed(one) for one in again], datetime.now())
            result = {name: one for name, one in result.items() if one.limits} | self._differences(again, fresh)
        return result

    def _differences(
        self, conversations: Sequence[Conversation], expected: Sequence[Rendered]
    ) -> dict[str, PromptDifference]:
        found = [self._found(conversation) for conversation in conversations]
        triples = list(zip(conversations, expected, found, strict=True))
        different = [(one, theirs) for one, ours, theirs in triples if not self._same(ours, theirs)]
        limits = self._explain(different)
        made = {one.name: self._difference(one, ours, theirs, limits) for one, ours, theirs in triples}
        return {name: one for name, one in made.items() if one is not None}

    def _handed(self, conversation: Conversation) -> Inputs:
        return handed_on(self._engine.setting.around(conversation), self._able)

    def _found(self, conversation: Conversation) -> Rendered:
        try:
            return self._engine.render(conversation)
        except InputError as error:
            return error

    def _same(self, ours: Rendered, theirs: Rendered) -> bool:
        """Tell whether both are the same text but for a leading BOS, or both refuse.

        llama.cpp takes a leading BOS away: its tokenizer adds the token itself.
        """
        if isinstance(ours, str) and isinstance(theirs, str):
            return self._bare(ours) == self._bare(theirs)
        return isinstance(ours, PipelineError) and isinstance(theirs, PipelineError)

    def _bare(self, text: str) -> str:
        return text.removeprefix(self._template.bos)

    def _difference(
        self, conversation: Conversation, ours: Rendered, theirs: Rendered, explained: Mapping[str, tuple[str, ...]]
    ) -> PromptDifference | None:
        name, limits = conversation.name, explained.get(conversation.name, ())
        if isinstance(ours, PipelineError):
            return PromptDifference(name, "text", "", "", limits=limits) if limits else None
        if isinstance(theirs, PipelineError):
            return PromptDifference(name, "refused", ours[:_AFTER], _reason(theirs), limits=limits)
        if name not in explained:
            return self._token_difference(name, ours, theirs)
        ours, theirs = self._bare(ours), self._bare(theirs)
        at = first_difference(ours, theirs)
        start, stop = max(0, at - _BEFORE), at + _AFTER
        token = None if self._tokens is None else self._tokens.index(ours, theirs)
        return PromptDifference(name, "text", ours[start:stop], theirs[start:stop], at, token, limits)

    def _token_difference(self, name: str, ours: str, theirs: str) -> PromptDifference | None:
        different = None if self._tokens is None else self._tokens.difference(ours, theirs)
        if different is None:
            return None
        start, stop = max(0, different.index - 4), different.index + 8
        expected, found = (str(list(ids[start:stop])) for ids in (different.expected, different.found))
        return PromptDifference(name, "tokens", expected, found, 0, different.index, different.limits)

    def _explain(self, different: Sequence[tuple[Conversation, Rendered]]) -> dict[str, tuple[str, ...]]:
        """Try the limits one by one on all, then together on some, and give the first that take a difference away."""
        explained: dict[str, tuple[str, ...]] = {one.name: () for one, _ in different}
        now = datetime.now()
        for n in range(1, _LIMITS_AT_ONCE + 1):
            left = [pair for pair in different if not explained[pair[0].name]][: None if n == 1 else _EXPLAINED]
            ways = [way for conversation, found in left for way in self._ways(conversation, found, now, n)]
            for (name, limits, answer, _), text in zip(ways, self._render([way[3] for way in ways], now), strict=True):
                is_it = isinstance(text, str) and isinstance(answer, str) and self._same(text, answer)
                explained[name] = limits if is_it and not explained[name] else explained[name]
        return explained

    def _ways(
        self, conversation: Conversation, found: Rendered, now: datetime, n: int
    ) -> Iterator[tuple[str, tuple[str, ...], Rendered, Case]]:
        """Give sets of *n* limits, with the engine's prompt and our case in which they are taken out."""
        untouched = Case(self._template, self._handed(conversation), now, self._engine.texts, self._engine.name)
        answers = [(conversation, found)]
        for group in combinations([row for row in PROMPT_LIMITS if _matters(row, conversation, untouched)], n):
            asked = conversation
            for row in group:
                asked = row.avoid(asked)
            if all(asked != other for other, _ in answers):
                answers.append((asked, self._found(asked)))
            case = replace(untouched, inputs=self._handed(asked))
            for row in group:
                case = row.repair(case)
            answer = next(answer for other, answer in answers if other == asked)
            yield conversation.name, tuple(row.name for row in group), answer, case

    def _render(self, cases: Sequence[Case], now: datetime) -> list[Rendered]:
        """Render cases, those of one template in one process."""
        found: dict[int, Rendered] = {}
        for template in dict.fromkeys(case.template for case in cases):
            chosen = [i for i, case in enumerate(cases) if case.template == template]
            found |= dict(zip(chosen, template.render([cases[i].inputs for i in chosen], now, _PATIENT), strict=True))
        texts = [found[i] for i in range(len(cases))]
        return [case.finished(text) if isinstance(text, str) else text for case, text in zip(cases, texts, strict=True)]


def _matters(row: PromptLimit, conversation: Conversation, case: Case) -> bool:
    return row.repair(case) != case or row.avoid(conversation) != conversation
