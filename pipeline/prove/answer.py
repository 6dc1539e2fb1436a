"""What a file answers, so that two copies of it can be compared: greedy tokens, or a vector."""

from __future__ import annotations

from pathlib import Path

from pipeline.gguf import read_gguf
from pipeline.runtime import open_runtime

QUESTION = "What is a quantized model?"

_N_TOKENS = 24
_CONTEXT = 512


def answer_of(path: Path) -> tuple[float, ...]:
    """Load a GGUF in llama.cpp, ask it QUESTION by its own template, and return the ids of its greedy answer.

    Of an embedding model it is the vector of the question.

    Raises:
        ToolError: if no llama.cpp is at hand, or it cannot load the file.
    """
    metadata = read_gguf(path).metadata
    is_embedding = any(key.endswith(".pooling_type") for key in metadata)
    patience = 60 + path.stat().st_size / 50e6
    with open_runtime(path, n_ctx=_CONTEXT, embedding=is_embedding, patience=patience) as session:
        if is_embedding:
            return tuple(session.embed(QUESTION))
        has_template = "tokenizer.chat_template" in metadata
        prompt = session.apply_template([{"role": "user", "content": QUESTION}]) if has_template else QUESTION
        return session.complete(prompt, _N_TOKENS).tokens
