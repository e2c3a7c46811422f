"""The pages in a real browser: what they look like, what the keyboard reaches, what their scripts do.

Debian's chromium is driven by playwright; without the two these tests are skipped.
"""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

CHROMIUM = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
if CHROMIUM is None:
    pytest.skip("chromium is not installed: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test installs it")

from full_home import EVIL, QUESTION, full_home  # noqa: E402  # only needed with a browser

from mixwright.config import Settings  # noqa: E402
from mixwright.errors import ConfigError  # noqa: E402
from mixwright.jobs.board import Board, log_path  # noqa: E402
from mixwright.schemas.jobs import JobProgress  # noqa: E402
from mixwright.service.app import create_app  # noqa: E402

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PAGES = (
    "/",
    "/?q=wiki",
    "/mixtures",
    "/mixtures/tagged",
    "/mixtures/recovery",
    "/mixtures/three",
    "/corpora/wiki",
    "/datastores/library?q=barn+delt&mode=bm25",
    "/evaluations/curve",
    "/results/runs",
    "/jobs",
    "/nothing",
)

WIDER_THAN_THE_WINDOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"

# WCAG 2.2, 1.4.3: every text against what is behind it. Text on drawings is against the page.
FAINT_TEXTS = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return rgba(getComputedStyle(document.body).backgroundColor);
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest("title, .here, option")) continue;
    const style = getComputedStyle(element);
    const colour = rgba(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [low, high] = [light(colour), light(behind(element))].sort((a, b) => a - b);
    const text = node.textContent.trim().slice(0, 40);
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.push(`${element.tagName} ${text}`);
  }
  return [...new Set(faint)];
}"""


@pytest.fixture(scope="module")
def home() -> Path:
    return full_home()


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[tuple[str, Board]]:
    """The service's address, and its job board without a worker: the tests do the work."""
    app = create_app(Settings(home=home), run_worker=False)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.services.board
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, service: tuple[str, Board]) -> Iterator[Any]:
    """A page of a browser that has seen nothing before; errors and refusals of the policy fail the test."""
    base, _ = service
    context = browser.new_context(base_url=base, permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    said: list[str] = []
    elsewhere: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(base) else elsewhere.append(request.url))
    yield page
    context.close()
    # The browser itself tells of a page that is not there.
    assert [each for each in said if "status of 4" not in each] == []
    assert elsewhere == []


