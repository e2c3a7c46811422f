"""``mixwright mixture report``: what a selector wants a person to see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from mixwright.cli.common import Home, Json, open_store
from mixwright.cli.mixtures import NameArgument
from mixwright.cli.output import print_json, print_table
from mixwright.cli.select import print_mixture
from mixwright.schemas.manifests import MixtureManifest

_TERMS = 4
_SHARES = 6


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
    from mixwright.service.pages.mixture_page import report_of
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
        if manifest.selector == "projektor":
            _print_projektor(manifest)


def _print_paser(manifest: MixtureManifest) -> None:
    from mixwright.service.pages.paser_view import cluster_rows, comparisons, short

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


def _print_projektor(manifest: MixtureManifest) -> None:
    from mixwright.service.pages.projektor_view import metric_text, predicts, projection_view

    report = manifest.report
    asked, scored = report["settings"], predicts(report)
    if scored:
        typer.echo(f"\ncompared mixtures at {asked['size']:,} {asked['unit']}: {metric_text(report)}")
    else:
        typer.echo(
            "\ncompared mixtures by OT distance alone, lower is nearer: there are no results to predict from"
        )
    _print_candidates(report, scored=scored)
    if report["cross_validation"]:
        typer.echo("\ncross-validation: mean absolute and root mean square error, rank correlation")
        _print_folds(report)
    if scored:
        found = projection_view(report)
        typer.echo(
            f"\nprojection: {found['kind_text']}; runs of {found['sizes_text']} {asked['unit']}, "
            f"exponent {found['exponent_text']}, noise gain {found['noise_gain_text']}"
        )
        if found["warning"]:
            typer.echo(f"warning: {found['warning']}")
    if report["methods"]:
        typer.echo("\nother methods" + (", judged by the same prediction" if scored else ""))
        _print_methods(report, scored=scored)


def _print_candidates(report: dict[str, Any], *, scored: bool) -> None:
    from mixwright.service.pages.projektor_view import candidate_rows

    rows = candidate_rows(report)
    columns = ("predicted", "95 % interval", "observed", "extrapolates") if scored else ()
    fields = ("mean_text", "interval_text", "observed_text") if scored else ()
    print_table(
        ("mixture", *columns, "transport"),
        [
            (
                row["name"],
                *(row[field] for field in fields),
                *(("yes" if row["extrapolates"] else "no",) if scored else ()),
                row["transport_text"],
            )
            for row in rows
        ],
    )
    typer.echo()
    print_table(("mixture", "weights"), [(row["name"], row["composition"].text(_SHARES)) for row in rows])


def _print_folds(report: dict[str, Any]) -> None:
    from mixwright.service.pages.projektor_view import fold_rows

    print_table(
        ("predictor", "size", "terms", "absolute", "square", "rank", "used", "note"),
        [
            (
                each["predictor"],
                each["size"],
                each["coefficients"],
                each["mean_absolute_error_text"],
                each["root_mean_square_error_text"],
                each["rank_correlation_text"],
                each["used_text"],
                each["note"] or "",
            )
            for each in fold_rows(report)
        ],
    )


def _print_methods(report: dict[str, Any], *, scored: bool) -> None:
    from mixwright.service.pages.projektor_view import method_rows

    columns, fields = (("predicted", "± sd"), ("mean_text", "sd_text")) if scored else ((), ())
    print_table(
        ("method", *columns, "weights"),
        [(row["method"], *(row[field] for field in fields), _choice(row)) for row in method_rows(report)],
    )


def _choice(row: dict[str, Any]) -> str:
    """What a method chose, and what is to be said of that."""
    chosen = row["composition"].text(_SHARES) if row["composition"] else "none"
    return f"{chosen}: {row['note']}" if row["note"] else chosen
