"""The web pages as the service sends them: valid, inert, complete, and true to what was published."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import html5lib
import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from full_home import EVIL, EVIL_URL, QUESTION, SOURCES, full_home
from sqlalchemy.exc import OperationalError
from support import document_table, published_corpus

from mixwright.config import Settings
from mixwright.errors import ConfigError
from mixwright.jobs.board import Board, log_path
from mixwright.jobs.exports.registry import EXPORT_FORMATS
from mixwright.schemas.catalog import HistogramBin, Lineage, LineageEdge, LineageNode
from mixwright.schemas.jobs import JobProgress
from mixwright.schemas.manifests import CorpusManifest, MixtureManifest
from mixwright.service.app import create_app
from mixwright.service.pages.composition_view import domain_chart, mixture_bars, stage_bands, token_ticks
from mixwright.service.pages.corpus_page import histogram
from mixwright.service.pages.datastore_page import marked
from mixwright.service.pages.html import bytes_text, web_address
from mixwright.service.pages.lineage_view import MAX_NODES, PLURALS, LineageDrawing, lineage_drawing
from mixwright.service.pages.sample_rows import CLIPPED, UNFOLDED, shown_text
from mixwright.store import Store

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
SECTIONS = ("", *PLURALS.values(), "jobs")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=full_home()), run_worker=False)) as client:
        yield client


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=tmp_path / "home"), run_worker=False)) as client:
        yield client


@pytest.fixture(scope="module")
def store() -> Store:
    return Store(full_home())


def parsed(page: str) -> Any:
    """The page as an element tree; html5lib in strict mode raises for whatever a browser would have to mend."""
    return html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(page)


def elements(tree: Any, *tags: str) -> list[Any]:
    return [each for each in tree.iter() if each.tag in tags]


def words(element: Any) -> str:
    return " ".join("".join(element.itertext()).split())


def check_page(page: str) -> Any:
    """Valid, inert, nothing from elsewhere, everything has a name; returns the tree."""
    assert EVIL not in page
    tree = parsed(page)
    every = [each for each in tree.iter() if isinstance(each.tag, str)]
    ids = Counter(each.get("id") for each in every if each.get("id"))
    assert [each for each, n in ids.items() if n > 1] == []
    for each in every:
        assert each.get("style") is None
        assert not [name for name in each.attrib if str(name).startswith("on")]
        for name in ("src", "srcset"):
            assert (each.get(name) or "/").startswith("/")
        for reference in (each.get("aria-labelledby"), each.get("for")):
            assert reference is None or reference in ids
    assert list(tree.iter("style")) == []
    assert all(each.get("src") and not (each.text or "").strip() for each in tree.iter("script"))
    assert all(each.get("href").startswith("/static/") for each in tree.iter("link"))
    assert len(tree.findall(".//h1")) == len(tree.findall(".//main")) == 1
    assert all(each.get("alt") for each in tree.iter("img"))
    check_names(tree)
    return tree


def check_names(tree: Any) -> None:
    """Controls, links and drawings say what they are."""
    labelled = {each.get("for") for each in tree.iter("label")}
    inside = {control for label in tree.iter("label") for control in elements(label, "input", "select")}
    for control in elements(tree, "input", "select"):
        assert control.get("type") == "hidden" or control in inside or control.get("id") in labelled
    for link in elements(tree, "a", "button"):
        assert words(link) or link.get("aria-label"), link.attrib
    for address in (each.get("href") for each in tree.iter("a")):
        assert re.match(r"/|#|https?://", address), address
    for link in tree.iter("a"):
        if link.get("href").startswith("http"):
            assert "noopener" in link.get("rel")
    for level, following in pairwise(int(each.tag[1]) for each in elements(tree, "h1", "h2", "h3")):
        assert following <= level + 1
    for svg in tree.iter("{http://www.w3.org/2000/svg}svg"):
        named = svg.get("aria-hidden") or svg.get("aria-label")
        assert named or svg.get("role") is None


def addresses(tree: Any) -> set[str]:
    """Where the page's links lead, in this service and without fragments."""
    found = {each.get("href").partition("#")[0] for each in tree.iter("a")}
    return {each for each in found if each.startswith("/")}


