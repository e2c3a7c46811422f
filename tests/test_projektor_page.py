"""The report of a projektor mixture: plots, page and command line, against what they are made of."""

from __future__ import annotations

import html
import json
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.path import Path as MplPath
from typer.testing import CliRunner

from mixwright.cli import app as command_line
from mixwright.config import Settings
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.mixtures import MixtureComponent, Stage
from mixwright.schemas.references import Reference
from mixwright.service.app import create_app
from mixwright.service.pages.projektor_view import (
    Figures,
    candidate_rows,
    composition,
    fold_rows,
    projection_view,
    score_figures,
    source_colours,
)
from mixwright.service.plots.drawing import COLOURS, Theme, figure_bytes
from mixwright.service.plots.projektor import (
    candidates_figure,
    errors_figure,
    fit_figure,
    plots_of,
    slices_figure,
    surface_figure,
)
from mixwright.store import Store

EVIL = "<script>alert()</script>"
LONG = "common-crawl-of-the-year-2024-filtered-by-a-classifier"
SVG = "{http://www.w3.org/2000/svg}"
HEIGHT = np.sqrt(3) / 2
Report = dict[str, Any]
Tables = dict[str, pl.DataFrame]


# Reports


def names_of(k: int) -> list[str]:
    return ["wiki", LONG, "code", "books & notes", EVIL][:k] if k <= 5 else [f"source-{i:03d}" for i in range(k)]


def target(k: int) -> np.ndarray:
    weights = 1 / np.arange(1, k + 1)
    return weights / weights.sum()


class World:
    """Scores and distances that are known: the nearer to ``target``, the better."""

    def __init__(self, k: int, direction: str) -> None:
        self.names, self.target, self.direction = names_of(k), target(k), direction

    def transport(self, weights: np.ndarray) -> float:
        return float(0.3 + 0.5 * np.abs(weights - self.target).sum())

    def mean(self, weights: np.ndarray) -> float:
        error = 0.6 * float(((weights - self.target) ** 2).sum())
        return 1.83 + error if self.direction == "minimize" else 0.71 - error

    def weights(self, shares: np.ndarray) -> dict[str, float]:
        return dict(zip(self.names, shares.tolist(), strict=True))


def candidates(world: World, *, results: bool) -> list[Report]:
    k = len(world.names)
    shares = {
        "chosen": world.target,
        "uniform": np.full(k, 1 / k),
        "proportional": world.target[::-1],
        "best pilot": (world.target + 1 / k) / 2,
        "least transport": np.eye(k)[0],
    }
    found = []
    for number, (name, weights) in enumerate(shares.items()):
        mean, sd = world.mean(weights), 0.012 + 0.006 * number
        scores = {"mean": mean, "sd": sd, "low": mean - 1.96 * sd, "high": mean + 1.96 * sd}
        found.append(
            {
                "name": name,
                "weights": world.weights(weights),
                "transport": world.transport(weights),
                **(scores if results else dict.fromkeys(scores)),
                "extrapolates": name in ("proportional", "least transport") and results,
                "observed": mean + 0.017 if name == "best pilot" and results else None,
            }
        )
    return found


def runs(world: World) -> list[Report]:
    rng = np.random.default_rng(0)
    found = []
    for number, weights in enumerate(rng.dirichlet(np.ones(len(world.names)), 16)):
        for size, gap in ((20_000, 0.4), (80_000, 0.2)):
            sign = 1 if world.direction == "minimize" else -1
            score = world.mean(weights) + sign * gap + rng.normal(0, 0.01)
            found.append(
                {
                    "weights": world.weights(weights),
                    "size": size,
                    "score": score,
                    "transport": world.transport(weights),
                    "predicted": None if number == 15 else score + rng.normal(0, 0.03),
                }
            )
    return found


def cross_validation(k: int) -> list[Report]:
    errors = {"pq_ols": None, "linear": 0.11, "ot_gp": 0.031, "pq_ridge": 0.08, "rational_ot": 0.04, "mean": 0.2}
    return [
        {
            "predictor": name,
            "coefficients": 4 * k if name == "pq_ols" else 2,
            "size": size,
            "mean_absolute_error": error if error is None else error * size / 80_000 + 0.001,
            "root_mean_square_error": error if error is None else 1.3 * error,
            "rank_correlation": error if error is None else 0.95 - error,
            "weight": {"ot_gp": 0.625, "rational_ot": 0.375}.get(name),
            "note": f"needs more runs than {EVIL}" if error is None else None,
        }
        for size in (20_000, 80_000)
        for name, error in errors.items()
    ]


