"""The embedded registry: an OCI registry for models over a store, open to `ollama pull`, `ollama push` and others.

In: a `Store` and `Settings`.  Out: HTTP.  Nothing is copied; blobs go from the file to the socket, and from the socket
to the file.
"""

from pipeline.serve._access import load_token, ollama_keys_path, token_path
from pipeline.serve._app import make_app
from pipeline.serve._demand import Demand, Limits
from pipeline.serve._offers import Offers, read_entries
from pipeline.serve._run import BackgroundServer, serve
from pipeline.serve._settings import Settings

__all__ = [
    "BackgroundServer",
    "Demand",
    "Limits",
    "Offers",
    "Settings",
    "load_token",
    "make_app",
    "ollama_keys_path",
    "read_entries",
    "serve",
    "token_path",
]
