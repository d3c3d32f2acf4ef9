"""The built book in a real browser: what readers see, and what the pages ask for."""

import re
from collections.abc import Iterator

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

# A page is loaded in each of these windows, then shown in the other colours too.
VIEWS = {"wide": (1280, "light"), "narrow": (390, "dark")}
OTHER = {"light": "dark", "dark": "light"}


class Visit:
    """A page in its own tab, with a record of everything that went wrong while it was open."""

    def __init__(self, context, address: str, name: str):
        self.name, self.problems = name, []
        self.page = context.new_page()
        self.page.on("request", lambda request: self._request(request.url, address))
        self.page.on("requestfailed", lambda r: self._note(f"request failed: {r.url[:120]}"))
        self.page.on(
            "response", lambda r: r.status >= 400 and self._note(f"status {r.status}: {r.url}")
        )
        self.page.on("console", lambda m: m.type == "error" and self._note(f"console: {m.text}"))
        self.page.on("pageerror", lambda error: self._note(f"script error: {error}"))
        self.page.goto(f"{address}/{name}", wait_until="load")
        # Formulas change the layout; wait until they stand.
        self.page.evaluate("() => window.MathJax?.startup?.promise")
        self.page.evaluate("() => document.fonts.ready.then(() => true)")

    def _note(self, problem: str) -> None:
        self.problems.append(f"{self.name}: {problem}")

    def _request(self, url: str, address: str) -> None:
        if not url.startswith((address + "/", "data:", "blob:")):
            self._note(f"asks another host: {url}")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *exception: object) -> None:
        self.page.close()


@pytest.fixture
def window(browser) -> Iterator[object]:
    """A wide, light browser window."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield context
    context.close()


def _violations(page) -> list[str]:
    """Runs axe on a page and words what it finds, whatever the impact."""
    from axe_playwright_python.sync_playwright import Axe

    report = Axe().run(page, options={"preload": False, "resultTypes": ["violations"]})
    return [
        f"axe {violation['id']} ({violation['impact']}): {node['html'][:160]}"
        for violation in report.response["violations"]
        for node in violation["nodes"]
    ]


def _faults(page, width: int, scheme: str) -> list[str]:
    """Returns what is wrong with a page as it stands in a window."""
    # The theme answers a change of the colour scheme a moment later; without it this raises.
    page.wait_for_function("s => document.documentElement.dataset.theme === s", arg=scheme)
    problems = []
    wide = page.evaluate("() => document.documentElement.scrollWidth")
    if wide > width:
        problems.append(f"is {wide} pixels wide in a window of {width}")
    raw = page.locator(".math:not(:has(mjx-container))").count()
    problems += [f"{raw} formulas are not set"] if raw else []
    errors = page.locator("mjx-merror, [data-mjx-error]").all_inner_texts()
    problems += [f"a formula has an error: {text}" for text in errors]
    return problems + _violations(page)


@pytest.mark.parametrize("view", VIEWS)
def test_pages_are_clean_accessible_and_fit_the_window(view, browser, address, page_names):
    width, scheme = VIEWS[view]
    # Without motion no colour is caught half-way through a transition.
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    problems = []
    for name in page_names:
        with Visit(context, address, name) as visit:
            for colours in (scheme, OTHER[scheme]):
                visit.page.emulate_media(color_scheme=colours)
                faults = _faults(visit.page, width, colours)
                problems += [f"{name}, {width} {colours}: {fault}" for fault in faults]
            problems += visit.problems
    context.close()
    assert not problems, "\n" + "\n".join(problems)


def test_search_finds_pages_and_its_results_lead_there(window, address):
    with Visit(window, address, "book/index.html") as visit:
        page = visit.page
        page.locator(".search-button__button, .search-button-field").first.click()
        field = page.locator(
            "dialog input[type='search'], .search-button__wrapper input[type='search']"
        )
        field.first.fill("likelihood")
        field.first.press("Enter")
        results = page.locator("#search-results li a")
        results.first.wait_for(timeout=15_000)
        titles = results.all_inner_texts()
        assert "Glossary" in titles, titles
        # The results load their pages for an excerpt; leaving earlier would count as failed requests.
        page.wait_for_load_state("networkidle")
        results.first.click()
        page.wait_for_load_state("load")
        assert re.search(r"/book/[\w-]+\.html", page.url), page.url
        assert "likelihood" in page.locator("article").inner_text().lower()
    assert not visit.problems, visit.problems


def test_search_says_so_when_nothing_is_found(window, address):
    with Visit(window, address, "search.html?q=xyzzyplugh") as visit:
        visit.page.locator("#search-results p").first.wait_for(timeout=15_000)
        assert visit.page.locator("#search-results li a").count() == 0


def _state(figure) -> tuple[str, str, str, str]:
    image, control = figure.locator("img").first, figure.locator("input[type='range']")
    return (
        image.get_attribute("src"),
        image.get_attribute("alt"),
        figure.locator("output").inner_text(),
        control.get_attribute("aria-valuetext"),
    )


def _use_slider(page, figure) -> list[str]:
    """Moves a slider by keyboard, then by mouse; returns what did not change."""
    control = figure.locator("input[type='range']")
    control.scroll_into_view_if_needed()
    problems = []
    before = _state(figure)
    at_end = control.input_value() == control.get_attribute("max")
    control.focus()
    page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
    after = _state(figure)
    names = ("picture", "alternative text", "number", "spoken value")
    problems += [f"keys: same {n}" for n, a, b in zip(names, before, after, strict=True) if a == b]

    page.keyboard.press("Home")
    before = _state(figure)
    box = control.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 8, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 4, middle, steps=6)
    page.mouse.up()
    after = _state(figure)
    problems += [f"mouse: same {n}" for n, a, b in zip(names, before, after, strict=True) if a == b]
    if control.input_value() != control.get_attribute("max"):
        problems.append("mouse: the slider did not follow")
    return problems


def test_sliders_change_their_pictures(window, address, site, page_names):
    problems, chapters, seen = [], set(), 0
    for name in page_names:
        if 'class="cmp-figure cmp-slider' not in (site / name).read_text(encoding="utf-8"):
            continue
        with Visit(window, address, name) as visit:
            for i in range((figures := visit.page.locator(".cmp-slider")).count()):
                seen += 1
                problems += [
                    f"{name}: slider {i + 1}: {p}" for p in _use_slider(visit.page, figures.nth(i))
                ]
            problems += visit.problems
        chapters.add(name)
    assert seen > 0, "no slider in the whole book: has the class of the figure changed?"
    assert not problems, "\n" + "\n".join(problems)
    numbered = {name for name in page_names if re.match(r"book/\d\d-", name)}
    assert chapters >= numbered, f"chapters without a slider: {sorted(numbered - chapters)}"


def test_solutions_are_folded_and_unfold(window, address, site, page_names):
    problems, seen = [], 0
    for name in page_names:
        if 'class="solution dropdown' not in (site / name).read_text(encoding="utf-8"):
            continue
        with Visit(window, address, name) as visit:
            solutions = visit.page.locator("div.solution.dropdown")
            for i in range(solutions.count()):
                seen += 1
                box = solutions.nth(i)
                content = box.locator(":scope > section, :scope > p:not(.admonition-title)").first
                if content.is_visible():
                    problems.append(f"{name}: solution {i + 1} lies open")
                box.locator(".admonition-title").first.click()
                visit.page.wait_for_timeout(50)
                if not content.is_visible():
                    problems.append(f"{name}: solution {i + 1} does not open")
    assert seen > 0, "no folded solution in the whole book"
    assert not problems, "\n" + "\n".join(problems)