def methods(world: World, *, results: bool) -> list[Report]:
    k = len(world.names)
    nearest = {"method": "least transport", "weights": world.weights(np.eye(k)[0]), "note": None}
    mean = world.mean(np.eye(k)[0])
    none: Report = {"weights": None, "mean": None, "sd": None}
    return [
        {"method": "mixmin", **none, "note": "needs single-source runs with likelihoods"},
        {
            "method": "regmix",
            **(none | {"note": "needs runs"}),
            **({"weights": world.weights(world.target), "mean": 1.9, "sd": 0.02, "note": None} if results else {}),
        },
        {**nearest, "mean": mean if results else None, "sd": 0.03 if results else None},
    ]


def report_for(k: int, *, results: bool = True, direction: str = "minimize") -> Report:
    world = World(k, direction)
    return {
        "settings": {
            "predictor": "auto",
            "projection": "power_shared",
            "label_cost": "none",
            "encoder": "all-minilm-l6-v2",
            "validation": "val@1",
            "size": 1_000_000,
            "unit": "tokens",
        },
        "metric": {
            "name": "bits_per_byte" if direction == "minimize" else "accuracy",
            "direction": direction,
            "low": 0.0,
            "high": None,
        }
        if results
        else None,
        "sources": [
            {
                "name": name,
                "pilot_rows": 1000,
                "declared_size": 123_456 if number else None,
                "largest_share": 0.8 if number == 1 else 1.0,
                "transport": world.transport(np.eye(k)[number]),
            }
            for number, name in enumerate(world.names)
        ],
        "candidates": candidates(world, results=results),
        "runs": runs(world) if results else [],
        "cross_validation": cross_validation(k) if results else [],
        "projection": {"kind": "power_shared", "sizes": [20_000, 80_000], "exponent": 0.31, "noise_gain": 1.42},
        "methods": methods(world, results=results),
    }


def tables_for(report: Report) -> Tables:
    k = len(report["sources"])
    world = World(k, report["metric"]["direction"] if report["metric"] else "minimize")
    tables = {}
    if k == 3:
        grid = np.asarray([(i, j, 40 - i - j) for i in range(41) for j in range(41 - i)]) / 40
        columns: dict[str, Any] = {f"weight:{name}": grid[:, i] for i, name in enumerate(world.names)}
        if report["metric"]:
            columns |= {"mean": [world.mean(w) for w in grid], "sd": [0.02] * len(grid)}
        tables["surface"] = pl.DataFrame({**columns, "transport": [world.transport(w) for w in grid]})
    if k > 1:
        tables["slices"] = pl.concat([_slice(world, report, number) for number in range(k)])
    return tables


def _slice(world: World, report: Report, number: int) -> pl.DataFrame:
    shares = np.linspace(0, report["sources"][number]["largest_share"], 41)
    others = np.where(np.arange(len(world.names)) == number, 0, world.target)
    mixtures = others / others.sum() * (1 - shares[:, None])
    mixtures[:, number] += shares
    means = np.asarray([world.mean(weights) for weights in mixtures])
    columns: dict[str, Any] = {"source": [world.names[number]] * 41, "share": shares}
    if report["metric"]:
        columns |= {"mean": means, "low": means - 0.03 - 0.1 * shares, "high": means + 0.03 + 0.1 * shares}
    return pl.DataFrame({**columns, "transport": [world.transport(weights) for weights in mixtures]})


def publish(store: Store, name: str, report: Report) -> MixtureManifest:
    """A mixture with that report and its tables; the components are those of the chosen mixture."""
    served = [(source, weight) for source, weight in report["candidates"][0]["weights"].items() if weight > 0]
    components = [
        MixtureComponent(
            name=source,
            source=f"{source}@1",
            fingerprint="0",
            weight=weight,
            target_weight=weight,
            n_rows=10,
            n_tokens=1000,
            epochs=1.0,
            n_selected=10,
            passes=1,
            n_remainder=0,
        )
        for source, weight in served
    ]
    n, fingerprint = len(components), f"{name:0<64}"
    rows, tokens = 10 * n, 1000 * n
    stage = Stage(name="main", tagged=False, n_rows=rows, n_tokens=tokens, starts=[0] * n, counts=[10] * n)
    reference = Reference(name, 1, "mixture")
    with store.stage("mixture", reference, fingerprint) as staging:
        files = []
        for table, rows_of in tables_for(report).items():
            rows_of.write_parquet(staging.path / f"{table}.parquet")
            files.append(staging.entry(f"{table}.parquet", rows_of.height))
        draft = MixtureManifest(
            name=name,
            version=1,
            fingerprint=fingerprint,
            files=files,
            created_at=datetime(2025, 1, 1, tzinfo=UTC),
            selector="projektor",
            seed=0,
            budget={"tokens": 1_000_000},
            n_rows=rows,
            n_tokens=tokens,
            tokenizer="words",
            components=components,
            stages=[stage],
            report=report,
        )
        return store.publish(staging, draft)