# Every page


def test_pages_of_an_empty_home(empty: TestClient) -> None:
    for section in SECTIONS:
        answer = empty.get(f"/{section}", headers=HTML)
        assert answer.status_code == 200
        tree = check_page(answer.text)
        for address in addresses(tree):
            assert empty.get(address).status_code == 200, address
    assert "No mixture yet" in empty.get("/").text
    assert "There are none yet" in empty.get("/datastores").text


def test_every_page_that_links_lead_to(client: TestClient, store: Store) -> None:
    waiting, seen = ["/"], {"/"}
    visited, followed = set(), set()
    while waiting:
        address = waiting.pop()
        answer = client.get(address, headers=HTML)
        assert answer.status_code == 200, address
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        visited.add(urlsplit(address).path)
        for each in sorted(addresses(check_page(answer.text)) - seen):
            seen.add(each)
            if each.startswith(("/v1/", "/openapi")):
                # Plots and exports take long and have tests of their own.
                assert "/plots/" in each or "/export?" in each or client.get(each).status_code == 200, each
            elif each.split("?")[0].endswith("/sample"):
                check_sample_link(client, each)
            elif "start=" not in each or not any(each.split("?")[0] + "?start=" in other for other in followed):
                # Of the pages of rows one behind the first is enough.
                followed.add(each)
                waiting.append(each)
    published = {f"/{PLURALS[each.kind]}/{each.name}@{each.version}" for each in store.references() if each.kind}
    assert published <= visited
    formats = {parse_qs(urlsplit(each).query)["format"][0] for each in seen if "/export?" in each}
    assert formats == set(EXPORT_FORMATS)


