"""The built book in a real browser: what readers see, and what the pages ask for.

Each page is a test of its own, so that several processes can share the pages. It is loaded twice, in a wide window and
in a narrow one; while it is open, everything is tried on it, in light colours and in dark ones.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from companion.display import slider

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

BUILT = Path(__file__).resolve().parents[2] / "_build" / "html"
PAGES = sorted(
    name
    for path in BUILT.rglob("*.html")
    if not (name := path.relative_to(BUILT).as_posix()).startswith("_static")
    and name != "index.html"  # the redirect at the root
)
# A page is loaded in each of these windows, then shown in the other colours too.
VIEWS = {"wide": (1280, "light"), "narrow": (390, "dark")}
OTHER = {"light": "dark", "dark": "light"}
# The rules of axe whose answer depends on colours; all others say the same of a page in both colours.
ABOUT_COLOURS = ("color-contrast", "link-in-text-block")
# Marks three elements, if there are so many, of each way in which text looks on a page: its colour, size, weight and
# opacity, and what lies behind it. The rules about colours say the same of all that look alike, and take most of a
# minute for the ten thousand elements of a chapter, which has some fifty looks.
MARK_LOOKS = """() => {
    const known = new Map([[null, {paint: '', opacity: 1}]]);
    const around = element => {
        if (!known.has(element)) {
            const s = getComputedStyle(element), outer = around(element.parentElement);
            const own = s.backgroundImage + s.backgroundColor;
            const none = own === 'nonergba(0, 0, 0, 0)', solid = own.startsWith('nonergb(');
            const paint = none ? outer.paint : solid ? own : own + ' on ' + outer.paint;
            known.set(element, {paint, opacity: s.opacity * outer.opacity});
        }
        return known.get(element);
    };
    document.querySelectorAll('[data-look]').forEach(e => e.removeAttribute('data-look'));
    const looks = new Map();
    for (const element of document.querySelectorAll('body *')) {
        if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
        const s = getComputedStyle(element), {paint, opacity} = around(element);
        const parts = [s.color, s.textShadow, s.fontSize, s.fontWeight, s.textDecorationLine];
        const look = [...parts, element.localName === 'a', opacity, paint].join('|');
        looks.set(look, [...(looks.get(look) || []), element]);
    }
    for (const alike of looks.values())
        for (const i of [0, alike.length >> 1, alike.length - 1])
            alike[i].setAttribute('data-look', '');
}"""
# One page of each kind; on these the rules about colours see every element.
FRAMES = {"book/index.html", "book/glossary.html", "book/04-fid.html"}


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


@pytest.fixture(scope="session")
def windows(browser) -> Iterator[dict[str, object]]:
    """A browser window of each size, for all pages."""
    # Without motion no colour is caught half-way through a transition.
    made = {
        view: browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        for view, (width, scheme) in VIEWS.items()
    }
    yield made
    for window in made.values():
        window.close()


@pytest.fixture
def window(windows) -> object:
    """The wide, light window."""
    return windows["wide"]


def _axe(page, rules: dict, context: dict | None = None) -> list[str]:
    """Runs rules of axe on a page and words what they find, whatever the impact."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"preload": False, "resultTypes": ["violations"]} | rules
    return [
        f"axe {violation['id']} ({violation['impact']}): {node['html'][:160]}"
        for violation in Axe().run(page, context, options).response["violations"]
        for node in violation["nodes"]
    ]


def _about_all_but_colours(page) -> list[str]:
    return _axe(page, {"rules": {rule: {"enabled": False} for rule in ABOUT_COLOURS}})


def _about_colours(page, *, every_element: bool = False) -> list[str]:
    """Says which texts are too faint: of all elements, or of some of each look."""
    only = {"runOnly": {"type": "rule", "values": list(ABOUT_COLOURS)}}
    if every_element:
        return _axe(page, only)
    page.evaluate(MARK_LOOKS)
    return _axe(page, only, {"include": [["[data-look]"]]})


def _faults(page, width: int, scheme: str) -> list[str]:
    """Returns what is wrong with a page as it stands in a window, its colours aside."""
    # The theme answers a change of the colour scheme a moment later; without it this raises.
    page.wait_for_function("s => document.documentElement.dataset.theme === s", arg=scheme)
    problems = []
    wide = page.evaluate("() => document.documentElement.scrollWidth")
    if wide > width:
        problems.append(f"is {wide} pixels wide in a window of {width}")
    raw = page.locator(".math:not(:has(mjx-container))").count()
    problems += [f"{raw} formulas are not set"] if raw else []
    errors = page.locator("mjx-merror, [data-mjx-error]").all_inner_texts()
    return problems + [f"a formula has an error: {text}" for text in errors]


