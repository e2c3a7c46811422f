"""The plots of an artifact: which there are, and their files."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from mixwright import __version__
from mixwright.jobs.pages import Page
from mixwright.schemas.catalog import PlotLinks
from mixwright.schemas.references import Kind
from mixwright.service.caching import cache_headers, not_modified
from mixwright.service.plots.drawing import MEDIA_TYPES, Theme
from mixwright.service.plots.registry import Plotted, cached_plot, plot_file, plots_of
from mixwright.service.problems import problem_responses
from mixwright.service.queries import Ref
from mixwright.service.state import ServicesDep

_INERT = {
    # An SVG that is opened by itself is a document: it may have its own styles and nothing else.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


PlotFile = Annotated[str, Path(description="name and format", examples=["map.png", "answer-nll.svg"])]
ThemeName = Annotated[Theme, Query(description="colours for a light or a dark page")]


def add_plots(router: APIRouter, path: str, kind: Kind, note: str) -> None:
    """Add ``GET path/{ref}/plots`` and ``GET path/{ref}/plots/{plot}``, of mixtures or evaluations.

    ``note`` says what has none.
    """
    article = "an" if kind[0] in "aei" else "a"

    def plots(services: ServicesDep, ref: Ref) -> Page[PlotLinks]:
        manifest = cast(Plotted, services.catalog.manifest(ref, kind))
        base = f"{path}/{manifest.ref}/plots"
        links = [
            PlotLinks(
                name=plot.name,
                title=plot.title,
                caption=plot.caption,
                svg=f"{base}/{plot.name}.svg",
                png=f"{base}/{plot.name}.png",
            )
            for plot in plots_of(manifest)
        ]
        return Page(items=links, next_cursor=None)

    def plot_of(
        request: Request,
        services: ServicesDep,
        ref: Ref,
        plot: PlotFile,
        theme: ThemeName = "light",
    ) -> Response:
        manifest = cast(Plotted, services.catalog.manifest(ref, kind))
        found, format = plot_file(manifest, plot)
        headers = {**cache_headers(ref, manifest.fingerprint, plot, theme, __version__), **_INERT}
        unchanged = not_modified(request, headers)
        if unchanged is not None:
            return unchanged
        content = cached_plot(services.store, manifest, found, format, theme)
        return Response(content, headers=headers, media_type=MEDIA_TYPES[format])

    router.get(
        f"{path}/{{ref}}/plots",
        name=f"list_{kind}_plots",
        summary=f"Plots of {article} {kind}",
        description=f"Which plots there are and where; none {note}.",
        responses=problem_responses(404),
    )(plots)
    router.get(
        f"{path}/{{ref}}/plots/{{plot}}",
        name=f"get_{kind}_plot",
        summary=f"A plot of {article} {kind}",
        description="The plot, drawn at the first request and kept. The suffix says the format, `.svg` or `.png`.",
        response_class=Response,
        responses={
            200: {
                "description": "the plot",
                "content": {media_type: {"schema": {"type": "string"}} for media_type in MEDIA_TYPES.values()},
            },
            304: {"description": "not changed"},
            **problem_responses(404),
        },
    )(plot_of)
