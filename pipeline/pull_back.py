"""The proof `full`: what was published is pulled again, as Ollama pulls, into an empty folder, and asked a question.

It comes after the publication, since only what is visible can be pulled.  A user's Ollama is left alone: the pull is
our own, request for request, and its folder is removed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline import data, flow, prove, publish
from pipeline import report as reports
from pipeline.delivery import Delivery
from pipeline.errors import PipelineError, ProofError
from pipeline.job import Job
from pipeline.report import PublishedFile, Report
from pipeline.runtime import BUILD_HINT, runtime_at_hand
from pipeline.runtime.pull import pull
from pipeline.store import LOCAL_HOST, Name, Store, local_store_root, ollama_store_root
from pipeline.store.blobs import hash_bytes
from pipeline.types import Check, Log

_STORES = {"local": local_store_root, "ollama": ollama_store_root}


def package(job: Job, log: Log) -> Report:
    """Publish as `flow.package` does; with the proof "full", pull everything back, also what was there already.

    Raises:
        PipelineError: as `flow.package`.
        ProofError: if what comes back is not what was published.
    """
    if job.proof != "full":
        return flow.package(job, log)
    report = flow.package(replace(job, proof="quick"), log)
    if report.is_unchanged and report.proof == "full":
        return report
    log.stage("pulling back what was published")
    there = [one for one in report.targets if one.state != "failed"]
    checks = tuple(check for one in there for file in report.files for check in _pull_back(job, one, file, log))
    if any(check.state == "different" for check in checks):
        raise ProofError(
            "what comes back is not what was published",
            where=report.files[0].name,
            found="; ".join(f"{check.name}: {check.detail}" for check in checks if check.state == "different"),
            hint="publish it again with --again; if this stays, tell us",
        )
    report = replace(report, checks=(*report.checks, *checks), proof="full")
    reports.save(report)
    return report


def _pull_back(job: Job, delivery: Delivery, file: PublishedFile, log: Log) -> tuple[Check, ...]:
    """Pull one file from one target, compare it with what was published, and ask it a question."""
    pulled_name, answer_name = f"{file.recipe} pulled from {delivery.target}", f"{file.recipe} answer after the pull"
    named = [Name.parse(text, strict=False) for text, digest in delivery.named if digest == file.manifest]
    if not named:  # whoever keeps it there makes manifests of its own
        command = next((one for one in delivery.commands if one.startswith("ollama ")), None)
        return (Check(pulled_name, "not checked", "it is not reached over HTTP from here", command),)
    name = named[0]
    command = f"ollama pull {'' if delivery.target.startswith(('https', 'hf:')) else '--insecure '}{name}"
    given = next((text for text in job.targets if publish.redacted(text) == delivery.target), delivery.target)
    with _registry(delivery.target, name) as base, _scratch() as folder, publish.login_for(given) as login:
        if base is None:
            return (Check(pulled_name, "not checked", "it is not reached over HTTP from here", command),)
        free = shutil.disk_usage(folder).free
        if free < file.size:
            needed = f"{file.size:,} bytes are needed in {folder.parent}, {free:,} are free"
            return (Check(pulled_name, "not checked", needed, command),)
        try:
            with log.bar(f"pulling {name}") as progress:
                pulled = pull(base, name.repository, name.tag, folder, progress, login)
        except PipelineError as error:
            return (Check(pulled_name, "different", str(error), command),)
        found = hash_bytes(pulled.manifest).digest
        if found != file.manifest or file.digest not in pulled.files:
            return (Check(pulled_name, "different", f"the manifest is {found}, not {file.manifest}"),)
        detail = f"{len(pulled.files)} blobs, {pulled.n_bytes:,} bytes in {pulled.n_parts} parts, each blob hashed"
        detail += (
            ", with the login that the registry asks for (`ollama pull` has its own key alone)"
            if pulled.with_login
            else ""
        )
        return Check(pulled_name, "proven", detail), _answers(answer_name, pulled.files[file.digest], file)


def _answers(name: str, pulled: Path, file: PublishedFile) -> Check:
    """Compare the answer of the pulled file with that of the one in a store of this machine."""
    if runtime_at_hand() is None:
        return Check(name, "not checked", "no llama.cpp is at hand", BUILD_HINT.partition("` ")[0].strip("`"))
    stores = [Store(root()) for root in _STORES.values()]
    own = next((store.blob_path(file.digest) for store in stores if store.has(file.digest, file.size)), None)
    try:
        after = prove.answer_of(pulled)
        before = prove.answer_of(own) if own else after
    except PipelineError as error:
        return Check(name, "different", f"{error.what} ({error.found})")
    if not after or after != before:
        return Check(name, "different", f"{after} where the published file says {before}")
    compared = "the same as before" if own else "the file before is not on this machine"
    return Check(name, "proven", f"{len(after)} numbers or greedy tokens from {runtime_at_hand()}, {compared}")


@contextmanager
def _registry(target: str, name: Name) -> Iterator[str | None]:
    """Give the address that *target* is pulled from; a store of this machine is served for as long as it takes."""
    if target.startswith(("http://", "https://")):
        yield f"{target.partition('://')[0]}://{name.host}"
        return
    store = Store(_STORES[target]()) if target in _STORES else None
    if store is None or name.host != LOCAL_HOST or not store.manifest_path(name).is_file():
        yield None
        return
    from pipeline.serve import BackgroundServer  # a web server is loaded only where it is needed

    with BackgroundServer(store) as server:
        yield f"http://{server.address}"


@contextmanager
def _scratch() -> Iterator[Path]:
    root = data.cache_home() / "pull"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        yield Path(folder)