def check_sample_link(client: TestClient, address: str) -> None:
    answer = client.get(address, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["cache-control"] == "no-store"
    target = urlsplit(answer.headers["location"])
    assert target.path == address.removesuffix("/sample")
    assert int(parse_qs(target.query)["start"][0]) >= 0


def test_every_page_is_asked_for_again_and_mostly_unchanged(client: TestClient) -> None:
    for address in ("/", "/mixtures", "/mixtures/tagged", "/corpora/wiki", "/datastores/library", "/results/runs"):
        answer = client.get(address)
        assert answer.headers["cache-control"] == "private, no-cache"
        again = client.get(address, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    other = client.get("/mixtures/tagged?start=3").headers["etag"]
    assert other != client.get("/mixtures/tagged").headers["etag"]


def test_static_files_are_all_used_and_plain() -> None:
    from mixwright.service.pages.html import STATIC

    templates = "".join(path.read_text() for path in (STATIC.parent / "templates").iterdir())
    code = templates + "".join(path.read_text() for path in STATIC.parent.rglob("*.py"))
    for path in STATIC.iterdir():
        assert path.name in code, path.name
        text = path.read_text("utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), path.name
        assert not re.search(r"\beval\(|innerHTML|document\.write|new Function|@import|url\(", text), path.name


# Search and lists


def names_found(page: str) -> set[str]:
    kinds = "|".join(PLURALS.values())
    return {f"{kind}/{ref}" for kind, ref in re.findall(rf'href="/({kinds})/([^"/?]+@[0-9]+)"', page)}


@pytest.mark.parametrize(
    "text", ["wiki", "TAG", "h3.code", "wiki@1 retrieval", "runs", "%", "_", "nothing-has-this"]
)
def test_a_search_finds_what_has_all_words(client: TestClient, store: Store, text: str) -> None:
    manifests = {f"{PLURALS[each.kind]}/{each.ref}": each for each in map_manifests(store)}
    domains = {
        ref: " ".join(pl.read_parquet(store.directory(each) / "shards" / "*.parquet")["domain"].drop_nulls())
        for ref, each in ((each.ref, each) for each in manifests.values() if isinstance(each, CorpusManifest))
    }

    def has(address: str, word: str) -> bool:
        each = manifests[address]
        corpora = [part.ref for part in each.inputs if part.kind == "corpus"]
        own = domains.get(each.ref, "") if each.kind == "corpus" else ""
        said = [each.ref, getattr(each, "selector", ""), *(part.ref for part in each.inputs), own]
        return any(word in text.lower() for text in (*said, *(domains[ref] for ref in corpora)))

    expected = {each for each in manifests if all(has(each, word) for word in text.lower().split())}
    page = client.get("/", params={"q": text}).text
    section = page[page.index('id="found"') : page.index("</main>")]
    assert names_found(section.split('id="jobs-now"')[0]) == expected
    if not expected:
        assert "Nothing has" in page
    for kind, plural in PLURALS.items():
        listed = client.get(f"/{plural}", params={"q": text}).text
        assert names_found(listed) == {each for each in expected if manifests[each].kind == kind}


def map_manifests(store: Store) -> Iterator[Any]:
    for each in store.references():
        assert each.kind is not None
        yield store.manifest(each, each.kind)


def test_a_search_says_what_was_asked_and_keeps_it(client: TestClient) -> None:
    page = client.get("/", params={"q": f'{EVIL}"'}).text
    tree = check_page(page)
    assert tree.find(".//input[@name='q']").get("value") == f'{EVIL}"'
    assert client.get("/", params={"q": "a\x00b"}).status_code == 422
    assert client.get("/", params={"q": "a" * 201}).status_code == 422


def test_lists_are_paged(empty: TestClient, tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    for number in range(53):
        published_corpus(store, f"c{number:02d}", document_table([f"text {number}"]))
    first = empty.get("/corpora").text
    assert len(names_found(first)) == 50
    (older,) = re.findall(r'href="(/corpora\?cursor=[^"]+)"', first)
    second = empty.get(older).text
    assert names_found(first) | names_found(second) == {f"corpora/c{number:02d}@1" for number in range(53)}
    assert "Older" not in second
    assert "Newest" in second
    assert empty.get("/corpora?cursor=nonsense", headers=HTML).status_code == 422
    assert "all 53" in empty.get("/").text


# A mixture


def mixture(store: Store, name: str) -> MixtureManifest:
    manifest = store.manifest(name, "mixture")
    assert isinstance(manifest, MixtureManifest)
    return manifest


def test_bars_and_stages_are_the_shares_of_the_manifest(store: Store) -> None:
    manifest = mixture(store, "tagged")
    bars = mixture_bars(manifest)
    widths = {segment.label: segment.width for segment in bars.served.bar}
    assert widths == pytest.approx({part.name: 100 * part.weight for part in manifest.components})
    assert sum(widths.values()) == pytest.approx(100)
    bands = stage_bands(manifest)
    assert [band.tagged for band in bands] == [True, False]
    tokens = np.asarray([stage.n_tokens for stage in manifest.stages])
    assert [band.width for band in bands] == pytest.approx((100 * tokens / tokens.sum()).tolist())
    assert [band.start for band in bands] == pytest.approx([0, bands[0].width])
    for band, stage in zip(bands, manifest.stages, strict=True):
        drawn = {part.label: part.width for part in band.parts}
        counts = {
            part.name: n * part.n_tokens / part.n_rows
            for part, n in zip(manifest.components, stage.counts, strict=True)
        }
        assert drawn == pytest.approx({name: 100 * n / sum(counts.values()) for name, n in counts.items() if n})


@pytest.mark.parametrize("total", [1, 7, 99, 1000, 123_456, 8_000_000_000])
def test_ticks_are_round_and_on_the_axis(total: int) -> None:
    ticks = token_ticks(total)
    places = [tick.place for tick in ticks]
    assert places[0] == 0
    assert places == sorted(places)
    assert places[-1] <= 100 + 1e-9
    assert 2 <= len(ticks) <= 11
    assert len({tick.text for tick in ticks}) == len(ticks)


def test_documents_by_domain_fall_on_logarithmic_axes(store: Store) -> None:
    corpora = [each for each in map_manifests(store) if isinstance(each, CorpusManifest) and each.name in SOURCES]
    chart = domain_chart(corpora, {"wiki": 0, "code": 1, "news": 2})
    assert chart is not None
    assert chart.n_left_out == 0
    most = max(max(each.domains.values()) for each in corpora)
    ranks = max(len(each.domains) for each in corpora)
    for curve in chart.curves:
        (corpus,) = (each for each in corpora if each.ref == curve.corpus)
        counts = pl.read_parquet(store.directory(corpus) / "shards" / "*.parquet")["domain"].drop_nulls()
        wanted = sorted(counts.value_counts()["count"], reverse=True)
        found = [most ** ((100 - dot.y) / 100) for dot in curve.dots]
        assert found == pytest.approx(wanted)
        assert [ranks ** (dot.x / 100) for dot in curve.dots] == pytest.approx(range(1, len(wanted) + 1))
    bare = [each.model_copy(update={"domains": {}}) for each in corpora]
    assert domain_chart(bare, {}) is None


def test_rows_of_the_page_are_rows_of_the_stream(client: TestClient, store: Store) -> None:
    n_rows = mixture(store, "tagged").n_rows
    for start in (0, 17, n_rows - 2, n_rows + 5):
        tree = check_page(client.get("/mixtures/tagged", params={"start": start}).text)
        first = min(start, n_rows - 1)
        rows = client.get(f"/v1/mixtures/tagged/rows?start={first}&count=4").text.splitlines()
        shown = tree.findall(".//ol[@class='rows']/li")
        assert len(shown) == len(rows)
        for item, line in zip(shown, rows, strict=True):
            row = pl.read_ndjson(line.encode()).row(0, named=True)
            assert words(item.find("p/b")) == f"Position {row['position']:,}"
            texts = [words(each) for each in item.findall("p[@class='text']")]
            if row["tag_text"]:
                assert texts[0] == f"tag{row['tag_text'].rstrip()}"
            assert " ".join(row["text"].split()).startswith(texts[-1].removesuffix(" …"))
    assert client.get("/mixtures/tagged?start=-1", headers=HTML).status_code == 422


def test_hostile_texts_and_addresses_are_text(client: TestClient) -> None:
    page = client.get("/corpora/wiki").text
    tree = check_page(page)
    (row,) = (each for each in tree.findall(".//ol[@class='rows']/li") if EVIL in words(each))
    assert [each.get("href") for each in row.iter("a")] == ["/v1/corpora/wiki@1/rows?offset=1&length=1"]
    assert EVIL_URL not in [each.get("href") for each in tree.iter("a")]
    found = check_page(client.get("/datastores/library", params={"q": EVIL, "mode": "bm25"}).text)
    assert EVIL in words(found.find(".//ol[@class='hits']"))


@pytest.mark.parametrize(
    ("url", "leads"),
    [
        ("https://a.org/x?y=1#z", True),
        ("http://a.org", True),
        (EVIL_URL, False),
        ("JaVaScRiPt:alert(1)", False),
        ("data:text/html,x", False),
        ("//a.org", False),
        ("https:", False),
        ("https://[::1", False),
        ("", False),
        (None, False),
    ],
)
def test_only_web_addresses_are_links(url: str | None, leads: bool) -> None:
    assert web_address(url) == (url if leads else None)


def test_long_texts_are_clipped_and_said_so() -> None:
    assert shown_text("short").unfolded is None
    long = shown_text("word " * 1000)
    assert len(long.start) <= CLIPPED + 2
    assert long.unfolded == "word " * 1000
    assert not long.is_cut
    huge = shown_text("x" * (UNFOLDED + 1))
    assert huge.is_cut
    assert len(huge.unfolded or "") == UNFOLDED


def test_a_mixture_whose_corpora_are_gone_still_has_a_page(
    empty: TestClient, tmp_path: Path, store: Store
) -> None:
    import shutil

    shutil.copytree(store.home / "mixtures" / "tagged", tmp_path / "home" / "mixtures" / "tagged")
    tree = check_page(empty.get("/mixtures/tagged").text)
    assert "The rows cannot be shown: no corpus" in words(tree)
    for address in addresses(tree):
        if "/export?" not in address and not address.endswith("/sample"):
            assert empty.get(address).status_code == 200, address


def test_exports_have_their_commands_and_warnings(client: TestClient, store: Store) -> None:
    tree = check_page(client.get("/mixtures/tagged").text)
    formats = {words(each.find("summary/small")): each for each in tree.findall(".//details[@class='format']")}
    assert set(formats) == set(EXPORT_FORMATS)
    for name, each in formats.items():
        commands = [words(pre) for pre in each.iter("pre")]
        assert commands[0] == f"mixwright mixture export tagged@1 --format {name} --out tagged-{name}"
        assert f"/v1/mixtures/tagged@1/export?format={name}" in commands[1]
        assert ("no loss mask" in words(each)) == (not EXPORT_FORMATS[name].masks)
        assert not any("{root}" in command or "{stage}" in command for command in commands)


def test_sliders_begin_at_the_chosen_mixture(client: TestClient, store: Store) -> None:
    report = mixture(store, "three").report
    tree = check_page(client.get("/mixtures/three").text)
    sliders = tree.findall(".//fieldset/div")
    weights = {each.get("data-source"): float(each.get("data-chosen")) for each in sliders}
    assert weights == pytest.approx(report["candidates"][0]["weights"])
    assert list(weights) == [each["name"] for each in report["sources"]]
    tool = tree.find(".//div[@id='mixer-tool']")
    assert int(tool.get("data-smallest")) <= report["settings"]["size"] <= int(tool.get("data-largest"))
    assert "mixer.js" not in client.get("/mixtures/plain").text


# A corpus and a datastore


def test_the_page_of_a_corpus_counts_its_documents(client: TestClient, store: Store) -> None:
    table = pl.read_parquet(full_home() / "corpora" / "wiki" / "1" / "shards" / "*.parquet")
    tree = check_page(client.get("/corpora/wiki").text)
    facts = {
        words(each.find("dt")): words(each.find("dd")) for each in tree.findall(".//dl[@class='facts'][1]/div")
    }
    assert facts["Documents"] == str(table.height)
    rows = [
        [words(cell) for cell in row] for row in tree.findall(".//section[@aria-labelledby='domains']//tbody/tr")
    ]
    for domain, n in table["domain"].value_counts().iter_rows():
        assert [domain or "none", str(n)] in [[row[0], row[2]] for row in rows if len(row) == 4]


def test_bars_of_lengths_are_the_counts() -> None:
    bins = [HistogramBin(low=0, high=1, n_documents=3), HistogramBin(low=4, high=8, n_documents=6)]
    bars = histogram(bins)
    assert [bar.height for bar in bars] == [50, 0, 0, 100]
    assert [bar.text for bar in bars] == [
        "0 tokens: 3 documents",
        "1 tokens: 0 documents",
        "2 to 3 tokens: 0 documents",
        "4 to 7 tokens: 6 documents",
    ]
    assert histogram([]) == []


def test_statistics_of_a_large_corpus_are_counted_when_asked_for(
    empty: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mixwright.service.pages.corpus_page.COUNTED_AT_ONCE", 1)
    published_corpus(Store(tmp_path / "home"), "large", document_table(["a b", "c"], domains=["a.org", None]))
    assert "Count them" in empty.get("/corpora/large").text
    assert not (tmp_path / "home" / "cache" / "statistics").exists()
    counted = empty.get("/corpora/large?statistics=yes").text
    assert "Documents in bins that double" in counted
    assert "Documents in bins that double" in empty.get("/corpora/large").text


def test_a_search_without_a_script(client: TestClient) -> None:
    for asked in ({"mode": "dense"}, {"mode": "bm25", "k": 2}, {"mode": "hybrid", "where": "n_tokens < 40"}):
        tree = check_page(client.get("/datastores/library", params={"q": QUESTION, **asked}).text)
        body: dict[str, Any] = {"queries": [QUESTION], "k": 5, **asked}
        hits = client.post("/v1/datastores/library/search", json=body).json()["hits"][0]
        shown = tree.findall(".//ol[@class='hits']/li")
        assert [words(each.find("div/b")) for each in shown] == [f"{hit['score']:.3f}" for hit in hits]
        for item, hit in zip(shown, hits, strict=True):
            assert words(item.findall(".//p")[1]) == " ".join(hit["text"].replace("\x07", "\ufffd").split())
        curl = shlex.split("".join(tree.find(".//pre[@id='search-command']").itertext()))
        assert curl[0] == "curl"
        assert curl[2:5] == ["-H", "content-type: application/json", "-d"]
        headers = {"content-type": "application/json"}
        answer = client.post(urlsplit(curl[1]).path, content=curl[5], headers=headers)
        assert answer.json()["hits"][0] == hits


def test_what_is_wrong_with_a_search_stands_beside_the_form(client: TestClient) -> None:
    answer = client.get("/datastores/library", params={"q": "a", "where": f"{EVIL} ="})
    assert answer.status_code == 422
    tree = check_page(answer.text)
    assert tree.find(".//div[@id='found']/p").get("role") == "alert"
    assert client.get("/datastores/library?k=51&q=a", headers=HTML).status_code == 422
    nothing = client.get("/datastores/library", params={"q": "zzz", "mode": "bm25"}).text
    assert "none has a word of the question" in nothing


def test_words_of_the_question_are_marked() -> None:
    text = "Plants make sugar; DNA and the plant. 1990 it"
    parts = marked(text, "How do PLANTS make the DNA in 1990?")
    assert "".join(part for part, _ in parts) == text
    assert [part for part, is_marked in parts if is_marked] == ["Plants", "make", "DNA", "1990"]
    assert marked("", "a") == ()


# Lineage


def random_lineage(n: int, seed: int) -> Lineage:
    """A graph without circles in which node 0 has ancestors and descendants alone."""
    generator = np.random.default_rng(seed)
    before = list(range(1, n // 2))
    behind = list(range(max(n // 2, 1), n))
    edges = {(each, 0 if i == 0 else before[int(generator.integers(i))]) for i, each in enumerate(before)}
    edges |= {(0 if i == 0 else behind[int(generator.integers(i))], each) for i, each in enumerate(behind)}
    edges |= {(each, int(generator.choice(behind))) for each in before[::3]}

    def node_id(number: int) -> str:
        return f"corpus:n{number}@1"

    return Lineage(
        nodes=[
            LineageNode(id=node_id(i), kind="corpus", ref=f"n{i}@1", fingerprint="f", exists=i % 5 != 1)
            for i in range(n)
        ],
        edges=[LineageEdge(source=node_id(a), target=node_id(b)) for a, b in sorted(edges)],
    )


def ends(path: str) -> tuple[tuple[float, float], tuple[float, float]]:
    numbers = [float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", path)]
    return (numbers[0], numbers[1]), (numbers[-2], numbers[-1])


@pytest.mark.parametrize(("n", "seed"), [(1, 0), (2, 0), (7, 1), (20, 2), (45, 3)])
def test_a_lineage_is_drawn_as_it_is(n: int, seed: int) -> None:
    lineage = random_lineage(n, seed)
    drawing = lineage_drawing(lineage, "corpus", "n0@1")
    boxes = {box.ref: box for box in drawing.boxes}
    assert set(boxes) == {node.ref for node in lineage.nodes}
    assert drawing.n_left_out == 0
    w, h = drawing.box_width, drawing.box_height
    right, left = (
        {(b.x + w, b.y + h / 2): b for b in boxes.values()},
        {(b.x, b.y + h / 2): b for b in boxes.values()},
    )
    drawn = {(right[start].ref, left[end].ref) for start, end in map(ends, drawing.paths)}
    names = {node.id: node.ref for node in lineage.nodes}
    assert drawn == {(names[edge.source], names[edge.target]) for edge in lineage.edges}
    for source, target in drawn:
        assert boxes[source].x + w < boxes[target].x
    for a in boxes.values():
        assert 0 <= a.x <= drawing.width - w
        assert 0 <= a.y <= drawing.height - h
        for b in boxes.values():
            assert a is b or abs(a.x - b.x) >= w or abs(a.y - b.y) >= h
    exists = {node.ref: node.exists for node in lineage.nodes}
    for ref, box in boxes.items():
        assert box.here == (ref == "n0@1")
        assert (box.address == f"/corpora/{ref}") == (exists[ref] and not box.here)
    assert {each.ref for each in (*drawing.ancestors, *drawing.descendants)} == set(boxes) - {"n0@1"}


def test_a_large_lineage_is_drawn_in_part_and_listed_whole() -> None:
    drawing = lineage_drawing(random_lineage(300, 5), "corpus", "n0@1")
    assert len(drawing.boxes) == MAX_NODES
    assert drawing.n_left_out == 300 - MAX_NODES
    assert len(drawing.ancestors) + len(drawing.descendants) == 299


def test_the_page_draws_what_the_catalog_says(client: TestClient) -> None:
    lineage = Lineage.model_validate(client.get("/v1/mixtures/three/lineage").json())
    drawing: LineageDrawing = lineage_drawing(lineage, "mixture", "three@1")
    tree = check_page(client.get("/mixtures/three").text)
    section = tree.find(".//section[@aria-labelledby='lineage']")
    linked = {each.get("href") for each in section.find(".//div").iter("a")}
    # Links inside an SVG are elements of its namespace.
    linked |= {each.get("href") for each in section.iter("{http://www.w3.org/2000/svg}a")}
    assert {f"/{PLURALS[each.kind]}/{each.ref}" for each in lineage.nodes if each.ref != "three@1"} <= linked
    listed = {each.get("href") for each in section.findall(".//ul//a")}
    assert listed == {each.address for each in (*drawing.ancestors, *drawing.descendants)}


# Jobs


INGEST = {"kind": "ingest", "request": {"name": "new", "paths": [EVIL]}}


def test_the_page_of_a_job_from_queue_to_end(empty: TestClient, tmp_path: Path) -> None:
    job = empty.post("/v1/jobs", json=INGEST).json()
    services: Any = empty.app
    board: Board = services.state.services.board
    waiting = empty.get(f"/jobs/{job['id']}").text
    check_page(waiting)
    assert "waiting for a worker" in waiting
    assert 'http-equiv="refresh"' in waiting
    claim = board.claim("test")
    assert claim is not None
    progress = JobProgress(stage=EVIL, done=5, total=20, unit="documents", rate=2.5, eta_seconds=6.0)
    assert board.report(claim, progress)
    log_path(tmp_path / "home", job["id"]).parent.mkdir()
    log_path(tmp_path / "home", job["id"]).write_text(
        f"{EVIL}\nTraceback (most recent call last):\n  secret\nend\n"
    )
    page = empty.get(f"/jobs/{job['id']}").text
    assert EVIL not in page
    assert "secret" not in page
    assert '<progress data-field="bar" aria-labelledby="progress" max="20" value="5">' in page
    assert "5 of 20 documents" in page
    assert "running" in empty.get("/jobs").text
    assert 'data-refresh="3"' in empty.get("/").text
    board.fail(claim, ConfigError(f"wrong {EVIL}"))
    ended = check_page(empty.get(f"/jobs/{job['id']}").text)
    assert f"wrong {EVIL}" in words(ended.find(".//p[@role='alert']"))
    assert "refresh" not in empty.get(f"/jobs/{job['id']}").text
    check_page(empty.get("/jobs").text)
    assert "data-refresh" not in empty.get("/jobs").text


def test_jobs_are_filtered(empty: TestClient) -> None:
    done = empty.post("/v1/jobs", json=INGEST).json()["id"]
    empty.post(f"/v1/jobs/{done}/cancel")
    queued = empty.post("/v1/jobs", json={"kind": "embed", "request": {"corpus": "wiki"}}).json()["id"]
    for query, expected in {
        "": {done, queued},
        "?state=&kind=": {done, queued},
        "?state=cancelled": {done},
        "?kind=embed": {queued},
        "?state=cancelled&kind=embed": set(),
    }.items():
        page = empty.get(f"/jobs{query}").text
        assert set(re.findall(r'href="/jobs/([0-9a-f]+)"', page)) == expected, query
    assert "No such job" in empty.get("/jobs?state=failed").text


# Errors


def test_errors_are_pages_for_browsers_and_problems_for_others(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, status in (
        ("/nothing", 404),
        ("/mixtures/absent", 404),
        ("/mixtures/tagged@9", 404),
        ("/corpora/no%20name", 422),
        ("/jobs/absent", 404),
        ("/mixtures?cursor=x", 422),
    ):
        page = client.get(address, headers=HTML)
        assert (page.status_code, page.headers["content-type"]) == (status, "text/html; charset=utf-8"), address
        assert "default-src 'none'" in page.headers["content-security-policy"]
        tree = check_page(page.text)
        problem = client.get(address)
        assert problem.headers["content-type"] == "application/problem+json"
        assert words(tree.find(".//p[@role='alert']")) == " ".join(problem.json()["detail"].split())
    api = client.get("/v1/mixtures/absent", headers=HTML)
    assert api.headers["content-type"] == "application/problem+json"

    def silent(*_: object) -> None:
        raise OperationalError("select", {}, Exception("gone"))

    monkeypatch.setattr("mixwright.service.catalog.Catalog.counts", silent)
    broken = client.get("/", headers=HTML)
    assert broken.status_code == 503
    assert broken.headers["retry-after"] == "5"
    check_page(broken.text)


def test_sizes_of_files_as_text() -> None:
    assert [bytes_text(n) for n in (0, 999, 1000, 1_500_000, 2e12, 5e15)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "1.5 MB",
        "2 TB",
        "5e+03 TB",
    ]


# Colours


def luminance(colour: str) -> float:
    """WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return sum(share * each for share, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_of_drawings_stand_out() -> None:
    from mixwright.service.pages.html import STATIC

    css = "".join((STATIC / name).read_text() for name in ("base.css", "charts.css"))
    named = {
        name: pair for name, *pair in re.findall(r"([\w-]+):? [{ ]*(?:--part: )?light-dark\((#\w+), (#\w+)\)", css)
    }
    parts = [pair for name, pair in named.items() if name.startswith("part-")]
    assert len(parts) == 6
    for theme in (0, 1):
        paper = luminance(named["--paper"][theme])
        for pair in (*parts, named["--edge"], named["--accent"]):
            low, high = sorted((paper, luminance(pair[theme])))
            assert (high + 0.05) / (low + 0.05) >= 3, pair
