"""Compares the engine's tokenizer with the checkpoint's own, text by text, and names the limits of the engine."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, islice, product
from pathlib import Path

from pipeline.prove._limits import LIMITS, Engine, Limit, Repair, engine_of
from pipeline.prove._reference import Reference, open_reference
from pipeline.prove._stub import write_stub
from pipeline.runtime import ChatSession, open_runtime
from pipeline.tokenizer.texts import texts
from pipeline.types import KV, Check

Tokenize = Callable[[str, bool], list[int]]

_OWN_TOKENS = 48
# A wrong tokenizer differs everywhere: what is tried to explain it is bounded, for each text and in all.
_TRIALS_FOR_A_TEXT = 200
_TRIALS = 3000
_LIMITS_AT_ONCE = 3
_CONTEXT = 512

# What a text, and a whole vocabulary, can be found to be.
EQUAL, KNOWN, DIFFERENT = "equal", "known limit", "different"


@dataclass(frozen=True)
class Difference:
    """A text that the engine cuts differently.

    *expected* are the ids of the checkpoint's own tokenizer, *found* the engine's, both without BOS and EOS.  *limits*
    are the known limits that explain it, by name; none means that something is wrong.
    """

    name: str
    text: str
    expected: tuple[int, ...]
    found: tuple[int, ...]
    limits: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Say whether a known limit explains it."""
        return KNOWN if self.limits else DIFFERENT


@dataclass(frozen=True)
class Comparison:
    """What came out over *n_texts* texts; *reference* is the tokenizer that counts, in words."""

    reference: str
    n_texts: int
    differences: tuple[Difference, ...] = field(default=())

    @property
    def unexplained(self) -> tuple[Difference, ...]:
        """The differences that no known limit explains."""
        return tuple(difference for difference in self.differences if not difference.limits)

    @property
    def limits(self) -> dict[str, int]:
        """The known limits that showed, with the number of texts."""
        return dict(Counter(name for difference in self.differences for name in difference.limits))

    @property
    def kind(self) -> str:
        """Say what the worst of the texts is: equal, a known limit, or different."""
        return DIFFERENT if self.unexplained else KNOWN if self.differences else EQUAL

    @property
    def says(self) -> dict[str, str]:
        """The known limits that showed, in words."""
        return {limit.name: limit.says for limit in LIMITS if limit.name in self.limits}

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "state": self.kind,
            "reference": self.reference,
            "texts": self.n_texts,
            "limits": {name: {"says": says, "texts": self.limits[name]} for name, says in self.says.items()},
            "differences": [{"state": one.kind, **asdict(one)} for one in self.differences],
        }

    def check(self) -> Check:
        """Say it as one part of a proof."""
        if self.unexplained:
            first = self.unexplained[0]
            detail = (
                f"{len(self.unexplained)} of {self.n_texts} texts are cut differently, first {first.name!r}: "
                f"{self.reference} gives {list(first.expected[:12])}, llama.cpp {list(first.found[:12])}"
            )
            return Check("tokenizer", "different", detail)
        detail = f"{self.n_texts} texts, cut as by {self.reference}"
        if self.differences:
            known = "; ".join(f"{self.says[name]} ({n})" for name, n in self.limits.items())
            detail += f", but for known limits of the engine in {len(self.differences)}: {known}"
        return Check("tokenizer", "proven", detail)


def compare_session(session: ChatSession, metadata: Mapping[str, KV], reference: Reference) -> Comparison:
    """Compare the tokenizer of the model that *session* runs, whose GGUF header is *metadata*, with the *reference*.

    Raises:
        UnsupportedError: if the library cannot run the checkpoint's tokenizer.
        ToolError: if the engine fails.
    """

    def tokenize(text: str, parses_special: bool) -> list[int]:
        return session.tokenize(text, parse_special=parses_special)

    return compare(tokenize, engine_of(metadata), reference)


def compare_keys(keys: Sequence[KV], folder: Path) -> Comparison:
    """Compare the vocabulary that the entries *keys* of a GGUF header make with the tokenizer of the checkpoint.

    llama.cpp is given the vocabulary alone, in a model of next to no weights.

    Raises:
        FormatError: if a tokenizer file is not what it claims.
        UnsupportedError: if the library cannot run the checkpoint's tokenizer.
        ToolError: if no llama.cpp is at hand, or it cannot load the vocabulary.
    """
    reference = open_reference(folder)
    vocabulary = [kv for kv in keys if kv.key.startswith("tokenizer.ggml.")]
    with tempfile.TemporaryDirectory(prefix="gguf-pipeline-") as made:
        stub = Path(made) / "vocabulary.gguf"
        write_stub(stub, vocabulary)
        with open_runtime(stub, n_ctx=_CONTEXT) as session:
            return compare_session(session, {kv.key: kv for kv in keys}, reference)


