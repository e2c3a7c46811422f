"""A mixture's report: plots, page, REST and command line, against the numbers and tables of a real selection."""

from __future__ import annotations

import json
import re
import struct
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from matplotlib.figure import Figure
from support import document_table
from typer.testing import CliRunner

from mixwright.cli import app as command_line
from mixwright.config import Settings
from mixwright.errors import ConflictError, DataError, NotFoundError
from mixwright.indexes.vectors import ArrayVectors
from mixwright.jobs.select import run_select
from mixwright.progress import NoProgress
from mixwright.schemas.manifests import MixtureManifest
from mixwright.selectors.pool import Pool
from mixwright.selectors.requests import SelectRequest
from mixwright.service.app import create_app
from mixwright.service.pages.html import STATIC, STYLES
from mixwright.service.pages.paser_view import cluster_rows, comparisons, short
from mixwright.service.plots.drawing import COLOURS, Theme, figure_bytes
from mixwright.service.plots.maps import layout, map_figure, sample_landmarks
from mixwright.service.plots.paser import comparison_figure, degradation_figure
from mixwright.store import Store

SIZES = (100, 80, 60, 40)
DAMAGE = (0.05, 0.10, 0.20, 0.40)
WORDS = ("river", "engine", "violin", "harvest")
EVIL = "<script>alert()</script>"
PLOTS = ("degradation", "map", "comparison")
SVG = "{http://www.w3.org/2000/svg}"


