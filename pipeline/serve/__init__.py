"""The embedded registry: a read-only OCI registry over a store, as far as `ollama pull` and other clients need it.

In: a `Store`.  Out: HTTP.  Nothing is copied; blobs go from the file to the socket.
"""

from pipeline.serve._app import make_app
from pipeline.serve._run import BackgroundServer, serve

__all__ = ["BackgroundServer", "make_app", "serve"]
