"""Byte-level BPE: the vocabulary of tokenizer.json as GGUF's tokenizer model "gpt2"."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer as Reference

from pipeline.tokenizer.recognise import recognise
from pipeline.tokenizer.tokenizer_json import BYTE_LEVEL, TokenizerJson
from pipeline.tokenizer.vocabulary import AddedToken, Slots, TokenType, Vocabulary, added_text, added_type, few, fit

_BATCH = 4096  # what the reference gives for a piece is a thousand times its size


def byte_level_vocabulary(source: TokenizerJson, n_rows: int | None) -> Vocabulary:
    """Make the vocabulary of a byte-level BPE.

    Ids without a token, and those up to *n_rows* (the rows of the embedding), become unused tokens [PADn].  Follows
    `TextModel.get_vocab_base` of llama.cpp's converter.

    Raises:
        UnsupportedError: if llama.cpp has no such pre-tokenizer.
        FormatError: if the tokenizer has more tokens than *n_rows*.
    """
    row, notes = recognise(
        source.normalizer,
        source.pre_tokenizer,
        source.ignore_merges,
        lambda: ignore_merges_is_idle(source),
        source.path,
    )
    n_tokens, added, left_out = fit(max(source.vocab.values()) + 1, source.added, n_rows, source.path)
    slots = Slots({token_id: text for text, token_id in source.vocab.items()}, {})
    slots.types = dict.fromkeys(slots.texts, TokenType.NORMAL)
    for token in added:
        slots.put(token.id, added_text(token), added_type(token))
    tokens, types = slots.fill(n_tokens, source.path)
    return Vocabulary(
        kind=BYTE_LEVEL,
        model="gpt2",
        pre=row.pre,
        tokens=tokens,
        types=types,
        merges=tuple(f"{left} {right}" for left, right in source.merges),
        notes=notes + left_out + strip_notes(added),
    )


def strip_notes(added: Sequence[AddedToken]) -> tuple[str, ...]:
    """Say which added tokens swallow blanks around them, which llama.cpp does not."""
    names = [token.content for token in added if token.strips]
    return (f"llama.cpp keeps blanks beside added tokens that strip them: {few(names, 3)}",) if names else ()


def ignore_merges_is_idle(source: TokenizerJson) -> bool:
    """Tell whether every piece of the vocabulary is also what the merges make of it.

    Then looking words up whole first (ignore_merges) gives the same tokens as merging alone.
    """
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": source.vocab,
        "merges": source.merges,
    }
    reference = Reference.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    added = {token.content for token in source.added}
    pieces = [text for text in source.vocab if text not in added]
    batches = (pieces[at : at + _BATCH] for at in range(0, len(pieces), _BATCH))
    return all(len(encoding.ids) == 1 for batch in batches for encoding in reference.encode_batch_fast(batch))
