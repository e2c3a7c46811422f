"""``mixwright datastore plan``: what a datastore will take, before anything is built."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from mixwright.cli.common import Home, Json, open_store
from mixwright.cli.output import print_json, print_table
from mixwright.errors import ConfigError
from mixwright.schemas.datastores import PassageWindow
from mixwright.schemas.defaults import DEFAULT_ENCODER
from mixwright.schemas.requests import IndexKind

if TYPE_CHECKING:
    from pathlib import Path

    from mixwright.indexes.datastore_contents import Contents
    from mixwright.indexes.datastore_plan import DatastorePlan, Dtype, EncoderShape

_AMOUNT = re.compile(r"(?P<number>[0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][+]?[0-9]+)?)\s*(?P<unit>[A-Za-z]*)")
_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_BYTES = {f"{prefix}B": 10 ** (3 * power) for power, prefix in enumerate(("", "K", "M", "G", "T", "P"))} | {
    f"{prefix}iB".upper(): 2 ** (10 * power) for power, prefix in enumerate(("K", "M", "G", "T", "P"), 1)
}
_LARGEST = 10**24


def plan(
    corpora: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CORPUS...]", help="Corpora that are there, instead of --tokens."),
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens of the text, as in 1e12, 300B or 5000000.")] = None,
    words_per_passage: Annotated[int, typer.Option(help="Words of a passage, at most.")] = 256,
    tokens_per_word: Annotated[
        float | None, typer.Option(help="Of the encoder; default 1.3, or what the corpora have.")
    ] = None,
    fill: Annotated[
        float | None, typer.Option(help="With --tokens: words of a passage over the most; default 0.8541.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help=f"Whose size is meant; default {DEFAULT_ENCODER}, without --dim.")
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Coordinates of a vector, instead of --encoder.")] = None,
    parameters: Annotated[
        str | None, typer.Option(help="Of the encoder, as in 110M; default those of a BERT of its width.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the stored vectors: float32 or float16.")] = "float32",
    index_kind: Annotated[IndexKind, typer.Option(help="Kind of index.")] = "auto",
    gpu: Annotated[str | None, typer.Option(help="What embeds: T4, L4, L40, A100 or H100; default L40.")] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Cores embed, instead of a GPU.")] = False,
    memory_per_machine: Annotated[
        str | None, typer.Option(help="Memory of a machine that serves, as in 256GB: how many are needed?")
    ] = None,
    shard_passages: Annotated[str, typer.Option(help="Passages of a shard, at most.")] = "10M",
    home: Home = None,
    json: Json = False,
) -> None:
    """Say what a datastore will take: passages, bytes, memory, hours, shards. Nothing is built."""
    from mixwright.indexes.datastore_plan import plan_datastore

    if gpu is not None and cpu:
        raise ConfigError("--gpu and --cpu exclude each other: give one of them")
    window = _window(words_per_passage)
    planned = plan_datastore(
        _contents(corpora or [], tokens, window, tokens_per_word, fill, home),
        _encoder(encoder, dim, parameters),
        words_per_passage=window.size,
        dtype=_dtype(dtype),
        index_kind=index_kind,
        device="cpu" if cpu else (gpu or "L40").upper(),
        shard_passages=amount(shard_passages, "--shard-passages", _COUNTS),
        memory_per_machine=(
            None if memory_per_machine is None else amount(memory_per_machine, "--memory-per-machine", _BYTES)
        ),
    )
    if json:
        print_json(planned.as_dict())
        return
    _print(planned)


def _window(words: int) -> PassageWindow:
    if not 1 <= words <= 1_000_000:
        raise ConfigError(f"--words-per-passage {words} is not from 1 to 1,000,000: change it")
    return PassageWindow(size=words)


def _dtype(name: str) -> Dtype:
    if name == "float32":
        return "float32"
    if name == "float16":
        return "float16"
    raise ConfigError(f"--dtype {name} is neither float32 nor float16: give one of them")


def _contents(
    corpora: list[str],
    tokens: str | None,
    window: PassageWindow,
    tokens_per_word: float | None,
    fill: float | None,
    home: Path | None,
) -> Contents:
    from mixwright.corpora import Corpus
    from mixwright.indexes.datastore_contents import FILL, TOKENS_PER_WORD, assumed_contents, measured_contents

    if bool(corpora) == (tokens is not None):
        raise ConfigError("name corpora, or say by --tokens how much text there is: one of the two")
    if tokens is not None:
        n_tokens = amount(tokens, "--tokens", _COUNTS)
        return assumed_contents(
            n_tokens,
            window.size,
            TOKENS_PER_WORD if tokens_per_word is None else tokens_per_word,
            FILL if fill is None else fill,
        )
    if fill is not None:
        raise ConfigError("--fill is counted where there are corpora: leave it out")
    _, store = open_store(home)
    return measured_contents([Corpus.open(store, each) for each in corpora], window, tokens_per_word)


def _encoder(name: str | None, dim: int | None, parameters: str | None) -> EncoderShape:
    from mixwright.indexes.datastore_plan import encoder_shape, usual_shape

    if name is not None and (dim is not None or parameters is not None):
        raise ConfigError("--encoder says dim and parameters itself: leave them out, or name no encoder")
    if dim is None and parameters is not None:
        raise ConfigError("--parameters needs --dim: give both")
    if dim is None:
        return encoder_shape(name or DEFAULT_ENCODER)
    return usual_shape(dim, None if parameters is None else amount(parameters, "--parameters", _COUNTS))


def amount(text: str, flag: str, units: dict[str, int]) -> int:
    """``1e12``, ``50M`` or ``256GB`` as a whole number; raises ConfigError naming the flag."""
    match = _AMOUNT.fullmatch(text.strip())
    unit = units.get(match["unit"].upper()) if match else None
    if match is None or unit is None:
        known = ", ".join(each for each in units if each)
        example = "256GB" if units is _BYTES else "1e12 or 50M"
        raise ConfigError(f"{flag} {text}: write a number such as {example}; units are {known}")
    value = float(re.sub("[_,]", "", match["number"])) * unit
    if not 1 <= value <= _LARGEST:
        raise ConfigError(f"{flag} {text}: it must be from 1 to {_LARGEST:.0e}")
    return round(value)


def size(n_bytes: float) -> str:
    """Bytes for a person, in decimal units and three figures: 5.40 TB."""
    value, units = float(n_bytes), ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
    power = 0
    # 999.6 would be printed as 1,000.
    while value >= 999.5 and power + 1 < len(units):
        value, power = value / 1000, power + 1
    decimals = 0 if power == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{decimals}f} {units[power]}"


def _hours(hours: float, of: str) -> str:
    if hours < 0.01:
        return f"{hours * 3600:.2g} {of} seconds"
    return f"{hours:,.0f} {of} hours" if hours >= 100 else f"{hours:.3g} {of} hours"


def _print(planned: DatastorePlan) -> None:
    contents, disk, memory, hours = planned.contents, planned.disk, planned.memory, planned.hours
    known = "measured" if contents.measured_share else "assumed"
    typer.echo(
        f"{contents.passages:,} passages of up to {planned.words_per_passage:,} words, from {contents.tokens:,} "
        f"tokens in {contents.documents:,} documents ({known})"
    )
    vectors = f"{planned.encoder.dim} coordinates, {planned.dtype}" if disk.vectors else "the index has them"
    device = "core" if hours.device == "cpu" else hours.device
    machines = planned.machines or {}
    each = f"of {size(planned.memory_per_machine)}, " if planned.memory_per_machine else ""
    rows = [
        (
            "shards",
            f"{planned.shards:,}",
            f"of {planned.passages_per_shard:,} passages (--shards {planned.shards})",
        ),
        ("disk", size(disk.total), "all of the following"),
        ("  passages", size(disk.passages + disk.keys), f"text {size(contents.text_bytes)}, ids, URLs, metadata"),
        ("  vectors", size(disk.vectors), vectors),
        ("  index", size(disk.index), f"{planned.index_kind}: {planned.factory}"),
        ("  BM25", size(disk.bm25), "postings and lengths"),
        ("  clusters", size(disk.clusters), "of near-duplicates"),
        ("memory, dense", size(memory.dense), f"index {size(memory.index)}, keys and clusters"),
        ("memory, hybrid", size(memory.hybrid), f"with BM25 {size(memory.bm25)}"),
        ("memory, training", size(memory.training), "of the index, on one machine"),
        *(("machines, " + mode, f"{n:,}", f"{each}to serve") for mode, n in machines.items()),
        ("embedding", _hours(hours.embedding, device), f"{planned.flops:.3g} floating-point operations"),
        ("index", _hours(hours.index, "core"), "to train, add and measure"),
        ("BM25", _hours(hours.bm25, "core"), "to count words"),
    ]
    print_table(("what", "takes", "is"), rows)
    for warning in planned.warnings:
        typer.echo(f"warning: {warning}")
