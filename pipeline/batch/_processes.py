"""An executor that gives every call a process of its own: one that crashes takes nobody with it, nor does it leave any.

Processes are spawned, not forked: a fork would copy locks that threads hold.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

from pipeline.errors import ToolError

_STOP_SECONDS = 20.0  # to remove what is half written


class ProcessPerJob(Executor):
    """Runs calls as processes of this machine, as many at once as are submitted; whoever submits keeps the measure."""

    def __init__(self) -> None:
        self._spawn = multiprocessing.get_context("spawn")
        self._running: dict[BaseProcess, threading.Thread] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call *fn* in a new process.

        The future gets a ToolError if that process dies: killed for want of memory, say.
        """
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        receiver, sender = self._spawn.Pipe(duplex=False)
        process = self._spawn.Process(target=_child, args=(sender, fn, args, kwargs))
        with self._lock:
            if self._stopped:
                raise RuntimeError("this executor is shut down")
            _start(process)
            sender.close()  # so that the child's end is the only one, and its death is seen
            thread = threading.Thread(target=self._await, args=(process, receiver, future))
            self._running[process] = thread
        thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with *cancel_futures*, ask the running processes to stop, and kill those that do not."""
        with self._lock:
            self._stopped = True
            running = dict(self._running)
        if cancel_futures:
            for process in running:
                process.terminate()
        for process, thread in running.items() if wait or cancel_futures else ():
            process.join(_STOP_SECONDS if cancel_futures else None)
            if process.is_alive():
                process.kill()
            thread.join()

    def _await(self, process: BaseProcess, receiver: Connection, future: Future[Any]) -> None:
        try:
            is_good, value = receiver.recv()
        except (EOFError, OSError):
            process.join()
            is_good, value = False, _died(process.exitcode or 0)
        process.join()
        receiver.close()
        with self._lock:
            self._running.pop(process, None)
        if is_good:
            future.set_result(value)
        else:
            future.set_exception(value)


def _start(process: BaseProcess) -> None:
    """Start *process*, which inherits that ctrl-C waits: until `_child` ignores it, Python would end with a traceback.

    A ctrl-C that comes meanwhile reaches this process right after.
    """
    resource_tracker.ensure_running()  # its own first start would end the waiting
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _died(code: int) -> ToolError:
    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    killed = "it may have been out of memory: set --memory, or take fewer workers" if code == -signal.SIGKILL else None
    return ToolError("the process of this job died", found=name, hint=killed)


def _child(sender: Connection, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent decides who stops
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # for the programs that are started from here
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = (True, fn(*args, **kwargs))
    except Exception as error:
        answer = (False, error)
    try:
        sender.send(answer)
    except Exception as error:  # it cannot be pickled
        sender.send((False, ToolError("the answer of a job cannot be sent", found=repr(error))))


def _stop(_number: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the same wish again must not break off the cleaning up
    sys.exit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    """Stop this process when the one that started it is gone, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