REPORTS = {
    "one": report_for(1),
    "three": report_for(3),
    "five": report_for(5, direction="maximize"),
    "hundred": report_for(100),
    "one-bare": report_for(1, results=False),
    "three-bare": report_for(3, results=False),
    "hundred-bare": report_for(100, results=False),
}
PLOTS = {
    "one": ("candidates", "fit", "errors"),
    "three": ("surface", "candidates", "slices", "fit", "errors"),
    "five": ("candidates", "slices", "fit", "errors"),
    "hundred": ("candidates", "slices", "fit", "errors"),
    "one-bare": ("candidates",),
    "three-bare": ("surface", "candidates", "slices"),
    "hundred-bare": ("candidates", "slices"),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One mixture for each of REPORTS; nothing in it is changed by a test."""
    store = Store(tmp_path_factory.mktemp("projektor") / "home")
    for name, report in REPORTS.items():
        publish(store, name, report)
    return store


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=store.home), run_worker=False)) as client:
        yield client


# Figures


def on_paper(weights: Mapping[str, float], names: list[str]) -> np.ndarray:
    """Where a mixture lies: the first source at the lower left, the second at the lower right, the third up."""
    _, right, top = (weights[name] for name in names)
    return np.asarray([right + top / 2, top * HEIGHT])


def marked(figure: Figure, label: str) -> np.ndarray:
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == label)
    return np.asarray(line.get_xydata())


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_marks_of_the_surface(theme: Theme) -> None:
    report = REPORTS["three"]
    names = names_of(3)
    figure = surface_figure(report, tables_for(report)["surface"], theme)
    np.testing.assert_allclose(
        marked(figure, "chosen"), [on_paper(report["candidates"][0]["weights"], names)], atol=1e-12
    )
    np.testing.assert_allclose(marked(figure, "uniform"), [[0.5, HEIGHT / 3]], atol=1e-12)
    expected = {tuple(on_paper(run["weights"], names).round(9)) for run in report["runs"]}
    assert {tuple(point.round(9)) for point in marked(figure, "runs")} == expected
    # Along the dashed line the second source has the most that it can give.
    np.testing.assert_allclose(
        marked(figure, "most a source can give"), [[0.8, 0], [0.9, 0.2 * HEIGHT]], atol=1e-12
    )
    cut = "common-crawl-of-the-yea…"
    assert [text for text in texts(figure) if not re.fullmatch(r"[\d.]+", text)] == ["wiki", cut, "code"]
    assert figure.axes[1].get_ylabel() == "bits_per_byte\nlower is better"
    assert to_hex(figure.get_facecolor()) == COLOURS[theme].paper


def inside(path: MplPath, point: np.ndarray) -> bool:
    """Whether an odd number of the path's rings surround the point: the others are holes."""
    return sum(MplPath(ring).contains_point(point) for ring in path.to_polygons()) % 2 == 1


@pytest.mark.parametrize(
    ("name", "column", "flipped"),
    [("three", "mean", True), ("three-bare", "transport", True), ("up", "mean", False)],
)
def test_colours_of_the_surface_are_the_values(name: str, column: str, flipped: bool) -> None:
    report = REPORTS.get(name) or report_for(3, direction="maximize")
    table = tables_for(report)["surface"]
    figure = surface_figure(report, table, "light")
    filled, lines = figure.axes[0].collections
    assert filled.get_cmap().name == ("viridis_r" if flipped else "viridis")
    weights = table.select([f"weight:{source}" for source in names_of(3)])
    assert filled.levels[0] <= table[column].min()
    assert filled.levels[-1] >= table[column].max()
    checked = 0
    for row, value in zip(weights.iter_rows(), table[column], strict=True):
        # On a line the layer is a matter of rounding, at the edge so is what is inside.
        if min(row) > 0.02 and np.abs(filled.levels - value).min() > 0.15 * np.diff(filled.levels)[0]:
            point = on_paper(dict(zip(names_of(3), row, strict=True)), names_of(3))
            layers = [i for i, path in enumerate(filled.get_paths()) if inside(path, point)]
            assert layers == [int(np.searchsorted(filled.levels, value)) - 1]
            checked += 1
    assert checked > 300
    numbers = [float(text) for text in texts(figure) if re.fullmatch(r"[\d.]+", text)]
    assert len(numbers) >= 3
    assert {round(number, 9) for number in numbers} <= {round(level, 9) for level in lines.levels.tolist()}


@pytest.mark.parametrize("value", [0.0, 1.7, -3.0])
def test_a_flat_surface(value: float) -> None:
    report = REPORTS["three"]
    flat = tables_for(report)["surface"].with_columns(mean=pl.lit(value))
    figure = surface_figure(report, flat, "dark")
    assert texts(figure)[-3] == "wiki"
    assert figure_bytes(figure, "png")[:4] == b"\x89PNG"


def test_slices_are_what_the_table_says() -> None:
    report = REPORTS["five"]
    table = tables_for(report)["slices"]
    figure = slices_figure(report, table, "light")
    shown = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in shown] == [
        "wiki",
        "common-crawl-of-the-year-…",
        "code",
        "books & notes",
        EVIL,
    ]
    for axes, (name, share) in zip(shown, report["candidates"][0]["weights"].items(), strict=True):
        rows = table.filter(pl.col("source") == name)
        curve, _, star = axes.lines
        np.testing.assert_allclose(curve.get_xdata(), 100 * rows["share"].to_numpy())
        np.testing.assert_allclose(curve.get_ydata(), rows["mean"])
        ((x, y),) = star.get_xydata()
        assert x == pytest.approx(100 * share)
        assert y == pytest.approx(report["candidates"][0]["mean"], abs=2e-3)
        (band,) = axes.collections
        (path,) = band.get_paths()
        assert path.vertices[:, 1].min() == pytest.approx(rows["low"].min())
        assert path.vertices[:, 1].max() == pytest.approx(rows["high"].max())
    assert figure.get_supylabel() == "accuracy\nhigher is better"