def compare(tokenize: Tokenize, engine: Engine, reference: Reference) -> Comparison:
    """Compare *tokenize*, the engine's (text, whether to parse special tokens) -> ids, with the *reference*."""
    samples = {**texts(), **dict(_own_texts(reference))}
    trial = Trial(tokenize, engine, reference)
    found = [trial.difference(name, text) for name, text in samples.items()]
    return Comparison(reference.name, len(samples), tuple(difference for difference in found if difference is not None))


def _own_texts(reference: Reference) -> Iterator[tuple[str, str]]:
    """Make texts of the tokenizer's own added tokens: alone, between words, one after another."""
    names = [token["content"] for token in reference.added if "\0" not in token["content"]]
    step = max(1, len(names) // _OWN_TOKENS)
    chosen = names[::step][:_OWN_TOKENS]
    for name in chosen:
        yield f"added token {name}", f"say {name} twice,{name}{name}\n{name} now"
    if chosen:
        yield "added tokens in a row", "".join(chosen)


class Trial:
    """One engine beside one reference."""

    def __init__(self, tokenize: Tokenize, engine: Engine, reference: Reference) -> None:
        self._tokenize = tokenize
        self._engine = engine
        self._reference = reference
        self._changed: dict[tuple[Hashable, ...], Reference] = {}
        self._trials = _TRIALS

    def difference(self, name: str, text: str) -> Difference | None:
        """Compare one text; where it differs, find out why."""
        expected, found = self._reference.encode(text), self._found(text)
        if expected == found:
            return None
        return Difference(name, text, tuple(expected), tuple(found), self._explain(text, expected, found))

    def _found(self, text: str) -> list[int]:
        return self._tokenize(text, self._reference.parses_special)

    def _explain(self, text: str, expected: list[int], found: list[int]) -> tuple[str, ...]:
        """Try the limits one by one, then together, and give the first that take the difference away."""
        alike = self._alike(expected, found)
        if alike is not None:
            return alike
        choices = [(limit, limit.repairs(self._engine, self._reference, text)) for limit in LIMITS]
        choices = [(limit, repairs) for limit, repairs in choices if repairs]
        for limits, chosen in islice(_ways(choices), min(_TRIALS_FOR_A_TEXT, self._trials)):
            self._trials -= 1
            seen, reference = self._repaired(text, limits, chosen)
            alike = self._alike(reference.encode(seen), self._found(seen))
            if alike is not None:
                return (*(limit.name for limit in limits), *alike)
        return ()

    def _alike(self, expected: list[int], found: list[int]) -> tuple[str, ...] | None:
        """Give the limits but for which two lists of ids are the same, none if they are equal; None if they are not."""
        if expected == found:
            return ()
        explained = (n.name for n in LIMITS if n.equal is not None and n.equal(self._engine, expected, found))
        name = next(explained, None)
        return None if name is None else (name,)

    def _repaired(self, text: str, limits: Sequence[Limit], chosen: Sequence[int]) -> tuple[str, Reference]:
        """Take the *limits* out one after another, each by its repair of the number *chosen*."""
        reference = self._reference
        keys: tuple[Hashable, ...] = ()
        for limit, which in zip(limits, chosen, strict=True):
            # Asked again, for the text as it now is: one limit's repair may have changed what the next one sees.
            repairs = limit.repairs(self._engine, reference, text)
            if which >= len(repairs):
                continue
            repair = repairs[which]
            text = text if repair.text is None else repair.text
            if repair.change is not None:
                keys = (*keys, repair.key)
                if keys not in self._changed:
                    self._changed[keys] = reference.changed(repair.change)
                reference = self._changed[keys]
        return text, reference


def _ways(choices: Sequence[tuple[Limit, list[Repair]]]) -> Iterator[tuple[list[Limit], tuple[int, ...]]]:
    """Give the limits to take out, fewest first, each with the number of its repair."""
    for n in range(1, min(len(choices), _LIMITS_AT_ONCE) + 1):
        for group in combinations(choices, n):
            for chosen in product(*(range(len(repairs)) for _, repairs in group)):
                yield [limit for limit, _ in group], chosen
