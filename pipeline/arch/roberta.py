"""RoBERTa: BERT whose positions begin after the number of the padding token."""

from dataclasses import replace

from pipeline.arch._config import ModelConfig
from pipeline.arch._steps import skip_rows
from pipeline.arch.bert import ARCH as BERT
from pipeline.arch.bert import BLOCKS, EMBEDDINGS, ENCODER, POSITIONS, TYPES


def _n_skipped(config: ModelConfig) -> int:
    return config.within(0, config.need(int, "max_position_embeddings") - 2, "pad_token_id") + 1


def _n_positions(config: ModelConfig) -> int:
    return int(config.need(int, "max_position_embeddings")) - _n_skipped(config)


ARCH = replace(
    BERT,
    name="roberta",
    classes=("RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM"),
    keys=tuple(replace(key, get=_n_positions) if key.name == "context_length" else key for key in ENCODER),
    rows=(
        *EMBEDDINGS,
        TYPES,
        replace(POSITIONS, steps=(skip_rows(_n_skipped),), shape=lambda c: (_n_positions(c), c.width)),
        *BLOCKS,
    ),
    prefixes=(("roberta.", ""),),
    abilities={"lm_head.{any}": "guesses of masked words"},
    defaults={**BERT.defaults, "type_vocab_size": 1, "pad_token_id": 1},
    example={**BERT.example, "architectures": ["RobertaModel"]},
)
