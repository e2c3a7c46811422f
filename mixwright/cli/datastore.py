"""``mixwright datastore``: what a language model retrieves from."""

from __future__ import annotations

import typer

from mixwright.cli.datastore_changes import add, build_datastore, compact, delete
from mixwright.cli.datastore_plan import plan
from mixwright.cli.datastore_search import search
from mixwright.cli.evaluate import evaluate, scale

datastore_app = typer.Typer(
    name="datastore",
    help="What a language model retrieves from: plan, build, search, evaluate.",
    no_args_is_help=True,
)
datastore_app.command()(plan)
datastore_app.command("build")(build_datastore)
datastore_app.command()(add)
datastore_app.command()(delete)
datastore_app.command()(compact)
datastore_app.command("search")(search)
datastore_app.command("evaluate")(evaluate)
datastore_app.command("scale")(scale)