def test_slices_of_a_hundred_sources_without_results() -> None:
    report = REPORTS["hundred-bare"]
    figure = slices_figure(report, tables_for(report)["slices"], "dark")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"source-{i:03d}" for i in range(12)]
    assert not any(axes.collections for axes in figure.axes)
    world = World(100, "minimize")
    (end,) = figure.axes[2].lines[0].get_ydata()[-1:]
    assert end == pytest.approx(world.transport(np.eye(100)[2]))
    assert figure.get_supylabel() == "OT distance\nlower is nearer"


def test_the_fit_has_every_run_that_was_predicted() -> None:
    report = REPORTS["three"]
    figure = fit_figure(report, "light")
    diagonal, *groups = figure.axes[0].lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert [line.get_label() for line in groups] == ["20,000 tokens", "80,000 tokens"]
    assert len({line.get_color() for line in groups}) == 2
    for line, size in zip(groups, (20_000, 80_000), strict=True):
        here = [run for run in report["runs"] if run["size"] == size and run["predicted"] is not None]
        assert len(here) == 15
        np.testing.assert_allclose(line.get_xydata(), [(run["score"], run["predicted"]) for run in here])
    low, high = figure.axes[0].get_xlim()
    assert (low, high) == figure.axes[0].get_ylim()
    assert low < min(run["score"] for run in report["runs"])


def test_bars_of_the_errors() -> None:
    figure = errors_figure(REPORTS["three"], "dark")
    (axes,) = figure.axes
    (bars,) = axes.containers
    np.testing.assert_allclose([bar.get_width() for bar in bars], [0.032, 0.041, 0.081, 0.111, 0.201])
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "ot_gp",
        "rational_ot",
        "pq_ridge",
        "linear",
        "mean",
    ]
    assert texts(figure) == ["0.0320, used 62.5%", "0.0410, used 37.5%", "0.0810", "0.1110", "0.2010"]
    used = [to_hex(bar.get_facecolor()) == COLOURS["dark"].second for bar in bars]
    assert used == [True, True, False, False, False]
    assert "runs of 80,000 tokens" in axes.get_title(loc="left")