@pytest.mark.parametrize("address", PAGES)
def test_pages_fit_and_can_be_read(page: Any, address: str) -> None:
    page.goto(address)
    papers = set()
    for scheme, width in (("light", 360), ("dark", 1600), ("dark", 360), ("light", 1600)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(WIDER_THAN_THE_WINDOW) <= 0, (scheme, width)
        if width == 1600:
            assert page.evaluate(FAINT_TEXTS) == [], scheme
        papers.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(papers) == 2
    assert page.title() != "owned"


def focused(page: Any) -> str:
    found: str = page.evaluate(
        "(({ tagName, className, id, name, href, textContent }) =>"
        " `${tagName}.${className}#${id} ${name ?? ''} ${href ?? ''} ${textContent.trim().slice(0, 30)}`)"
        "(document.activeElement)"
    )
    return found


def tabbed(page: Any, presses: int) -> list[str]:
    found = []
    for _ in range(presses):
        page.keyboard.press("Tab")
        found.append(focused(page))
    return found


def test_the_keyboard_reaches_everything(page: Any) -> None:
    page.goto("/")
    order = tabbed(page, 16)
    assert order[0].startswith("A.skip")
    assert "mixwright" in order[1]
    assert [each.split()[-1] for each in order[2:7]] == [
        "Mixtures",
        "Corpora",
        "Datastores",
        "Evaluations",
        "Jobs",
    ]
    assert order[7].startswith("INPUT")
    assert " q " in order[7]
    assert "Search" in order[8]
    page.goto("/mixtures")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert focused(page).startswith("MAIN")
    page.goto("/mixtures/three")
    page.locator("#mixer-tool").wait_for()
    reached = " ".join(tabbed(page, 75))
    for wanted in (
        "INPUT.#share-0",
        "INPUT.#share-2",
        "INPUT.#size",
        "Best predicted",
        "SUMMARY",
        "Another sample",
    ):
        assert wanted in reached, wanted
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_copy_buttons_copy(page: Any) -> None:
    page.goto("/mixtures/tagged")
    page.locator("details.format summary").first.click()
    for block in (
        page.locator("#read ~ .columns .command").first,
        page.locator("details.format[open] .command").nth(1),
    ):
        button = block.locator("button")
        button.focus()
        page.keyboard.press("Enter")
        sync_api.expect(button).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == block.locator("pre").text_content()


def test_a_search_follows_what_is_typed(page: Any) -> None:
    page.goto("/")
    page.evaluate("window.stays = true")
    page.locator("input[name=q]").press_sequentially("retrieval")
    sync_api.expect(page.locator("#found a[href^='/corpora/']")).to_have_count(0)
    sync_api.expect(page.locator("#found tbody a")).to_have_text(["near@1"])
    assert page.url.endswith("/?q=retrieval")
    page.locator("input[name=q]").fill("nothing has this")
    sync_api.expect(page.locator("#found .empty")).to_be_visible()
    assert page.evaluate("window.stays")
    assert focused(page).startswith("INPUT")


def test_another_sample_comes_without_a_new_page(page: Any) -> None:
    page.goto("/mixtures/tagged")
    page.evaluate("window.stays = true")
    page.get_by_role("link", name="Next", exact=True).click()
    sync_api.expect(page.locator("ol.rows b").first).to_have_text("Position 4")
    assert page.url.endswith("?start=4#rows")
    assert "Next" in focused(page)
    page.get_by_role("link", name="Another sample").click()
    page.wait_for_url(re.compile(r"start=(?!4#)\d+"))
    assert page.evaluate("window.stays")
    position = re.search(r"start=(\d+)", page.url)
    assert position is not None
    sync_api.expect(page.locator("ol.rows b").first).to_have_text(f"Position {int(position[1]):,}")
    page.go_back()
    sync_api.expect(page.locator("ol.rows b").first).to_have_text("Position 4")


def test_a_search_in_a_datastore(page: Any) -> None:
    page.goto("/datastores/library")
    page.evaluate("window.stays = true")
    page.get_by_label("Question").fill(f"{QUESTION} it's")
    page.locator("select[name=mode]").select_option("bm25")
    page.get_by_label("Only where").fill("n_tokens < 400")
    command = page.locator("#search-command").text_content()
    assert """"queries":["barn delt it'\\''s"],"k":5,"mode":"bm25","where":"n_tokens < 400"}'""" in command
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".hits > li")).to_have_count(5)
    assert set(page.locator(".hits mark").all_text_contents()) <= {"barn", "delt"}
    assert page.evaluate("window.stays")
    page.get_by_label("Only where").fill("no such column = 1")
    page.keyboard.press("Enter")
    sync_api.expect(page.locator("#found [role=alert]")).to_be_visible()


def shares(page: Any) -> list[float]:
    return [float(each.rstrip("%")) for each in page.locator(".slider[data-source] output").all_text_contents()]


def test_sliders_move_the_prediction(page: Any) -> None:
    page.goto("/mixtures/three")
    page.locator("#mixer").scroll_into_view_if_needed()
    mean = page.locator("[data-field=mean]")
    sync_api.expect(mean).not_to_have_text("…", timeout=60_000)
    first = mean.text_content()
    sync_api.expect(page.locator("[data-field=difference]")).to_have_text("the same")
    slider = page.locator("#share-1")
    slider.focus()
    page.keyboard.press("End")
    assert shares(page) == [0, 100, 0]
    sync_api.expect(mean).not_to_have_text(first)
    sync_api.expect(page.locator("[data-field=difference]")).to_have_text(re.compile(r"^\+"))
    page.get_by_role("button", name="Uniform").click()
    assert sum(shares(page)) == pytest.approx(100, abs=0.2)
    page.get_by_label("keep wiki").check()
    before = shares(page)
    page.locator("#share-2").focus()
    page.keyboard.press("Home")
    after = shares(page)
    assert (after[0], after[2]) == (before[0], 0)
    assert after[1] == pytest.approx(100 - before[0], abs=0.1)
    page.keyboard.press("End")
    assert shares(page)[2] == pytest.approx(100 - before[0], abs=0.1)
    sync_api.expect(page.locator(".ternary svg")).to_be_visible(timeout=60_000)
    words = page.locator("#share-2").get_attribute("aria-valuetext")
    assert words == page.locator(".slider[data-source] output").nth(2).text_content()
    size = page.locator("[data-field=size]").text_content()
    page.locator("#size").focus()
    page.keyboard.press("End")
    assert page.locator("[data-field=size]").text_content() != size
    page.get_by_role("button", name="Best predicted").click()
    sync_api.expect(page.locator("[data-field=difference]")).to_have_text("the same", timeout=60_000)


