"""Hugging Face checkpoints to GGUF for Ollama, without torch."""

__version__ = "0.1.0"