def test_dots_of_the_compared_mixtures() -> None:
    report = REPORTS["three"]
    figure = candidates_figure(report, "light")
    (axes,) = figure.axes
    lines = {marker: [line for line in axes.lines if line.get_marker() == marker] for marker in ("None", "o", "x")}
    for y, (each, interval, dot) in enumerate(zip(report["candidates"], lines["None"], lines["o"], strict=True)):
        np.testing.assert_allclose(interval.get_xydata(), [(each["low"], y), (each["high"], y)])
        np.testing.assert_allclose(dot.get_xydata(), [(each["mean"], y)])
        assert (dot.get_markerfacecolor() == COLOURS["light"].paper) == each["extrapolates"]
    ((x, y),) = lines["x"][0].get_xydata()
    assert (x, y) == (report["candidates"][3]["observed"], 3)
    assert texts(figure) == [f"{each['mean']:.3f}" for each in report["candidates"]]
    bare = candidates_figure(REPORTS["three-bare"], "light").axes[0]
    np.testing.assert_allclose(
        [line.get_xdata()[0] for line in bare.lines],
        [each["transport"] for each in REPORTS["three-bare"]["candidates"]],
    )
    assert bare.get_xlabel() == "OT distance, lower is nearer"


@pytest.mark.parametrize(
    "draw",
    [
        lambda report, tables: surface_figure(report, tables["surface"], "light"),
        lambda report, tables: slices_figure(report, tables["slices"], "light"),
        lambda report, tables: candidates_figure(report, "dark"),
        lambda report, tables: fit_figure(report, "dark"),
        lambda report, tables: errors_figure(report, "dark"),
    ],
)
def test_the_same_bytes_twice(draw: Callable[[Report, Tables], Figure]) -> None:
    report = REPORTS["three"]
    tables = tables_for(report)
    for format in ("svg", "png"):
        first, second = (figure_bytes(draw(report, tables), format) for _ in range(2))  # type: ignore[arg-type]
        assert first == second


# Numbers as text


@pytest.mark.parametrize(
    ("mean", "sd", "text"),
    [
        (1.93, 0.04, "1.930"),
        (1.93, 0.0004, "1.93000"),
        (1.93, 1e-9, "1.930000"),
        (1.93, 50.0, "1.93"),
        (58.2, 1.4, "58.2"),
        (0.0, 0.0, "0"),
    ],
)
def test_decimals_follow_the_standard_deviation(mean: float, sd: float, text: str) -> None:
    candidate = {"mean": mean, "sd": sd}
    figures = score_figures({"candidates": [candidate], "methods": [], "runs": []})
    assert figures.text(mean) == text
    assert figures.text(None) == "–"


def test_intervals_as_text() -> None:
    assert Figures(1.93).interval(1.85, 2.006) == "1.85 to 2.01"
    assert Figures(1.93).interval(None, None) == "–"
    (row, *_) = candidate_rows(REPORTS["three"])
    assert row["interval_text"] == f"{row['low']:.3f} to {row['high']:.3f}"


def test_compositions_name_the_largest_and_count_the_others() -> None:
    report = REPORTS["hundred"]
    colours = source_colours(report)
    assert sorted(colours.values()) == [0, 1, 2, 3, 4, *[5] * 95]
    found = composition(report["candidates"][0]["weights"], colours)
    shares = target(100)
    assert [part.source for part in found.parts] == [f"source-{i:03d}" for i in range(12)]
    np.testing.assert_allclose([part.share for part in found.parts], shares[:12])
    assert found.others() == f"and 88 more with {shares[12:].sum():.1%}"
    assert found.text(2) == f"source-000 {shares[0]:.1%}, source-001 {shares[1]:.1%} and 98 more with " + (
        f"{shares[2:].sum():.1%}"
    )
    assert sum(segment.width for segment in found.bar) == pytest.approx(100)
    for before, after in zip(found.bar, found.bar[1:], strict=False):
        assert before.start + before.width == pytest.approx(after.start)
    corner = composition({"source-042": 1.0, "source-001": 0.0}, colours)
    assert (corner.text(), corner.others()) == ("source-042 100.0%", "")
    assert [(segment.label, segment.width) for segment in corner.bar] == [("source-042", 100)]


@pytest.mark.parametrize(("gain", "warned"), [(None, False), (3.0, False), (7.44, True)])
def test_noise_gain_is_warned_of(gain: float | None, warned: bool) -> None:
    report = {**REPORTS["three"], "projection": {**REPORTS["three"]["projection"], "noise_gain": gain}}
    found = projection_view(report)
    assert bool(found["warning"]) == warned
    if warned:
        assert "multiplies chance differences between the runs by 7.44" in found["warning"]
        assert "nearer to 1,000,000 tokens" in found["warning"]


