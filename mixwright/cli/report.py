"""``mixwright mixture report``: what a selector wants a person to see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from mixwright.cli.common import Home, Json, open_store
from mixwright.cli.mixtures import NameArgument
from mixwright.cli.output import print_json, print_table
from mixwright.cli.select import print_mixture
from mixwright.schemas.manifests import MixtureManifest

_TERMS = 4


def report(
    name: NameArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to make with page, JSON and plots; it must not exist or be empty."),
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Show the report of a mixture, or write it as a page with plots (SVG and PNG)."""
    from mixwright.service.mixture_page import report_of
    from mixwright.service.report_files import write_report

    _, store = open_store(home)
    manifest = cast(MixtureManifest, store.manifest(name, "mixture"))
    found = report_of(manifest)
    if out is not None:
        files = write_report(store, manifest, out)
        if json:
            print_json({"out": str(out), "files": files})
        else:
            typer.echo(f"{len(files)} files under {out}: open {out / 'report.html'}")
    elif json:
        print_json(found)
    else:
        print_mixture(manifest)
        if manifest.selector == "paser":
            _print_paser(manifest)


def _print_paser(manifest: MixtureManifest) -> None:
    from mixwright.service.paser_view import cluster_rows, comparisons, short

    unit, rows = "".join(manifest.budget), cluster_rows(manifest)
    typer.echo(f"\nclusters, the most degraded first; shares of {unit}")
    print_table(
        ("cluster", "degradation", "documents", "pool", "budget", "selected", "terms"),
        [
            (
                str(row["cluster"]),
                row["degradation_text"],
                row["documents"],
                f"{row['pool_share']:.1%}",
                f"{row['budget_share']:.1%}",
                row["selected_documents"],
                ", ".join(row["top_terms"][:_TERMS]),
            )
            for row in rows
        ],
    )
    mode, found = manifest.report["settings"]["consistency"], manifest.report["consistency"]
    typer.echo(
        f"\nconsistency {mode}, left out: duplicates {found['duplicates']:,}, conflicts {found['conflicts']:,}; "
        f"taken all the same: duplicates {found['relaxed_duplicates']:,}, conflicts {found['relaxed_conflicts']:,}"
    )
    for number, pair in enumerate(found.get("examples", ()), 1):
        typer.echo(f"\npair {number} of {found['disagreeing_pairs']:,} that ask the same and disagree")
        for prompt, response in zip(pair["prompts"], pair["responses"], strict=True):
            typer.echo(f"  {prompt}\n    {response}")
    typer.echo("\nbeside random")
    print_table(
        ("measure", "paser", "random, mean ± standard deviation"),
        [(each.name, short(each.selected), each.random_text) for each in comparisons(manifest)],
    )
