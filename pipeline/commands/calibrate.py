"""The command that computes an importance matrix."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.commands._common import json_option, print_json, reporter, threads_option

_FILE = click.Path(dir_okay=False, path_type=Path)
_THERE = click.Path(dir_okay=False, exists=True, path_type=Path)


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=_FILE, required=True, help="The importance matrix to write, a GGUF.")
@click.option("--text", type=_THERE, metavar="FILE", help="What the model shall read; default: a text of our own.")
@click.option("--ctx", type=click.IntRange(16), default=512, show_default=True, help="Length of a chunk, in tokens.")
@click.option("--chunks", type=click.IntRange(1), help="Read so many chunks at most.")
@click.option("--from-chunk", type=click.IntRange(0), default=0, help="Leave out so many chunks at the start.")
@click.option("--in-file", "before", type=_THERE, multiple=True, metavar="F", help="A matrix to add to; may repeat.")
@click.option("--process-output", is_flag=True, help="Collect for the output tensor, too.")
@click.option(
    "--save-frequency",
    "every",
    type=click.IntRange(1),
    metavar="N",
    help="Save what there is after N chunks; default: minutes of work.",
)
@click.option(
    "--resume/--no-resume", default=True, help="Go on from what a run that was stopped has saved, or start anew."
)
@threads_option
@json_option
def imatrix(
    model: str, output: Path, text: Path | None, ctx: int, chunks: int | None, from_chunk: int,
    before: tuple[Path, ...], process_output: bool, every: int | None, resume: bool, threads: int, as_json: bool,
) -> None:  # fmt: skip
    """Compute the importance matrix of MODEL with llama-imatrix (`make llama`), for --imatrix.

    MODEL is an unquantized or slightly quantized GGUF, or what other commands take, which is converted first.
    A run that was stopped goes on when the same command is given again, and makes the same file.
    """
    from pipeline import calibrate
    from pipeline.runtime import Calibration

    how = Calibration(ctx, chunks, from_chunk, before, threads, process_output)
    found = calibrate.compute(model, output, reporter(quiet=as_json), text, how, every=every, resume=resume)
    if as_json:
        print_json(
            {
                "path": str(output),
                "sha256": found.sha256,
                "matrices": len(found.entries),
                "chunks": found.n_chunks,
                "datasets": list(found.datasets),
            }
        )
    else:
        click.echo(f"{output}  {len(found.entries)} matrices over {found.n_chunks} chunks  sha256:{found.sha256}")