def test_one_predictor_that_was_asked_for_is_the_used_one() -> None:
    report = json.loads(json.dumps(REPORTS["three"]))
    report["settings"]["predictor"] = "pq_ridge"
    for each in report["cross_validation"]:
        each["weight"] = None
    rows = fold_rows(report)
    assert [row["predictor"] for row in rows[:6]] == [
        "ot_gp",
        "rational_ot",
        "pq_ridge",
        "linear",
        "mean",
        "pq_ols",
    ]
    assert [row["used_text"] for row in rows[:6]] == ["–", "–", "yes", "–", "–", "–"]
    assert [row["size"] for row in rows] == [80_000] * 6 + [20_000] * 6
    assert rows[5]["mean_absolute_error_text"] == "–"
    assert "0.0810, used" in texts(errors_figure(report, "light"))


# Over REST


@pytest.mark.parametrize("name", PLOTS)
def test_which_plots_there_are(client: TestClient, name: str) -> None:
    listed = client.get(f"/v1/mixtures/{name}/plots").json()["items"]
    assert tuple(each["name"] for each in listed) == PLOTS[name]
    captions = {each["name"]: each["caption"] for each in listed}
    assert ("Sources with smaller shares are left out: 88." in captions.get("slices", "")) == ("hundred" in name)
    assert ("Predictors without a figure are left out: 1;" in captions.get("errors", "")) == (
        "errors" in PLOTS[name]
    )
    assert ("Without results" in captions["candidates"]) == name.endswith("bare")
    if "surface" not in PLOTS[name]:
        answer = client.get(f"/v1/mixtures/{name}/plots/surface.svg")
        assert answer.status_code == 404
        assert "there are candidates.svg" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("name", "plot"), [(name, plot) for name in ("three", "three-bare") for plot in PLOTS[name]]
)
def test_plots_over_rest(client: TestClient, name: str, plot: str) -> None:
    address = f"/v1/mixtures/{name}@1/plots/{plot}"
    for theme in ("light", "dark"):
        svg, png = (client.get(f"{address}.{suffix}", params={"theme": theme}) for suffix in ("svg", "png"))
        assert png.content[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">I", png.content[16:20]) == (1440,)
        root = ET.fromstring(svg.text)
        assert root.get("width") == "518.4pt"
        assert COLOURS[theme].paper in svg.text  # type: ignore[index]  # a theme
        shown = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
        named = {"surface": "code", "slices": "wiki", "candidates": "chosen", "fit": "20,000 tokens"}
        assert named.get(plot, "ot_gp") in shown


@pytest.mark.parametrize("name", ["one", "five", "hundred"])
def test_plots_of_one_and_of_many_sources(client: TestClient, name: str) -> None:
    for plot in PLOTS[name]:
        svg = client.get(f"/v1/mixtures/{name}/plots/{plot}.svg")
        assert svg.status_code == 200
        assert EVIL not in svg.text
    if name == "five":
        slices = client.get("/v1/mixtures/five/plots/slices.svg").text
        assert html.escape(EVIL) in slices
        assert "books &amp; notes" in slices


def test_a_report_that_is_empty(store: Store) -> None:
    manifest = store.manifest("three", "mixture").model_copy(update={"report": {}})
    assert isinstance(manifest, MixtureManifest)
    assert plots_of(manifest) == ()


# The page


