"""Fill in the middle: the Go template through which Ollama offers `insert`, and completes a base model's plain text."""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple


class Fim(NamedTuple):
    """The tokens before the text in front of the gap, before the text behind it, and where the model shall write."""

    prefix: str
    suffix: str
    middle: str


# As the models' makers wrote their prompts.
_KNOWN = (
    Fim("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder 1 and 2, Granite Code
    Fim("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    Fim("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Fim("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
)
# Their makers trained every model of these to fill in.  Other tokenizers may have the tokens for nothing: OLMo 2's has.
TRAINED = frozenset(("starcoder", "starcoder2"))

PLAIN = "{{ .Prompt }}"


def lost(chat_template: str | None, go_template: str) -> set[str] | None:
    """Tell what a model loses when Ollama prompts it through *go_template*, which fills in; None if it will not.

    Of two templates Ollama takes the one that shows more abilities, and of the same number the Go template
    (`shouldPreferChatTemplate` in server/images.go).
    """
    own, text = set(), chat_template or ""
    if "tools" in text or "tool_call" in text:
        own.add("tools")
    if "<think>" in text and "</think>" in text:
        own.add("thinking")
    other = {"insert"} | {
        name for name, field in (("tools", ".Tools"), ("thinking", ".Thinking")) if field in go_template
    }
    return own - other if len(own) <= len(other) else None


def find(tokens: Container[str]) -> Fim | None:
    """Find the tokens for filling in, all three, among a tokenizer's *tokens*."""
    return next((fim for fim in _KNOWN if all(token in tokens for token in fim)), None)


def template(fim: Fim, rest: str) -> str:
    """Make the template that fills in where a request has a suffix, and is *rest* where it has none."""
    fill = f"{fim.prefix}{{{{ .Prompt }}}}{fim.suffix}{{{{ .Suffix }}}}{fim.middle}"
    return f"{{{{ if .Suffix }}}}{fill}{{{{ else }}}}{rest}{{{{ end }}}}"