def planted_pool() -> Pool:
    """Four abilities whose prompts carry markup; of the last two documents one contradicts the other."""
    rng = np.random.default_rng(0)
    ability = np.repeat(np.arange(len(SIZES)), SIZES)
    vectors = np.eye(16)[ability] + 0.1 * rng.standard_normal((len(ability), 16))
    vectors[-1] = vectors[-2]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    prompts = [f"{EVIL} tell {WORDS[a]} & {i}" for i, a in enumerate(ability)]
    prompts[-1] = prompts[-2]
    metadata = [
        json.dumps({"instruction": prompt, "output": f"it is {i}", "jsd": DAMAGE[a] * rng.uniform(0.5, 1.5)})
        for i, (a, prompt) in enumerate(zip(ability, prompts, strict=True))
    ]
    texts = [f"document {i}" for i in range(len(ability))]
    tokens = rng.integers(5, 200, len(ability)).tolist()
    table = document_table(texts, source="pool", n_tokens=tokens, metadata=metadata)
    return Pool.from_tables({"pool": table}, vectors={"pool": ArrayVectors(vectors)})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The mixtures paser@1, auto@1, tags@1 and plain@1 of one pool; nothing in it is changed by a test."""
    store = Store(tmp_path_factory.mktemp("report") / "home")
    pool = planted_pool()
    requests = {
        "paser": ({"kind": "paser", "clusters": 4}, {"tokens": 6000}),
        "auto": ({"kind": "paser", "clusters": "auto"}, {"tokens": 6000}),
        "tags": ({"kind": "domain-tags", "template": "[{source}]"}, {"documents": 20}),
        "plain": ({"kind": "proportional"}, {"documents": 20}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "open", lambda *_, **__: pool)
        patch.setattr("mixwright.jobs.select.make_embeddings", lambda *_: ({}, {}))
        for name, (selector, budget) in requests.items():
            request = {"name": name, "sources": ["pool"], "selector": selector, "budget": budget}
            run_select(store, SelectRequest.model_validate(request), NoProgress())
    return store


@pytest.fixture(scope="module")
def manifest(store: Store) -> MixtureManifest:
    found = store.manifest("paser", "mixture")
    assert isinstance(found, MixtureManifest)
    return found


@pytest.fixture(scope="module")
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=store.home), run_worker=False)) as client:
        yield client


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


# What is drawn


def test_the_page_shows_the_numbers_of_clusters_that_were_tried(store: Store, client: TestClient) -> None:
    manifest = store.manifest("auto", "mixture")
    assert isinstance(manifest, MixtureManifest)
    candidates = manifest.report["clustering"]["candidates"]
    page = client.get("/mixtures/auto").text
    for each in candidates:
        row = f'{each["k"]}</th><td class="number">{short(each["eigengap"])}</td>'
        assert row in page
    assert [each["k"] for each in candidates if each["chosen"]] == [4]
    assert "Numbers of clusters that were tried" not in client.get("/mixtures/paser").text


def test_bars_are_what_the_documents_say(store: Store, manifest: MixtureManifest) -> None:
    figure = degradation_figure(cluster_rows(manifest), "jsd", "tokens", "light")
    left, right = figure.axes
    documents = pl.read_parquet(store.directory(manifest) / "documents.parquet")
    tokens = pl.Series("tokens", planted_pool().sources[0].n_tokens).gather(documents["row"])
    expected = (
        documents.with_columns(tokens)
        .group_by("cluster")
        .agg(pl.col("score").mean(), pool=pl.col("tokens").sum() / tokens.sum())
        .sort("score", descending=True)
    )
    pool_bars, budget_bars = right.containers
    (bars,) = left.containers
    np.testing.assert_allclose([bar.get_width() for bar in bars], expected["score"], rtol=1e-5)
    np.testing.assert_allclose([bar.get_width() for bar in pool_bars], 100 * expected["pool"])
    budgets = {each["cluster"]: each["budget"] for each in manifest.report["clusters"]}
    np.testing.assert_allclose(
        [bar.get_width() for bar in budget_bars], [100 * budgets[number] / 6000 for number in expected["cluster"]]
    )
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert [int(label.split()[0]) for label in labels] == expected["cluster"].to_list()
    for number, label in zip(expected["cluster"], labels, strict=True):
        assert manifest.report["clusters"][number]["top_terms"][0] in label
    assert texts(figure) == [f"{score:.3f}" for score in expected["score"]]


def test_shares_of_what_was_selected(store: Store, manifest: MixtureManifest) -> None:
    chosen = pl.read_parquet(store.directory(manifest) / "documents.parquet").filter("selected")
    tokens = planted_pool().sources[0].n_tokens[chosen["row"]]
    for row in cluster_rows(manifest):
        here = (chosen["cluster"] == row["cluster"]).to_numpy()
        assert row["selected_share"] == pytest.approx(tokens[here].sum() / tokens.sum())


def test_the_comparison_is_drawn_as_it_was_counted(manifest: MixtureManifest) -> None:
    found = manifest.report["comparison"]
    figure = comparison_figure(comparisons(manifest), "dark")
    for axes, of in zip(
        figure.axes,
        (lambda e: e["mean_score"], lambda e: e["tokens"] / e["documents"], lambda e: e["clusters"]),
        strict=True,
    ):
        draws, mean, selected = (line.get_xdata() for line in axes.lines)
        np.testing.assert_allclose(draws, [of(each) for each in found["random"]])
        np.testing.assert_allclose(mean, np.mean(draws))
        np.testing.assert_allclose(selected, of(found["paser"]))
        low, high = axes.get_xlim()
        assert low < min(*draws, *selected) <= max(*draws, *selected) < high
    spread = np.std([each["mean_score"] for each in found["random"]], ddof=1)
    assert texts(figure)[1].endswith(f"± {spread:.3f}")


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Labels of the map whose boxes overlap, by Matplotlib's own measure."""
    figure.draw_without_rendering()
    labels = figure.axes[0].texts
    boxes = [label.get_bbox_patch().get_window_extent() for label in labels]
    inside = figure.bbox
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= inside.x1 and box.y1 <= inside.y1 for box in boxes)
    return [
        (labels[i].get_text(), labels[j].get_text())
        for i in range(len(boxes))
        for j in range(i)
        if boxes[i].overlaps(boxes[j])
    ]


def test_the_map_has_every_landmark_and_every_cluster(store: Store, manifest: MixtureManifest) -> None:
    landmarks = pl.read_parquet(store.directory(manifest) / "landmarks.parquet")
    clusters, vectors = landmarks["cluster"].to_numpy(), landmarks["vector"].to_numpy()
    points = layout(vectors)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert (clusters[distances.argmin(axis=1)] == clusters).mean() > 0.95
    np.testing.assert_array_equal(points, layout(4 * vectors))
    figure = map_figure(points, clusters, {number: f"label {number}" for number in range(4)}, "light")
    drawn = [len(group.get_offsets()) for group in figure.axes[0].collections]
    assert drawn == np.bincount(clusters).tolist()
    assert texts(figure) == [f"label {number}" for number in range(4)]
    assert overlaps(figure) == []


