"""``mixwright mixture export``: a mixture in the form that a trainer reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixwright.cli.common import Home, Json, open_store
from mixwright.cli.mixtures import NameArgument
from mixwright.cli.output import print_json, progress_on_stderr
from mixwright.selectors.streams import MixtureStream


def export(
    name: NameArgument,
    format: Annotated[
        str, typer.Option("--format", help="Format: megatron, huggingface, mds …; docs/exports.md lists them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; it must not exist or be empty.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer of a format of tokens; default: the mixture's.")
    ] = None,
    bos: Annotated[int | None, typer.Option(help="Token id before each document.")] = None,
    eos: Annotated[int | None, typer.Option(help="Token id behind each document.")] = None,
    sequence_length: Annotated[int | None, typer.Option(help="Tokens of the trainer's sequences.")] = None,
    root: Annotated[
        str | None, typer.Option(help="Path under which the trainer sees the folder; default: --out.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write a mixture in the form that a trainer reads: its rows, weights and stages, with their settings."""
    from mixwright.jobs.exports.export import export_format, export_mixture, snippet
    from mixwright.jobs.exports.format import ExportOptions

    _, store = open_store(home)
    chosen = export_format(format)
    options = ExportOptions(tokenizer, bos, eos, sequence_length, root)
    with progress_on_stderr(for_a_program=json) as progress:
        stream = MixtureStream.open(store, name)
        result = export_mixture(store, stream, format, options, out, progress)
    if json:
        print_json({"out": str(out), **result.model_dump(mode="json")})
        return
    size = sum(entry.n_bytes for entry in result.files)
    typer.echo(f"{len(result.files)} files, {size:,} bytes under {out}")
    for warning in result.warnings:
        typer.echo(f"warning: {warning}")
    typer.echo(f"\n{snippet(chosen, root or str(out.resolve()), stream.manifest)}")
