"""The built book, a server for it, and a browser."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import FLAGS, find_chromium, serve

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "_build" / "html"
IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}


def _cannot(reason: str) -> None:
    """Skips and says why; on the machine that must have everything, fails."""
    (pytest.fail if IN_CI else pytest.skip)(reason)


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built book."""
    if not (BUILT / "index.html").is_file():
        _cannot("the book is not built: run `make book` first")
    return BUILT


@pytest.fixture(scope="session")
def page_names(site: Path) -> list[str]:
    """All pages of the book, as paths below the site; the redirect at the root is no page."""
    pages = (path.relative_to(site) for path in site.rglob("*.html"))
    return sorted(
        p.as_posix() for p in pages if p.parts[0] != "_static" and p.as_posix() != "index.html"
    )


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """The address at which the built book is served on this machine, without a slash at the end."""
    with serve(site) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Chromium, driven by Playwright."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        _cannot("playwright is not installed: pip install '.[test]'")
    with sync_playwright() as playwright:
        path = find_chromium()
        try:
            chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        except Error as error:
            _cannot(f"no browser: install chromium or name one in $CHROMIUM ({str(error)[:200]})")
        yield chromium
        chromium.close()
