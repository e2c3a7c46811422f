"""The command line: flags to requests, results to text. Nothing is decided here.

``main`` runs the program: exit status 0, 1 with one line on standard error for an error of mixwright's, 2 for
wrong usage.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from mixwright import __version__
from mixwright.cli import artifacts, demo, serving
from mixwright.cli.assign import assign
from mixwright.cli.catalog import catalog_app, jobs_app
from mixwright.cli.datastore import datastore_app
from mixwright.cli.decontaminate import decontaminate
from mixwright.cli.export import export
from mixwright.cli.keys import keys_app
from mixwright.cli.mixtures import mixture_app
from mixwright.cli.near_duplicates import near_duplicates
from mixwright.cli.output import print_error
from mixwright.cli.pilot import pilot_app
from mixwright.cli.predict import compare, plan, predict
from mixwright.cli.query import query
from mixwright.cli.report import report
from mixwright.cli.scaling import predict_scaling
from mixwright.cli.score import score
from mixwright.cli.select import select_app
from mixwright.errors import MixwrightError

app = typer.Typer(
    name="mixwright",
    help="Curates and selects training data for language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
app.command()(demo.demo)
app.command()(serving.serve)
app.command()(artifacts.ingest)
app.command()(artifacts.embed)
app.command()(artifacts.index)
app.command()(score)
app.command()(assign)
app.command()(near_duplicates)
app.command()(decontaminate)
app.add_typer(select_app)
mixture_app.command()(report)
mixture_app.command()(query)
mixture_app.command()(export)
app.add_typer(mixture_app)
pilot_app.command("plan")(plan)
app.add_typer(pilot_app)
app.add_typer(datastore_app)
app.command("predict")(predict)
app.command("predict-scaling")(predict_scaling)
app.command("compare")(compare)
app.add_typer(jobs_app)
app.add_typer(catalog_app)
app.add_typer(keys_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mixwright {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Curates and selects training data for language models."""


def main() -> None:
    """Run the program on the process's arguments and exit."""
    try:
        app()
    except MixwrightError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(1)
    except BrokenPipeError:
        # The reader (head, say) has what it wanted. Python would complain once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
