"""Make a model when it is first pulled: one at a time, in a process of its own, at the pace of the machine.

Whoever pulls waits for the manifest; Ollama does so without a limit.  A client that gives up does not stop the work,
and its next pull finds the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import quant
from pipeline.errors import AccessError, UsageError
from pipeline.runtime.child import bound_to_us
from pipeline.serve._answers import RegistryError
from pipeline.serve._offers import HUB_NAMESPACE, Offers

_LOG = logging.getLogger(__name__)

REMEMBERED_S = 120.0  # how long a failure is told again before the work is tried again
_STOP_S = 10.0
_LATEST = "latest"
# By the exit code that the command line would have (errors.py).
_STATUS = {2: 422, 3: 422, 4: 502, 5: 507}


@dataclass(frozen=True)
class Limits:
    """What one model may cost: *file_bytes* of its GGUF, *seconds* until it is published."""

    file_bytes: int | None = None
    seconds: float = 4 * 3600.0


@dataclass(frozen=True)
class _Wish:
    repository: str
    tag: str

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}"


class Demand:
    """Makes what *offers* allow, into the embedded registry's store at *root*; *clock* gives seconds."""

    def __init__(
        self, offers: Offers, root: Path, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.offers = offers
        self._root = root
        self._limits = limits or Limits()
        self._clock = clock
        self._now: tuple[_Wish, asyncio.Task[None]] | None = None
        self._failures: dict[_Wish, tuple[RegistryError, float]] = {}
        self._asking = asyncio.Lock()

    async def make(self, repository: str, tag: str) -> bool:
        """Make a model and wait until it is published; False if it is not among the offers.

        Raises:
            RegistryError: if it can not be made, could not be made a moment ago, or another one is being made.
        """
        model = await self._find(repository)
        if model is None:
            return False
        if tag != _LATEST and tag not in quant.recipes():
            known = ", ".join([_LATEST, *sorted(quant.recipes())])
            raise RegistryError(400, "TAG_INVALID", f"{tag} is no quantization; there are {known}", repository)
        wish = _Wish(repository, tag)
        self._refuse_failed(wish)
        if self._now is None or self._now[1].done():
            self._now = wish, asyncio.create_task(self._work(wish, model))
        busy, task = self._now
        if busy != wish:
            message = f"{busy} is being made; pull again when it is there"
            raise RegistryError(503, "TOOMANYREQUESTS", message, str(wish), {"Retry-After": "60"})
        await asyncio.shield(task)
        self._refuse_failed(wish)
        return True

    async def close(self) -> None:
        """Stop what is under way; nothing of it is published then."""
        if self._now is not None:
            self._now[1].cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._now[1]

    async def _find(self, repository: str) -> str | None:
        if repository in self.offers.names:
            return self.offers.find(repository)
        try:
            async with self._asking:  # a Hub that does not answer must not keep all threads of the server
                model = await asyncio.to_thread(self.offers.find, repository)
        except UsageError as exc:
            raise RegistryError(409, "NAME_INVALID", f"{exc.what}: {exc.found}; {exc.hint}", repository) from exc
        except AccessError as exc:
            raise RegistryError(502, "UNKNOWN", f"{exc.what}: {exc.found}", repository) from exc
        if model is None and repository.startswith(f"{HUB_NAMESPACE}/"):
            message = "this registry does not make this model; its owner may allow it: --allow org/name"
            raise RegistryError(403, "DENIED", message, repository)
        return model

    def _refuse_failed(self, wish: _Wish) -> None:
        now = self._clock()
        self._failures = {key: failed for key, failed in self._failures.items() if failed[1] > now}
        if wish in self._failures:
            raise self._failures[wish][0]

    async def _work(self, wish: _Wish, model: str) -> None:
        """Run the job, and remember how it failed."""
        _LOG.info("%s: making it from %s", wish, model)
        started = self._clock()
        try:
            async with asyncio.timeout(self._limits.seconds):
                failure = await self._run(wish, model)
        except TimeoutError:
            failure = {"exit_code": 1, "message": f"it took longer than {self._limits.seconds:.0f} s"}
        if failure is None:
            _LOG.info("%s: published after %.0f s", wish, self._clock() - started)
            return
        _LOG.warning("%s: failed: %s", wish, failure["message"])
        message = f"{wish} could not be made: {failure['message']}"
        headers = {"Retry-After": f"{REMEMBERED_S:.0f}"}
        error = RegistryError(_STATUS.get(failure["exit_code"], 500), "UNKNOWN", message, model, headers)
        self._failures[wish] = error, self._clock() + REMEMBERED_S

    async def _run(self, wish: _Wish, model: str) -> dict[str, Any] | None:
        """Run `_make` in a process of its own; return None, or what it says of its failure.

        It ends with the server even if that is killed, and so do the programs that it has started.
        """
        job = {
            "model": model,
            "name": wish.repository,
            "quants": [] if wish.tag == _LATEST else [wish.tag],
            "label": str(wish),
            "max_bytes": self._limits.file_bytes,
        }
        child = await asyncio.create_subprocess_exec(
            *bound_to_us([sys.executable, "-m", "pipeline.serve._make"]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "GGUF_PIPELINE_STORE": str(self._root)},
            start_new_session=True,  # ctrl-C at a terminal is the server's to handle
        )
        try:
            out, _ = await child.communicate(json.dumps(job).encode())
        finally:
            await _ended(child)
        if child.returncode == 0:
            return None
        try:
            told: dict[str, Any] = json.loads(out)
        except ValueError:
            told = {"exit_code": 1, "message": f"it ended with status {child.returncode}"}
        return told


async def _ended(child: asyncio.subprocess.Process) -> None:
    """Ask a process to end, if it still runs, and kill it if it does not."""
    if child.returncode is not None:
        return
    child.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
