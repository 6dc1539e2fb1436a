"""What Ollama is told about a model: stops, sampling defaults, system prompt, licences, and a template where wanted.

Chat template text, generation_config.json and the user's wishes come in; a `pipeline.types.Modelfile`, its text, and
the content of the store's params layer go out.
"""
