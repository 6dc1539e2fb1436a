"""What Ollama is told about a model: stops, sampling defaults, system prompt, licences, and a template where wanted.

Chat template text, generation_config.json and the user's wishes come in; a `pipeline.types.Modelfile`, its text, and
the content of the store's params layer go out.
"""

from pipeline.modelfile.families import Family, families, match_family
from pipeline.modelfile.overrides import Overrides, read_table, read_text_file
from pipeline.modelfile.render import (
    generation_config_of,
    make_embedding_modelfile,
    make_modelfile,
    params_layer,
    parse_parameter,
    render_text,
    sampling_metadata,
)

__all__ = [
    "Family",
    "Overrides",
    "families",
    "generation_config_of",
    "make_embedding_modelfile",
    "make_modelfile",
    "match_family",
    "params_layer",
    "parse_parameter",
    "read_table",
    "read_text_file",
    "render_text",
    "sampling_metadata",
]
