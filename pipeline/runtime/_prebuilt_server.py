"""The process of a prebuilt llama.cpp: `python -m pipeline.runtime._prebuilt_server` serves one model over HTTP."""

from __future__ import annotations

import argparse
import os
import sys


def main(arguments: list[str] | None = None) -> int:
    """Serve one model on a free port of 127.0.0.1; the key is in LLAMA_API_KEY."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.runtime._prebuilt_server")
    parser.add_argument("gguf")
    parser.add_argument("--n-ctx", type=int, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--embedding", action="store_true")
    wanted = parser.parse_args(arguments)

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = wanted.gguf
    params.n_ctx = wanted.n_ctx
    params.n_parallel = 1
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [os.environ["LLAMA_API_KEY"]]
    params.embedding = wanted.embedding
    params.fit_params = False
    params.offline = True
    params.ui = False
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    if wanted.threads is not None:
        params.cpuparams.n_threads = wanted.threads
        params.cpuparams_batch.n_threads = wanted.threads
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"listening on {server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