def test_thirty_clusters_on_one_spot_stay_legible() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 20)
    labels = {number: f"{number} mathematics" for number in range(30)}
    figure = map_figure(rng.normal(size=(600, 2)) + 0.01 * groups[:, None], groups, labels, "light")
    assert len(texts(figure)) == 30
    assert overlaps(figure) == []
    signs = {(str(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in figure.axes[0].collections}
    assert len(signs) == 30


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_maps_of_few_landmarks(n: int) -> None:
    points = layout(np.eye(n, 8, dtype=np.float32) + 1)
    assert points.shape == (n, 2)
    assert np.isfinite(points).all()
    assert len(texts(map_figure(points, np.zeros(n, dtype=np.int64), {0: "0", 1: "not there"}, "dark"))) == 1


def test_a_sample_of_the_landmarks_keeps_every_cluster() -> None:
    groups = np.concatenate([np.repeat([0, 1, 2], [3000, 1999, 1]), [3, 0]])
    sample = sample_landmarks(groups, 500)
    assert len(np.unique(sample)) == len(sample) <= 504
    counts = np.bincount(groups[sample])
    np.testing.assert_allclose(counts[:2] / len(sample), [0.6, 0.4], atol=0.01)
    assert counts[2:].tolist() == [1, 1]
    assert sample_landmarks(groups, 6000).tolist() == list(range(len(groups)))


@pytest.mark.parametrize(
    ("value", "like", "text"),
    [
        (0.30199, None, "0.302"),
        (-0.0456, None, "-0.0456"),
        (12.345, None, "12.3"),
        (1234.6, None, "1,235"),
        (12.0, None, "12"),
        (0.004, 0.21, "0.004"),
        (0.0, 0.3, "0.000"),
        (0.0, 0.0, "0.00"),
    ],
)
def test_numbers_in_three_figures(value: float, like: float | None, text: str) -> None:
    assert short(value, like) == text


# Colours


def linear(colour: str) -> np.ndarray:
    channels = np.asarray([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """WCAG 2.2."""
    low, high = sorted(float(linear(each) @ [0.2126, 0.7152, 0.0722]) for each in (first, second))
    return (high + 0.05) / (low + 0.05)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Ottosson, 2020."""
    to_cones = [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.6806995, 0.10739696]]
    to_cones.append([0.08830246, 0.28171884, 0.6299787])
    to_lab = [[0.21045426, 0.79361779, -0.00407205], [1.9779985, -2.42859221, 0.45059371]]
    to_lab.append([0.0259040, 0.78277177, -0.80867577])
    return np.asarray(to_lab) @ np.cbrt(np.asarray(to_cones) @ rgb)


# Machado et al., 2009, at full severity, on linear RGB.
VISION = (
    (1, 0, 0, 0, 1, 0, 0, 0, 1),
    (0.152286, 1.052583, -0.204868, 0.114503, 0.786281, 0.099216, -0.003882, -0.048116, 1.051998),
    (0.367322, 0.860646, -0.227968, 0.280085, 0.672501, 0.047413, -0.01182, 0.04294, 0.968881),
    (1.255528, -0.076749, -0.178779, -0.078411, 0.930809, 0.147602, 0.004733, 0.691367, 0.3039),
)
"""Normal, protanopia, deuteranopia, tritanopia."""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_apart(theme: Theme) -> None:
    colours = COLOURS[theme]
    for text in (colours.ink, colours.soft):
        assert contrast(text, colours.paper) >= 4.5
    for sign in (colours.bar, colours.second, *colours.categories):
        assert contrast(sign, colours.paper) >= 3
    for vision in VISION:
        matrix = np.reshape(vision, (3, 3))
        seen = np.stack([oklab(np.clip(matrix @ linear(each), 0, 1)) for each in colours.categories])
        distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(len(seen))
        # Okabe and Ito's eight colours come down to 0.08.
        assert distances.min() > 0.15


# Files


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("plot", PLOTS)
def test_plots_over_rest(client: TestClient, manifest: MixtureManifest, plot: str, theme: str) -> None:
    address = f"/v1/mixtures/paser@1/plots/{plot}"
    svg, png = (client.get(f"{address}.{suffix}", params={"theme": theme}) for suffix in ("svg", "png"))
    assert (svg.headers["content-type"], png.headers["content-type"]) == ("image/svg+xml", "image/png")
    assert png.content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", png.content[16:20]) == (1440,)
    root = ET.fromstring(svg.text)
    assert root.tag == f"{SVG}svg"
    assert root.get("width") == "518.4pt"
    assert COLOURS[theme].paper in svg.text  # type: ignore[index]  # a theme
    shown = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    if plot != "comparison":
        for each in manifest.report["clusters"]:
            assert any(text.startswith(f"{each['cluster']} {each['top_terms'][0]}") for text in shown)
    again = client.get(f"{address}.svg", params={"theme": theme}, headers={"if-none-match": svg.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert len({svg.headers["etag"], png.headers["etag"], client.get(f"{address}.svg").headers["etag"]}) >= 2


def test_the_same_bytes_from_a_lost_cache_and_from_threads(client: TestClient, store: Store) -> None:
    first = client.get("/v1/mixtures/paser/plots/degradation.svg").content
    kept = sorted((store.home / "cache" / "plots").rglob("degradation-*"))
    assert len(kept) == 4
    for path in kept:
        path.unlink()
    assert client.get("/v1/mixtures/paser/plots/degradation.svg").content == first

    manifest = store.manifest("paser", "mixture")
    assert isinstance(manifest, MixtureManifest)
    drawn: dict[str, list[bytes]] = {"light": [], "dark": []}

    def draw(theme: Theme) -> None:
        for _ in range(2):
            drawn[theme].append(
                figure_bytes(degradation_figure(cluster_rows(manifest), "jsd", "tokens", theme), "svg")
            )

    threads = [threading.Thread(target=draw, args=(theme,)) for theme in ("light", "dark", "light")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(drawn["light"]) == {first}
    assert len(drawn["light"]) == 4
    assert len(set(drawn["dark"])) == 1
    assert drawn["dark"][0] != first


def test_terms_in_any_script_can_be_drawn(manifest: MixtureManifest) -> None:
    rows = [{**row, "label": "3 首都, $x$, <b>"} for row in cluster_rows(manifest)]
    svg = figure_bytes(degradation_figure(rows, "jsd", "tokens", "light"), "svg").decode()
    assert "首都, $x$, &lt;b&gt;" in svg


# REST


def refusal(client: TestClient, path: str, status: int) -> str:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["detail"])


def test_the_report_over_rest(client: TestClient, manifest: MixtureManifest) -> None:
    answer = client.get("/v1/mixtures/paser/report")
    assert answer.json() == manifest.report
    etag = {"if-none-match": answer.headers["etag"]}
    assert client.get("/v1/mixtures/paser/report", headers=etag).status_code == 304
    assert set(client.get("/v1/mixtures/tags/report").json()) == {"coverage"}
    assert "plain@1 has no report, since proportional makes none" in refusal(
        client, "/v1/mixtures/plain/report", 404
    )


def test_which_plots_there_are(client: TestClient) -> None:
    listed = client.get("/v1/mixtures/paser/plots").json()["items"]
    assert tuple(each["name"] for each in listed) == PLOTS
    for each in listed:
        assert client.get(each["svg"]).headers["content-type"] == "image/svg+xml"
        assert client.get(each["png"]).headers["content-type"] == "image/png"
    assert client.get("/v1/mixtures/tags/plots").json()["items"] == []


def test_plots_that_are_not_there(client: TestClient) -> None:
    for file in ("maps.svg", "map.pdf", "map"):
        detail = refusal(client, f"/v1/mixtures/paser/plots/{file}", 404)
        assert detail.startswith(f"mixture paser@1 has no plot {file}: there are degradation.svg, degradation.png")
    assert "domain-tags draws none" in refusal(client, "/v1/mixtures/tags/plots/map.svg", 404)
    assert "'light' or 'dark'" in refusal(client, "/v1/mixtures/paser/plots/map.svg?theme=blue", 422)
    assert "no mixture absent" in refusal(client, "/v1/mixtures/absent/plots/map.svg", 404)
    assert "no mixture absent" in refusal(client, "/mixtures/absent", 404)


def test_a_damaged_table_is_said(store: Store, manifest: MixtureManifest, tmp_path: Path) -> None:
    from mixwright.service.plots.registry import cached_plot, plot_file

    plot, format = plot_file(manifest, "map.svg")
    with pytest.raises(DataError, match=r"landmarks\.parquet of mixture paser@1 cannot be read"):
        cached_plot(Store(tmp_path), manifest, plot, format, "light")


# The page


def test_the_page_of_a_paser_mixture(client: TestClient, manifest: MixtureManifest) -> None:
    answer = client.get("/mixtures/paser")
    page = answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert EVIL not in page
    assert "&lt;script&gt;alert()&lt;/script&gt; tell violin &amp;" in page
    assert " style=" not in page  # the policy would drop it
    for each in manifest.report["clusters"]:
        cells = re.search(rf'<th scope="row" class="number">{each["cluster"]}</th>(.*?)</tr>', page, re.DOTALL)
        assert cells is not None
        numbers = re.findall(r'<td class="number">([^<]+)</td>', cells[1])
        assert numbers[1] == str(each["documents"])
        assert numbers[6] == str(each["selected_documents"])
        assert ", ".join(each["top_terms"]) in cells[1]
        assert cells[1].count("<li>") == len(each["exemplars"])
    assert "Pairs that ask the same and disagree: 1." in page
    assert page.count("<img") == page.count("<source") == 3
    assert all(alt for alt in re.findall(r'alt="([^"]*)"', page))
    named = re.findall(r'(?:src|href|srcset)="([^"]+)"', page)
    assert all(address.startswith(("/", "#")) for address in named)
    for address in named:
        # The rows need the corpus, which is not in this store.
        left_out = address.startswith("#") or "/rows" in address or "/export?" in address or "/sample" in address
        assert left_out or client.get(address).status_code == 200, address


def test_the_pages_of_other_selectors(client: TestClient) -> None:
    tags = client.get("/mixtures/tags").text
    assert "280 of 280 documents can be tagged (100.0%)" in tags
    assert "<img" not in tags
    plain = client.get("/mixtures/plain@1").text
    assert '<th scope="row">pool@1</th>' in plain
    assert "/report" not in plain
    home = client.get("/").text
    assert all(f'href="/mixtures/{ref}"' in home for ref in ("paser@1", "tags@1", "plain@1"))


# The command line


def run(store: Store, *arguments: str) -> Any:
    return CliRunner().invoke(
        command_line, ["mixture", "report", *arguments], env={"MIXWRIGHT_HOME": str(store.home), "COLUMNS": "100"}
    )


def test_the_report_on_a_terminal(store: Store, manifest: MixtureManifest) -> None:
    result = run(store, "paser")
    assert result.exit_code == 0, result.output
    for row in cluster_rows(manifest):
        shares = f"{row['pool_share']:.1%} +{row['budget_share']:.1%}"
        numbers = rf"{row['degradation']:.3f} +{row['documents']} +{shares} +{row['selected_documents']}"
        pattern = rf"^{row['cluster']} +{numbers} +{row['top_terms'][0]}"
        assert re.search(pattern, result.output, re.MULTILINE), pattern
    assert "left out: duplicates 0, conflicts 1; taken all the same: duplicates 0, conflicts 0" in result.output
    assert f"mean jsd                {manifest.report['comparison']['paser']['mean_score']:.3f}" in result.output
    assert json.loads(run(store, "paser", "--json").output) == manifest.report
    assert "can be tagged" in run(store, "tags").output
    assert isinstance(run(store, "plain").exception, NotFoundError)


def test_the_report_as_files(store: Store, manifest: MixtureManifest, tmp_path: Path) -> None:
    out = tmp_path / "report"
    result = run(store, "paser", "--out", str(out), "--json")
    files = {"report.html", "report.json"} | {f"{plot}.{suffix}" for plot in PLOTS for suffix in ("svg", "png")}
    assert set(json.loads(result.output)["files"]) == files == {path.name for path in out.iterdir()}
    assert json.loads((out / "report.json").read_text()) == manifest.report
    page = (out / "report.html").read_text()
    assert EVIL not in page
    assert all((STATIC / name).read_text() in page for name in STYLES)
    named = re.findall(r'(?:src|href|srcset)="([^"#]+)"', page)
    embedded = [address for address in named if address.startswith("data:image/svg+xml;base64,")]
    assert len(embedded) == 6
    assert {address for address in named if address not in embedded} == files - {"report.html"}
    refused = run(store, "paser", "--out", str(out))
    assert isinstance(refused.exception, ConflictError)
    assert str(refused.exception) == f"{out} exists and is not empty: name a new folder"
