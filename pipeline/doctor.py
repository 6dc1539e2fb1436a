"""`doctor`: what is installed, what is missing, and the command that mends it; whether a tokenizer comes out right."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__, data, flow, prove, publish, quant
from pipeline.errors import AccessError, PipelineError, ProofError, UsageError
from pipeline.runtime.llama import BUILD_HINT, find_llama
from pipeline.runtime.ollama import TRIED, daemon_url, daemon_version, find_ollama
from pipeline.runtime.prebuilt import prebuilt_version
from pipeline.runtime.registry import probe_registry
from pipeline.source import hub
from pipeline.store import local_store_root, ollama_store_root, registry_address
from pipeline.types import Log

_LITTLE = 5_000_000_000  # bytes: a 7 B model in Q4_K_M


@dataclass(frozen=True)
class Finding:
    """One line of the examination; *fix* is what to do where *ok* is false, or would be better."""

    name: str
    ok: bool
    detail: str
    fix: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at everything; a part that fails to look says so instead of stopping the others."""
    return [
        finding
        for part in (_tool, _llama, _prebuilt, _engine, _ollama, _stores, _registry)
        for finding in _guarded(part)
    ]


def examine_tokenizer(model: str, log: Log) -> prove.Comparison:
    """Compare the vocabulary that *model* would get in a GGUF with its own tokenizer; no weights are needed.

    Raises:
        UsageError: if it is a GGUF, beside which there is no other tokenizer.
        ToolError: if no llama.cpp is at hand.
        InputError: if the model or its tokenizer is bad or not supported.
    """
    with flow.prepare(model, log) as prepared:
        if prepared.source.gguf:
            raise UsageError(
                "a GGUF has no other tokenizer to be compared with", where=model, hint="name the checkpoint"
            )
        return prove.compare_keys(prepared.tokenizer.metadata, prepared.source.folder)


def refuse_differences(model: str, found: prove.Comparison) -> None:
    """Stop where no known limit explains a difference.

    Raises:
        ProofError: naming the first text.
    """
    if found.unexplained:
        raise ProofError(
            "llama.cpp cuts texts otherwise than the model's own tokenizer",
            where=model,
            found=found.check().detail,
            hint="if the tokenizer's files are sound, this is a bug: tell us, with the report of --json",
        )


def _guarded(part: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(part())
    except PipelineError as error:
        return [Finding(part.__name__.strip("_"), False, error.what, error.hint)]


def _tool() -> Iterator[Finding]:
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("gguf-pipeline", True, f"{__version__}, {python}, in {Path(sys.prefix)}")


def _llama() -> Iterator[Finding]:
    found = find_llama()
    if found is None:
        yield Finding("llama.cpp", False, "not built for this machine", BUILD_HINT)
    else:
        yield Finding("llama.cpp", True, f"{found.label} in {found.bin_dir}")


def _prebuilt() -> Iterator[Finding]:
    version = prebuilt_version()
    if version:
        yield Finding("prebuilt llama.cpp", True, f"xllamacpp {version}, used where the one above is not built")
    else:
        yield Finding("prebuilt llama.cpp", False, "not installed", "pip install 'gguf-pipeline[run]'")


def _engine() -> Iterator[Finding]:
    is_there, detail = quant.describe_fast()
    mend = (
        "pip install --force-reinstall llvmlite"
        if "cannot be loaded" in detail
        else "pip install 'gguf-pipeline[fast]'"
    )
    yield Finding("compiled engine", is_there, detail, None if is_there else mend)


def _ollama() -> Iterator[Finding]:
    tried = "tried with " + ", ".join(f"{version} ({which})" for version, which in TRIED)
    program, url = find_ollama(), daemon_url()
    if program is None:
        yield Finding("Ollama", False, f"no `ollama` on PATH; {tried}", "install it from ollama.com")
    else:
        yield Finding("Ollama", True, f"{program}; {tried}")
    version = daemon_version(url)
    if version is None:
        yield Finding("Ollama's daemon", False, f"no answer at {url}", "ollama serve")
    else:
        yield Finding("Ollama's daemon", True, f"version {version} at {url}")


def _stores() -> Iterator[Finding]:
    for name, root, setting in (
        ("our registry", local_store_root(), "GGUF_PIPELINE_STORE"),
        ("Ollama's store", ollama_store_root(), "OLLAMA_MODELS"),
        ("Hub's cache", hub.settings()[1], "HF_HOME"),
    ):
        there = data.nearest_existing(root)
        free = shutil.disk_usage(there).free
        detail = f"{root}, {free / 1e9:.1f} GB free"
        if not os.access(there, os.W_OK | os.X_OK):
            yield Finding(name, False, f"{detail}, not writable", f"set {setting} to a folder of your own")
        elif free < _LITTLE:
            yield Finding(name, False, f"{detail}, too little for most models", f"free some, or set {setting}")
        else:
            yield Finding(name, True, detail)


_ADVICE = {
    "absent": "gguf-pipeline serve",
    "other": "stop that program, or choose another port: GGUF_PIPELINE_ADDR=127.0.0.1:11501",
    "broken": "restart it: gguf-pipeline serve",
    "empty": "gguf-pipeline publish demo",
}


def _registry() -> Iterator[Finding]:
    address = registry_address()
    yield _probed(address, _ADVICE)


_ADVICE_ELSEWHERE = {
    "absent": "check the address, and that the registry runs",
    "other": "give scheme, host and port of a registry: --registry https://registry.example.com:5000",
    "broken": "mend what is said, then ask again",
    "empty": "gguf-pipeline publish demo --to http://HOST:PORT",
}


def examine_registry(address: str) -> Finding:
    """Ask whether `ollama pull` works from the registry at *address*, "host:port" or a URL.

    A password in it is neither sent, as Ollama has none to send, nor shown.
    """
    return _probed(publish.redacted(address), _ADVICE_ELSEWHERE)


def refuse_fault(found: Finding) -> None:
    """Stop where `ollama pull` would not work.

    Raises:
        AccessError: saying so.
    """
    if not found.ok:
        raise AccessError("`ollama pull` does not work from there", hint=found.fix)


def _probed(address: str, advice: Mapping[str, str]) -> Finding:
    found = probe_registry(address)
    return Finding("registry", found.state in ("ready", "empty"), f"{address}: {found.detail}", advice.get(found.state))
