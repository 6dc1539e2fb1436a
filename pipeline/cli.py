"""The command line: parse, call, print.  Library errors become one clear message and an exit code, only here."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import click

from pipeline import __version__
from pipeline.commands import calibrate, look, make, many, serving, stock
from pipeline.errors import PipelineError, from_os_error, not_enough_memory

# New objects between two looks for garbage.  With the default, 700, they take a tenth of the start: what imports make
# is no garbage.
_GARBAGE = 20_000
_SAME_WISH_S = 1.0  # a terminal that closes may send SIGHUP twice
_EPILOG = """\b
MODEL is an alias (see `models`), org/name[@revision] on the Hugging Face Hub, a folder, or a .gguf file.
Exit codes: 0 done, 2 wrong usage, 3 bad or unsupported input, 4 source or target unreachable or refused,
            5 not enough disk or memory, 1 anything else; 128 + N after signal N (ctrl-C: 130)."""


class _Stopped(BaseException):
    """A signal asks the process to end; like KeyboardInterrupt, so that every `finally` on the way out runs."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise `_Stopped`: their default would leave temporary files and children behind.

    Another one right after it is the same wish, and must not break off the cleaning up.  A signal that is ignored, as
    `nohup` does it, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]

    last = float("-inf")

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= _SAME_WISH_S:
            raise _Stopped(number)

    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


class _Group(click.Group):
    """Commands in the order in which a person meets them, and our errors shown as messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        try:
            with _orderly_end():
                return super().invoke(ctx)
        except PipelineError as error:
            _fail(error)
        except BrokenPipeError:
            raise
        except OSError as error:
            _fail(from_os_error(error))
        except MemoryError:
            _fail(not_enough_memory())
        except KeyboardInterrupt:
            _stop(signal.SIGINT)
        except _Stopped as stopped:
            _stop(stopped.number)


def _fail(error: PipelineError) -> NoReturn:
    head, *rest = str(error).split("\n")
    plain = False if os.environ.get("NO_COLOR") else None
    click.echo(click.style("error: ", fg="red", bold=True) + head, err=True, color=plain)
    for line in rest:
        click.echo(line, err=True)
    sys.exit(error.exit_code)


def _stop(number: int) -> NoReturn:
    with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
        click.echo("stopped", err=True)
    sys.exit(128 + number)


@click.group(
    cls=_Group, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="gguf-pipeline")
def main() -> None:
    """Get a Hugging Face model into Ollama: checkpoint -> GGUF -> quantized -> Modelfile -> registry."""
    gc.set_threshold(_GARBAGE)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy would start threads that nothing here uses


for command in (
    make.publish,
    make.plan,
    make.convert,
    make.quantize,
    make.modelfile,
    calibrate.imatrix,
    make.pull,
    many.batch,
    serving.serve,
    stock.run,
    stock.list_,
    stock.rm,
    stock.gc,
    look.models,
    look.inspect,
    look.verify,
    look.doctor,
):
    main.add_command(command)


def run() -> NoReturn:
    """Be the program: `main`, and an end that does not take the interpreter apart, which would take 0.1 s."""
    try:
        main()
    except SystemExit as end:
        others = any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())
        if others or not isinstance(end.code, int):
            raise
        with contextlib.suppress(OSError):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise
    sys.exit()


if __name__ == "__main__":
    run()
