"""``mixwright datastore evaluate`` and ``scale``: what a datastore is worth, at one size or at many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import TypeAdapter

from mixwright.cli.common import Home, Json, open_store, run, unescaped, validate
from mixwright.cli.model_flags import model_flags
from mixwright.cli.output import print_json, print_table
from mixwright.cli.select import with_flags
from mixwright.schemas.evaluations import EvaluateReport, EvaluateRequest, ScaleReport, ScaleRequest, ScalingMetric
from mixwright.schemas.manifests import EvaluationManifest
from mixwright.store import Store

_Datastore = Annotated[str, typer.Argument(metavar="NAME", help="Datastore, name or name@version.")]
_Out = Annotated[
    Path | None,
    typer.Option(help="Folder to make with page, JSON and plots; it must not exist or be empty."),
]
_Documents = Annotated[int, typer.Option("--k", "-k", help="Documents of recall@k.")]
_REPEATED = ("metrics", "probabilities")
_METRICS = ", ".join(get_args(ScalingMetric))


def _flags(request: type[EvaluateRequest | ScaleRequest], more: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """The options of a command: those of its request, and where to put the result."""
    return {
        "datastore": (_Datastore, ...),
        **model_flags(request, without=("kind", "datastore", "k", *_REPEATED)),
        "k": (_Documents, request.model_fields["k"].default),
        **more,
        "out": (_Out, None),
        "home": (Home, None),
        "json": (Json, False),
    }


def _evaluate(out: Path | None, home: Path | None, json: bool, **flags: Any) -> None:
    from mixwright.jobs.datastores.evaluate import run_evaluate

    _publish(EvaluateRequest, run_evaluate, flags, out, home, json=json)


def _scale(
    metric: list[str],
    probability: list[float],
    out: Path | None,
    home: Path | None,
    json: bool,
    **flags: Any,
) -> None:
    from mixwright.jobs.datastores.scale import run_scale

    flags["metrics"] = metric or None
    if probability:
        flags["probabilities"] = probability
    _publish(ScaleRequest, run_scale, flags, out, home, json=json)


def _publish(
    request_type: type[EvaluateRequest] | type[ScaleRequest],
    job: Callable[..., EvaluationManifest],
    flags: dict[str, Any],
    out: Path | None,
    home: Path | None,
    *,
    json: bool,
) -> None:
    settings, store = open_store(home)
    flags["workers"] = flags["workers"] or settings.workers
    request = validate(TypeAdapter(request_type), {name: unescaped(value) for name, value in flags.items()})
    manifest = run(settings, store, job, request, json=json)
    files = _write(store, manifest, out) if out is not None else []
    if json:
        print_json(
            {"ref": manifest.ref, "fingerprint": manifest.fingerprint, **manifest.report.model_dump(mode="json")}
        )
        return
    typer.echo(f"{manifest.ref}: datastore {manifest.datastore}")
    if isinstance(manifest.report, ScaleReport):
        _print_curves(manifest.report)
    else:
        _print_scores(manifest.report)
    if out is not None:
        typer.echo(f"\n{len(files)} files under {out}: open {out / 'index.html'}")


def _write(store: Store, manifest: EvaluationManifest, out: Path) -> list[str]:
    from mixwright.service.report_files import write_evaluation

    return write_evaluation(store, manifest, out)


def _print_scores(report: EvaluateReport) -> None:
    from mixwright.service.pages.evaluation_view import (
        LANGUAGE_NAMES,
        interval,
        number,
        retrieval_rows,
        targets_text,
    )

    rows = [(row.name, row.value, row.interval) for row in retrieval_rows(report)]
    for each in report.language:
        name = LANGUAGE_NAMES[each.metric]
        for label, value in (("model alone", each.alone), (f"with {each.passages} passages", each.retrieved)):
            rows.append((f"{name}: {label}", number(value.value), interval(value)))
        rows.append((f"{name}: change, nats a token", number(each.change.value), interval(each.change)))
    print_table(("score", "mean", "95 % interval"), rows)
    for each in report.language:
        typer.echo(f"{LANGUAGE_NAMES[each.metric]}: {targets_text(each.targets)}")
    if report.speed is not None:
        typer.echo(f"{report.speed.queries_per_second:,.0f} queries a second")


def _print_curves(report: ScaleReport) -> None:
    from mixwright.service.pages.evaluation_view import metric_name, point_rows

    for curve in report.curves:
        typer.echo(f"\n{metric_name(curve.metric, curve.k)}, {curve.n_units:,} {_unit(curve.targets)}")
        columns: tuple[str, ...] = ("share", "passages", "tokens", "mean", "95 % interval")
        columns += ("change, nats a token",) if curve.baseline is not None else ()
        rows = [
            (row.share, row.passages, row.tokens, row.value, row.interval, row.change) for row in point_rows(curve)
        ]
        print_table(columns, [row[: len(columns)] for row in rows])


def _unit(targets: Any) -> str:
    return f"{targets.unit}s" if targets is not None else "queries"


evaluate = with_flags(
    _evaluate,
    _flags(EvaluateRequest, {}),
    "Score a datastore: recall, nDCG and MRR, and what its passages are worth to a language model.",
)
scale = with_flags(
    _scale,
    _flags(
        ScaleRequest,
        {
            "metric": (
                Annotated[list[str], typer.Option(help=f"{_METRICS}; repeat for more; default: all that can be.")],
                [],
            ),
            "probability": (
                Annotated[
                    list[float],
                    typer.Option(help="Share of the store; repeat for more; default .01 .05 .1 .25 .5 .75 1."),
                ],
                [],
            ),
        },
    ),
    "Score a datastore at many sizes, from one deep search of the whole. Resumes where it was stopped.",
)