@pytest.mark.parametrize("name", PAGES or ["not built"])
def test_page_is_clean_accessible_fits_the_window_and_works(name, site, windows, address):
    source = (site / name).read_text(encoding="utf-8")
    problems = []
    for view, (width, scheme) in VIEWS.items():
        with Visit(windows[view], address, name) as visit:
            for colours in (scheme, OTHER[scheme]):
                visit.page.emulate_media(color_scheme=colours)
                faults = _faults(visit.page, width, colours)
                every = name in FRAMES and colours == scheme
                faults += _about_colours(visit.page, every_element=every)
                if colours == scheme:
                    faults += _about_all_but_colours(visit.page)
                problems += [f"{width} {colours}: {fault}" for fault in faults]
            if view == "wide":
                visit.page.emulate_media(color_scheme=scheme)
                problems += _use_sliders(visit.page, source.count('class="cmp-figure cmp-slider'))
                problems += _unfold(visit.page, source.count('class="solution dropdown'))
            problems += visit.problems
    assert not problems, "\n" + "\n".join(problems)


def test_there_are_pages_of_each_kind(site, page_names):
    """What the test of a page tries is there to be tried: sliders in every chapter, folded solutions, the frames."""
    assert page_names == PAGES
    assert set(page_names) >= FRAMES
    for name in page_names:
        source = (site / name).read_text(encoding="utf-8")
        if re.match(r"book/\d\d-", name):
            assert 'class="cmp-figure cmp-slider' in source, f"{name} has no slider"
            assert 'class="solution dropdown' in source, f"{name} has no folded solution"


FAINT = {
    "by its colour": "<p>Or <b style='color: #bbb'>hardly to be read</b>.</p>",
    "by the opacity of what it stands in": "<div style='opacity: .3'><p>Hardly to be read.</p></div>",
    "by a veil behind it": "<div style='background: #000'><p style='background: #0007; color: #333'>No.</p></div>",
}


@pytest.mark.parametrize("faint", FAINT.values(), ids=FAINT)
def test_a_faint_text_is_found_in_either_way(faint, window):
    """However often its look occurs, and whatever occurs before it."""
    page = window.new_page()
    good = "<p>Black on white.</p><p style='background: #000; color: #fff'>White on black.</p>"
    page.set_content(
        "<html lang=en><title>t</title><style>body { color: #000; background: #fff }</style>"
        f"<main><h1>t</h1>{good * 3}{faint * 3}<img src='data:,'></main>"
    )
    found = [
        {problem.split()[1] for problem in problems}
        for problems in (
            _about_colours(page),
            _about_colours(page, every_element=True),
            _about_all_but_colours(page),
        )
    ]
    page.close()
    assert found[0] == found[1] == {"color-contrast"}
    assert found[2] >= {"image-alt"}
    assert "color-contrast" not in found[2]


def test_the_same_slider_works_twice_on_a_page(window):
    """Neither has an id, so neither gets in the other's way."""

    def grey(level: float) -> torch.Tensor:
        return torch.full((1, 8, 8), level)

    html = slider(grey, [-1.0, 0.0, 1.0], name="grey", alt="a square", caption="It brightens.").html
    page = window.new_page()
    page.set_content(f"<main>{html}{html}</main>")
    first, second = (page.locator("figure").nth(i) for i in (0, 1))
    before = _state(first)
    assert _state(second) == before
    second.locator("input").focus()
    page.keyboard.press("ArrowRight")
    assert _state(first) == before
    assert all(a != b for a, b in zip(_state(second), before, strict=True))
    first.locator("input").focus()
    page.keyboard.press("ArrowRight")
    assert _state(first) == _state(second)
    page.close()


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


def _use_sliders(page, expected: int) -> list[str]:
    """Moves every slider of a page; returns what did not change."""
    figures = page.locator(".cmp-slider")
    if (found := figures.count()) != expected:
        return [f"{found} sliders on the page, {expected} in its source"]
    return [
        f"slider {i + 1}: {problem}"
        for i in range(found)
        for problem in _use_slider(page, figures.nth(i))
    ]


def _unfold(page, expected: int) -> list[str]:
    """Opens every folded solution of a page; returns what was open before or does not open."""
    problems = []
    solutions = page.locator("div.solution.dropdown")
    if (found := solutions.count()) != expected:
        problems.append(f"{found} folded solutions on the page, {expected} in its source")
    for i in range(found):
        box = solutions.nth(i)
        content = box.locator(":scope > section, :scope > p:not(.admonition-title)").first
        if content.is_visible():
            problems.append(f"solution {i + 1} lies open")
        box.locator(".admonition-title").first.click()
        page.wait_for_timeout(50)
        if not content.is_visible():
            problems.append(f"solution {i + 1} does not open")
    return problems
