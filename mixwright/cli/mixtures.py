"""``mixwright mixture``: look at mixtures, read their rows, write them out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mixwright.cli.common import Home, Json, open_store
from mixwright.cli.output import print_json, print_table, progress_on_stderr
from mixwright.cli.select import print_mixture
from mixwright.schemas.manifests import MixtureManifest
from mixwright.selectors.streams import MixtureStream, Tokenization, to_ndjson

mixture_app = typer.Typer(name="mixture", help="Published mixtures and their rows.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Mixture, name or name@version.")]
Tokenizer = Annotated[str | None, typer.Option(help="Add input_ids and loss_mask by this tokenizer.")]
Bos = Annotated[int | None, typer.Option(help="Token id before each row, with --tokenizer.")]
Eos = Annotated[int | None, typer.Option(help="Token id behind each row, with --tokenizer.")]
Window = Annotated[int | None, typer.Option(help="Text tokens a training window, where tags repeat on each.")]


@mixture_app.command("list")
def list_mixtures(home: Home = None, json: Json = False) -> None:
    """List the mixtures."""
    _, store = open_store(home)
    found = [each for each in store.manifests("mixture") if isinstance(each, MixtureManifest)]
    if json:
        fields = ("ref", "fingerprint", "selector", "n_rows", "n_tokens")
        print_json([{field: getattr(each, field) for field in fields} for each in found])
        return
    rows = [(each.ref, each.selector, each.n_rows, each.n_tokens, len(each.components)) for each in found]
    print_table(("mixture", "selector", "rows", "tokens", "sources"), rows)


@mixture_app.command("show")
def show_mixture(name: NameArgument, home: Home = None, json: Json = False) -> None:
    """Show a mixture: components, stages, warnings; the whole manifest with --json."""
    _, store = open_store(home)
    manifest = store.manifest(name, "mixture")
    if json or not isinstance(manifest, MixtureManifest):
        print_json({"ref": manifest.ref} | manifest.model_dump(mode="json"))
        return
    print_mixture(manifest)


@mixture_app.command("rows")
def print_rows(
    name: NameArgument,
    start: Annotated[int, typer.Option(help="First row, counted in the rank's own stream.")] = 0,
    count: Annotated[int | None, typer.Option(help="Rows to print; default: to the end.")] = None,
    rank: Annotated[int, typer.Option(help="Which of --world-size readers this is.")] = 0,
    world_size: Annotated[int, typer.Option(help="Readers that share the stream.")] = 1,
    block_rows: Annotated[int, typer.Option(help="Rows in a row that a rank reads before the next one.")] = 1,
    offset: Annotated[int, typer.Option(help="Position from which on the ranks share the rows.")] = 0,
    tokenizer: Tokenizer = None,
    bos: Bos = None,
    eos: Eos = None,
    window: Window = None,
    home: Home = None,
) -> None:
    """Print the rows of a mixture, one JSON object a line."""
    _, store = open_store(home)
    tokenization = Tokenization.of(tokenizer, bos, eos, window)
    stream = MixtureStream.open(store, name)
    for table in stream.read(start, count, rank, world_size, tokenization, block_rows=block_rows, offset=offset):
        sys.stdout.buffer.write(to_ndjson(table))
        sys.stdout.buffer.flush()


@mixture_app.command()
def materialize(
    name: NameArgument,
    out: Annotated[Path, typer.Option(help="Folder to make; it must not exist or be empty.")],
    tokenizer: Tokenizer = None,
    bos: Bos = None,
    eos: Eos = None,
    window: Window = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write the rows of a mixture, in order, as Parquet files beside its manifest."""
    from mixwright.jobs.materialize import materialize_mixture

    _, store = open_store(home)
    with progress_on_stderr(for_a_program=json) as progress:
        files = materialize_mixture(
            MixtureStream.open(store, name), out, Tokenization.of(tokenizer, bos, eos, window), progress
        )
    if json:
        print_json({"out": str(out), "files": [each.model_dump() for each in files]})
        return
    typer.echo(f"{sum(each.n_rows or 0 for each in files):,} rows in {len(files)} files under {out}")
