"""``mixwright serve``: the catalog and the job worker."""

from __future__ import annotations

from typing import Annotated

import typer

from mixwright.cli.common import Home, open_store


def serve(
    home: Home = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    workers: Annotated[
        int, typer.Option(min=1, help="Server processes that share the port; one more then runs the jobs.")
    ] = 1,
) -> None:
    """Serve the catalog over HTTP and run the jobs that are posted to it."""
    from mixwright.service.server import serve as serve_forever

    settings, _ = open_store(home)
    serve_forever(settings, host, port, lambda address: typer.echo(f"mixwright serves on {address}"), workers)