def cells(page: str, heading: str) -> list[list[str]]:
    """Texts of the cells of the table that a section scrolls under ``heading``, row by row."""
    found = re.search(rf'aria-label="{re.escape(heading)}"[^>]*><table.*?</table>', page, re.DOTALL)
    assert found is not None, heading
    rows = re.findall(r"<tr>(.*?)</tr>", found[0], re.DOTALL)
    return [
        [
            html.unescape(
                re.sub(r"\s+", " ", re.sub(r"<svg.*?</svg>|<[^>]+>", " ", cell, flags=re.DOTALL))
            ).strip()
            for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in rows
    ]


@pytest.mark.parametrize("name", REPORTS)
def test_every_page_is_escaped_and_inert(client: TestClient, name: str) -> None:
    answer = client.get(f"/mixtures/{name}")
    page = answer.text
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert EVIL not in page
    assert " style=" not in page
    assert re.findall("<script[^>]*>", page) == re.findall('<script src="/static/[a-z]+.js" defer="">', page)
    assert "<style" not in page
    assert page.count("<img") == page.count("<source") == len(PLOTS[name])
    assert page.count("<th") - page.count("<thead") == len(re.findall(r'<th scope="(?:col|row)"', page))
    assert all(label for label in re.findall(r'(?:alt|aria-label)="([^"]*)"', page))
    named = re.findall(r'aria-labelledby="([^"]+)"', page)
    assert named == [identity for identity in re.findall(r'\bid="([^"]+)"', page) if identity in named]
    ET.fromstring(re.sub(r"<!doctype[^>]*>|<(?:meta|link|img|source)[^>]*>", "", page))
    for address in re.findall(r'href="(/[^"]+)"', page):
        if not any(part in address for part in ("/plots/", "/rows", "/export?", "/sample")):
            assert client.get(address).status_code == 200, address


def test_the_page_says_what_the_report_says(client: TestClient) -> None:
    page, report = client.get("/mixtures/five").text, REPORTS["five"]
    assert "<dt>Predicted</dt><dd>accuracy, higher is better</dd>" in page
    assert "<dt>For</dt><dd>1,000,000 tokens</dd>" in page
    head, *rows = cells(page, "Compared mixtures")
    assert head[2:] == ["Predicted", "95 % interval", "Observed", "Extrapolates", "OT distance"]
    for row, each in zip(rows, report["candidates"], strict=True):
        assert row[0] == each["name"]
        for source, share in each["weights"].items():
            assert (f"{source} {share:.1%}" in row[1]) == (share > 0)
        assert row[2:4] == [f"{each['mean']:.3f}", f"{each['low']:.3f} to {each['high']:.3f}"]
        assert row[4] == (f"{each['observed']:.3f}" if each["observed"] else "–")
        assert row[5] == ("yes, outside the runs" if each["extrapolates"] else "no, between the runs")
        assert float(row[6]) == pytest.approx(each["transport"], rel=5e-3)
    _, *folds = cells(page, "Cross-validation")
    assert folds[0] == ["ot_gp", "80,000", "2", "0.0320", "0.0403", "0.92", "62.5%", ""]
    assert folds[5] == ["pq_ols", "80,000", "20", "–", "–", "–", "–", f"needs more runs than {EVIL}"]
    _, mixmin, regmix, nearest = cells(page, "Other methods side by side")
    assert mixmin == ["mixmin", "–", "–", "–", "needs single-source runs with likelihoods"]
    assert regmix[2:] == ["1.900", "0.020", ""]
    assert nearest[1] == "wiki 100.0%"
    assert "<dt>Noise gain</dt><dd>1.42</dd>" in page
    assert "multiplies chance" not in page
    _, first, second, *_ = cells(page, "Sources")
    assert first == ["wiki", "43.8%", "100.0%", f"{report['sources'][0]['transport']:.3f}", "1,000", "–"]
    assert second[2:] == ["80.0%", f"{report['sources'][1]['transport']:.2f}", "1,000", "123,456"]
    assert re.search(r"<details><summary>32 runs</summary>\s*<div", page)
    _, *shown = cells(page, "Runs")
    assert [row[0] for row in shown] == ["80,000"] * 16 + ["20,000"] * 16
    assert [row[2] for row in shown[:16]] == [f"{run['score']:.3f}" for run in report["runs"][1::2]]
    assert shown[15][3] == "–"


def test_bars_of_the_page_are_the_weights(client: TestClient) -> None:
    page, report = client.get("/mixtures/three").text, REPORTS["three"]
    bars = re.findall(r'<svg viewBox="0 0 100 8".*?</svg>', page, re.DOTALL)
    for bar, each in zip(bars, report["candidates"], strict=False):
        rects = ET.fromstring(bar).findall("rect")
        widths = [float(rect.get("width", "nan")) for rect in rects]
        drawn = dict(zip([rect.findtext("title") for rect in rects], widths, strict=True))
        starts = [float(rect.get("x", "nan")) for rect in rects]
        np.testing.assert_allclose(starts, np.cumsum([0, *widths[:-1]]), atol=2e-3)
        wanted = {f"{source} {share:.1%}": 100 * share for source, share in each["weights"].items() if share}
        assert drawn == pytest.approx(wanted, abs=1e-3)
    assert len(bars) == 5 + 2 + 32


def test_the_page_of_a_hundred_sources(client: TestClient) -> None:
    page = client.get("/mixtures/hundred").text
    shares = target(100)
    _, chosen, *_ = cells(page, "Compared mixtures")
    assert chosen[1].endswith(f"source-011 {shares[11]:.1%} and 88 more with {shares[12:].sum():.1%}")
    assert "source-012" not in chosen[1]
    assert re.search(r"<details><summary>100 sources</summary>\s*<div", page)
    assert len(cells(page, "Sources")) == 101
    assert "Sources with smaller shares are left out: 88." in page


@pytest.mark.parametrize("name", ["one-bare", "three-bare", "hundred-bare"])
def test_the_page_without_results(client: TestClient, name: str) -> None:
    page, report = client.get(f"/mixtures/{name}").text, REPORTS[name]
    assert "No scores are predicted" in page
    head, *rows = cells(page, "Compared mixtures")
    assert head == ["Mixture", "Weights", "OT distance"]
    for row, each in zip(rows, report["candidates"], strict=True):
        assert float(row[2]) == pytest.approx(each["transport"], rel=5e-3)
    for absent in ('id="folds"', 'id="projection"', 'id="runs"', "95 % interval", "Standard deviation"):
        assert absent not in page
    assert ["regmix", "–", "needs runs"] in cells(page, "Other methods side by side")


def test_a_projection_that_multiplies_noise_is_warned_of_on_the_page(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    projection = {"kind": "log_linear", "sizes": [20_000, 30_000], "exponent": None, "noise_gain": 7.4}
    publish(store, "noisy", {**report_for(3), "projection": projection})
    with TestClient(create_app(Settings(home=store.home), run_worker=False)) as client:
        page = client.get("/mixtures/noisy").text
    assert '<p class="caution">The projection multiplies chance differences between the runs by 7.40' in page
    assert "linear in the logarithm of the size" in page
    assert "<dt>Exponent</dt><dd>–</dd>" in page
    assert "warning: The projection multiplies chance" in run(store, "noisy").output


# The command line


def run(store: Store, *arguments: str) -> Any:
    return CliRunner().invoke(
        command_line, ["mixture", "report", *arguments], env={"MIXWRIGHT_HOME": str(store.home), "COLUMNS": "120"}
    )


def test_the_report_on_a_terminal(store: Store) -> None:
    result = run(store, "three")
    assert result.exit_code == 0, result.output
    assert "compared mixtures at 1,000,000 tokens: bits_per_byte, lower is better" in result.output
    for each in REPORTS["three"]["candidates"]:
        interval = f"{each['low']:.3f} to {each['high']:.3f}"
        observed = f"{each['observed']:.3f}" if each["observed"] else "–"
        extrapolates = "yes" if each["extrapolates"] else "no"
        pattern = rf"^{each['name']} +{each['mean']:.3f} +{interval} +{observed} +{extrapolates} +[\d.]+ *$"
        assert re.search(pattern, result.output, re.MULTILINE), pattern
    assert re.search(rf"^chosen +wiki 54.5%, {LONG} 27.3%, code 18.2% *$", result.output, re.MULTILINE)
    assert re.search(r"^ot_gp +80,000 +2 +0.0320 +0.0403 +0.92 +62.5%", result.output, re.MULTILINE)
    assert "one exponent for all mixtures; runs of 20,000, 80,000 tokens, exponent 0.310, noise gain 1.42" in (
        result.output
    )
    assert re.search(r"^regmix +1.900 +0.020 +wiki 54.5%", result.output, re.MULTILINE)
    assert "none: needs single-source runs with likelihoods" in result.output
    assert json.loads(run(store, "three", "--json").output) == REPORTS["three"]
    hundred = run(store, "hundred").output
    assert f"and 94 more with {target(100)[6:].sum():.1%}" in re.sub(r"\s+", " ", hundred)


def test_the_report_without_results_on_a_terminal(store: Store) -> None:
    output = run(store, "three-bare").output
    assert "by OT distance alone, lower is nearer: there are no results to predict from" in output
    for each in REPORTS["three-bare"]["candidates"]:
        assert re.search(rf"^{each['name']} +{each['transport']:.3f} *$", output, re.MULTILINE)
    assert "cross-validation" not in output
    assert "projection" not in output
    assert re.search(r"^regmix +none: needs runs *$", output, re.MULTILINE)


def test_the_report_as_files(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "report"
    result = run(store, "three", "--out", str(out), "--json")
    files = {"report.html", "report.json"} | {
        f"{plot}.{suffix}" for plot in PLOTS["three"] for suffix in ("svg", "png")
    }
    assert set(json.loads(result.output)["files"]) == files == {path.name for path in out.iterdir()}
    assert json.loads((out / "report.json").read_text()) == REPORTS["three"]
    page = (out / "report.html").read_text()
    assert EVIL not in page
    named = re.findall(r'(?:src|href|srcset)="([^"]+)"', page)
    embedded = [address for address in named if address.startswith("data:image/svg+xml;base64,")]
    assert len(embedded) == 2 * len(PLOTS["three"])
    assert {address for address in named if address not in embedded} == files - {"report.html"}
