"""Finds, builds and runs llama.cpp; finds Ollama.  Programs come in as paths, answers go out as text."""
