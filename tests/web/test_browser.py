"""Seven kinds of page in a real browser: no other host, no error, nothing axe objects to."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from built_site import BuiltSite

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = {
    "home": "",
    "topic": "topics/attention/",
    "timeline": "timeline/",
    "paper": "attention/squeeze-excitation/",
    "survey": "attention/survey/",
    "companion": "companion/transformers/mha/",
    "guide": "guides/tmux-usage/",
}


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A test report needs no access log."""


@pytest.fixture(scope="module")
def address(site: BuiltSite) -> Iterator[str]:
    """The built site, served on this machine."""
    handler = partial(_QuietHandler, directory=str(site.folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def watch(page: Page, address: str) -> list[str]:
    """Block every other host and collect what goes wrong on the page."""
    wrong: list[str] = []

    def route(route: Any) -> None:
        url = route.request.url
        if url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            wrong.append(f"request to another host: {url}")
            route.abort()

    page.route("**/*", route)
    page.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"script error: {error}"))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.on(
        "response",
        lambda answer: (
            wrong.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None
        ),
    )
    return wrong


def violations(page: Page) -> list[str]:
    """What axe-core finds, a line for each rule and place."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['target']} {node['html'][:120]}"
        for rule in found
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("kind", PAGES)
def test_page(browser: Browser, address: str, kind: str, width: int, scheme: Any) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    wrong = watch(page, address)
    page.goto(address + PAGES[kind], wait_until="networkidle")
    assert (
        page.get_attribute("body", "data-md-color-scheme")
        == {"light": "default", "dark": "slate"}[scheme]
    )
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    found = violations(page)
    context.close()
    assert wrong == []
    assert overflow <= 0, f"the page scrolls sideways by {overflow} px"
    assert found == [], f"{len(found)} places:\n" + "\n".join(found[:20])


def test_no_sideways_scroll_at_360_px(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740})
    for path in PAGES.values():
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
    page.close()


@pytest.mark.parametrize("ready", [False, True])
def test_search_finds_english_and_chinese(browser: Browser, address: str, ready: bool) -> None:
    """Text that no key wrote, before and after the index is there."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    for query, wanted in (("squeeze excitation", "squeeze-excitation"), ("注意力", "attention")):
        page.goto(address)
        page.keyboard.press("f")
        if ready:
            page.wait_for_function(
                "document.querySelector('.md-search-result__meta').textContent.match(/Type to/)"
            )
        page.locator(".md-search__input").fill(query)
        first = page.locator(".md-search-result__link").first
        first.wait_for()
        links = page.locator(".md-search-result__link").evaluate_all("all => all.map(a => a.href)")
        assert any(wanted in link for link in links[:5]), (query, links[:5])
    page.close()


def test_copy_buttons_copy_what_runs(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(address + PAGES["paper"])
    row = page.locator(".mg-row:has(#SqueezeExcite)")
    row.hover()
    row.locator(".mg-run-copy").click()
    row.get_by_text("Copied", exact=True).wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    context.close()
    exec(compile(copied, "<clipboard>", "exec"), {"__name__": "clipboard"})
    assert "class SqueezeExcite" in copied


def test_shapes_switch_off_and_stay_off(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(address + PAGES["paper"])
    shape = page.locator(".mg-shape").first
    assert shape.is_visible()
    page.locator(".mg-shapes-toggle").click()
    assert not shape.is_visible()
    page.reload()
    assert not page.locator(".mg-shape").first.is_visible()
    page.close()


def test_a_table_sorts_by_number_and_by_text(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(address + PAGES["survey"])
    table = page.locator(".mg-rich table")

    def column(number: int) -> list[str]:
        return table.locator(f"tbody td:nth-child({number})").all_inner_texts()

    names = column(1)
    for number, key in ((3, lambda text: float(text.replace(",", ""))), (1, str.lower)):
        head = table.locator(f"thead th:nth-child({number})")
        for order in ("ascending", "descending"):
            head.get_by_role("button").press("Enter")
            assert head.get_attribute("aria-sort") == order
            values = [key(text) for text in column(number)]
            assert values == sorted(values, reverse=order == "descending")
        assert table.locator("[aria-sort]").count() == 1
    assert sorted(column(1)) == sorted(names)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_line_numbers_can_be_read(browser: Browser, address: str, scheme: Any) -> None:
    """axe does not look at what CSS writes."""
    page = browser.new_page(color_scheme=scheme)
    page.goto(address + PAGES["paper"])
    ink, opacity, sheet = page.evaluate(
        """() => {
          const number = getComputedStyle(document.querySelector(".mg-ln"), "::before");
          const sheet = getComputedStyle(document.querySelector(".mg-code"));
          return [number.color, number.opacity, sheet.backgroundColor];
        }"""
    )
    page.close()
    assert opacity == "1"
    light, dark = sorted(map(luminance, (ink, sheet)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def luminance(color: str) -> float:
    """Of `rgb(1, 2, 3)`, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_fingers_find_the_copy_buttons(browser: Browser, address: str) -> None:
    phone = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    page = phone.new_page()
    page.goto(address + PAGES["paper"])
    tools = page.locator(".mg-tools").first
    assert tools.evaluate("it => getComputedStyle(it).opacity") == "1"
    above = tools.bounding_box()
    code = page.locator(".mg-pre").first.bounding_box()
    phone.close()
    assert above
    assert code
    assert above["y"] + above["height"] <= code["y"] + 1, "the buttons hide code"


def test_a_focused_shape_keeps_its_tip_when_the_page_scrolls(
    browser: Browser, address: str
) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 700})
    page.goto(address + PAGES["paper"])
    beside = """() => {
      const [tip, place] = [document.querySelector(".mg-tip"), document.activeElement].map((it) =>
        it.getBoundingClientRect());
      const [above, below] = [place.top - tip.bottom, tip.top - place.top];
      return tip.height > 0 && ((0 <= above && above < 30) || (0 < below && below < 30));
    }"""
    for shape in page.locator(".mg-shape").all():
        shape.focus()
        page.wait_for_function(beside)
    page.keyboard.press("Escape")
    assert not page.locator(".mg-tip").is_visible()
    page.close()


def test_what_is_selected_is_the_code(browser: Browser, address: str) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(address + PAGES["paper"])
    row = page.locator(".mg-code:has(.mg-shape)").first
    selected = row.evaluate(
        """row => {
          getSelection().selectAllChildren(row);
          return getSelection().toString();
        }"""
    )
    shape = row.locator(".mg-shape").first.text_content()
    page.close()
    assert shape
    assert shape not in selected
    assert "Copy" not in selected


def test_all_shapes_are_there_without_scripts(browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address + PAGES["paper"])
    assert page.locator(".mg-more").first.is_visible()
    assert not page.locator(".mg-count").first.is_visible()
    assert not page.locator(".mg-shapes-toggle").is_visible()
    assert not page.locator(".mg-copy").first.is_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_is_white(browser: Browser, address: str, scheme: Any) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": 720, "height": 1000})
    page.goto(address + PAGES["paper"])
    page.emulate_media(media="print", color_scheme=scheme)
    ink = page.locator(".mg-prose p").first.evaluate("it => getComputedStyle(it).color")
    shown = page.locator(".mg-figure img").evaluate_all(
        "all => all.filter(it => getComputedStyle(it).display != 'none').map(it => it.className)"
    )
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    page.close()
    assert luminance(ink) < 0.1
    assert set(shown) == {"mg-light"}
    assert overflow <= 0
