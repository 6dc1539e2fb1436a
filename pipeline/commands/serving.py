"""The command that serves the published models: the embedded registry."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.serve import Demand, Settings

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--host", help="Address to listen on; default: GGUF_PIPELINE_ADDR or 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; default: GGUF_PIPELINE_ADDR or 11500.")
@click.option("--allow-remote", is_flag=True, help="Let other machines read; reading needs no password.")
@click.option("--allow-remote-writes", is_flag=True, help="Let other machines read, and write with the token.")
@click.option("--read-only", is_flag=True, help="Take no pushes at all.")
@click.option(
    "--ollama-keys",
    type=_FILE,
    metavar="FILE",
    help="Public keys of Ollamas that may `ollama push`, one a line; default: ollama_keys in the settings folder.",
)
@click.option("--tls-cert", type=_FILE, metavar="FILE", help="Serve https with this certificate (PEM, with its chain).")
@click.option("--tls-key", type=_FILE, metavar="FILE", help="The key of the certificate (PEM, not encrypted).")
@click.option("--on-demand", is_flag=True, help="Make what is allowed when it is first pulled.")
@click.option(
    "--allow",
    multiple=True,
    metavar="MODEL",
    help="What --on-demand may make: an alias, org/name or 'org/*'; repeatable.",
)
@click.option("--allow-file", type=_FILE, metavar="FILE", help="A file of such entries, one a line.")
@click.option("--max-size", type=click.FloatRange(0), metavar="GB", help="The largest file that --on-demand makes.")
def serve(
    host: str | None,
    port: int | None,
    allow_remote: bool,
    allow_remote_writes: bool,
    read_only: bool,
    ollama_keys: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    on_demand: bool,
    allow: tuple[str, ...],
    allow_file: Path | None,
    max_size: float | None,
) -> None:
    """Serve the published models to `ollama pull`, and take pushes from whoever has the token."""
    from pipeline import serve as server
    from pipeline.store import Store, local_store_root, registry_address

    settings = server.Settings(
        allow_remote=allow_remote or allow_remote_writes,
        remote_writes=allow_remote_writes,
        token=None if read_only else server.load_token(server.token_path()),
        ollama_keys=ollama_keys or server.ollama_keys_path(),
        on_demand=_demand(on_demand, allow, allow_file, max_size),
        certificate=tls_cert,
        key=tls_key,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    default_host, _, default_port = registry_address().rpartition(":")
    server.serve(
        Store(local_store_root()),
        host or default_host,
        int(default_port) if port is None else port,
        on_ready=lambda address: _announce(address, settings),
        settings=settings,
    )


def _demand(on_demand: bool, allow: tuple[str, ...], allow_file: Path | None, max_size: float | None) -> Demand | None:
    """Put together what is made at the first pull.

    Raises:
        UsageError: if the options do not fit together, or an entry is wrong.
    """
    from pipeline import serve as server
    from pipeline.errors import UsageError
    from pipeline.store import local_store_root

    entries = [*allow, *(server.read_entries(allow_file) if allow_file else [])]
    if not on_demand:
        if entries or max_size is not None:
            raise UsageError("--allow, --allow-file and --max-size are about --on-demand", hint="add --on-demand")
        return None
    if not entries:
        raise UsageError(
            "--on-demand makes only what is allowed, and nothing is",
            hint="add --allow MODEL or --allow-file FILE: aliases, org/name or 'org/*'",
        )
    limits = server.Limits(file_bytes=None if max_size is None else int(max_size * 1e9))
    return server.Demand(server.Offers(entries), local_store_root(), limits)


def _announce(address: str, settings: Settings) -> None:
    from pipeline import serve as server
    from pipeline.store import local_store_root

    scheme = "https" if settings.certificate else "http"
    click.echo(f"serving {local_store_root()} at {scheme}://{address} (ctrl-C ends it)", err=True)
    if settings.token is None:
        click.echo("read-only", err=True)
        return
    who = "everybody" if settings.remote_writes else "this machine"
    click.echo(f"pushes from {who} with the token in {server.token_path()}", err=True)
    click.echo(f"`ollama push` from Ollamas whose key is in {settings.ollama_keys}", err=True)