def test_sliders_without_scores_move_the_distance(page: Any) -> None:
    page.goto("/mixtures/two")
    page.locator("#mixer").scroll_into_view_if_needed()
    mean = page.locator("[data-field=mean]")
    sync_api.expect(mean).not_to_have_text("…", timeout=60_000)
    first = mean.text_content()
    page.locator("#share-0").focus()
    page.keyboard.press("Home")
    sync_api.expect(mean).not_to_have_text(first)
    sync_api.expect(page.locator(".one-panel svg[role=img]")).to_be_visible(timeout=60_000)


def test_a_job_is_followed_while_it_runs(page: Any, service: tuple[str, Board], home: Path) -> None:
    _, board = service
    job = board.submit({"kind": "ingest", "name": "new", "paths": [EVIL]})
    page.goto(f"/jobs/{job.id}")
    state = page.locator("[data-field=state]")
    sync_api.expect(state).to_have_text("queued")
    claim = board.claim("test")
    assert claim is not None
    log = log_path(home, job.id)
    log.parent.mkdir(exist_ok=True)
    log.write_text(f"first line {EVIL}\n")
    board.report(claim, JobProgress(stage="read", done=25, total=100, unit="rows", rate=12.5, eta_seconds=6.0))
    sync_api.expect(state).to_have_text("running")
    sync_api.expect(page.locator("[data-field=done]")).to_have_text("25 of 100 rows")
    sync_api.expect(page.locator("[data-field=eta]")).to_have_text("6 s")
    assert page.locator("progress").evaluate("bar => bar.position") == 0.25
    sync_api.expect(page.locator("[data-field=log]")).to_contain_text("first line <script>")
    board.report(claim, JobProgress(stage="write", done=7, total=None, unit="shards", rate=1, eta_seconds=None))
    sync_api.expect(page.locator("[data-field=stage]")).to_have_text("write")
    assert page.locator("progress").evaluate("bar => bar.position") == -1
    board.fail(claim, ConfigError(f"line 3 {EVIL}: correct it"))
    sync_api.expect(page.locator("p[role=alert]")).to_have_text(f"line 3 {EVIL}: correct it")
    sync_api.expect(page.locator("progress")).to_have_count(0)


def test_a_job_is_cancelled(page: Any, service: tuple[str, Board]) -> None:
    _, board = service
    job = board.submit({"kind": "embed", "corpus": "wiki"})
    page.goto("/jobs?state=queued")
    page.get_by_role("link", name=job.id).click()
    page.get_by_role("button", name="Cancel the job").click()
    sync_api.expect(page.locator("[data-field=state]")).to_have_text("cancelled")
    assert board.get(job.id).state == "cancelled"
    page.goto("/jobs")
    page.get_by_label("State").select_option("cancelled")
    sync_api.expect(page.locator("#found tbody tr")).to_have_count(1)


def test_pages_work_without_scripts(browser: Any, service: tuple[str, Board]) -> None:
    context = browser.new_context(base_url=service[0], java_script_enabled=False, reduced_motion="reduce")
    page = context.new_page()
    page.goto("/")
    page.locator("input[name=q]").fill("wiki")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?q=wiki")
    page.goto("/datastores/library")
    page.get_by_label("Question").fill(QUESTION)
    page.keyboard.press("Enter")
    sync_api.expect(page.locator(".hits > li")).to_have_count(5)
    page.goto("/mixtures/three")
    assert not page.locator("#mixer-tool").is_visible()
    assert page.locator("noscript .note").is_visible()
    assert not page.locator("button.copy").first.is_visible()
    page.get_by_role("link", name="Next", exact=True).click()
    page.wait_for_url("**start=4#rows")
    context.close()
