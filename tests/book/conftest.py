"""The built book, a server for it, and a browser."""

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "_build" / "html"
IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}
# A browser under test must not call home.
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
]


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


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """The address at which the built book is served on this machine, without a slash at the end."""
    handler = functools.partial(_QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def find_chromium() -> str | None:
    """Looks for Chromium: `$CHROMIUM`, then the usual names on the path."""
    if named := os.environ.get("CHROMIUM"):
        return named
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


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
