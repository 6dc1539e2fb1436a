"""Finds, builds and runs llama.cpp; finds Ollama.  Programs come in as paths, answers go out as text."""

from pipeline.runtime.ggml import Ggml, require_ggml
from pipeline.runtime.imatrix import Calibration, compute_imatrix
from pipeline.runtime.llama import BUILD_HINT, LlamaInstall, find_llama, require_llama
from pipeline.runtime.session import ChatSession, Completion, open_runtime, runtime_at_hand

__all__ = [
    "BUILD_HINT",
    "Calibration",
    "ChatSession",
    "Completion",
    "Ggml",
    "LlamaInstall",
    "compute_imatrix",
    "find_llama",
    "open_runtime",
    "require_ggml",
    "require_llama",
    "runtime_at_hand",
]
