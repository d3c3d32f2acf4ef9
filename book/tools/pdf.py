"""Makes one PDF of the built book: Chromium prints every page, pypdf joins them and adds bookmarks.

Usage: python book/tools/pdf.py [OUTPUT]
The pages come in the order of `_toc.yml`. Chromium is looked for in `$CHROMIUM` and on the path; failing that,
the one that Playwright has installed is used.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from chromium import FLAGS, find_chromium, serve

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "_build" / "html"
OUTPUT = ROOT / "_build" / "pdf" / "generative-models-measured.pdf"
TITLE = "Generative Models, Measured"
FOOTER = (
    '<div style="font-size: 7pt; width: 100%; text-align: center; font-family: sans-serif; color: #555">'
    '<span class="title"></span> · <span class="pageNumber"></span></div>'
)


def listed_pages() -> list[tuple[str | None, str]]:
    """Returns (part or nothing, page below the site) in the order of the contents."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages: list[tuple[str | None, str]] = [(None, contents["root"])]
    for part in contents["parts"]:
        pages += [(part["caption"], chapter["file"]) for chapter in part["chapters"]]
    return [(part, f"{file}.html") for part, file in pages]


def print_pages(names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Prints pages of the built book.

    Args:
        names: pages below the site.

    Yields:
        The heading of each page, and the page as PDF.
    """
    from playwright.sync_api import sync_playwright

    with serve(BUILT) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        page = browser.new_page(color_scheme="light")
        for name in names:
            page.goto(f"{address}/{name}", wait_until="load")
            page.evaluate("() => window.MathJax?.startup?.promise")
            page.evaluate("() => document.fonts.ready.then(() => true)")
            # What is folded on the screen is open on paper.
            page.evaluate(
                "() => document.querySelectorAll('details').forEach((d) => (d.open = true))"
            )
            heading = page.locator("article h1").first.inner_text().rstrip("#").strip()
            content = page.pdf(
                format="A4",
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER,
                margin={"top": "18mm", "bottom": "18mm", "left": "17mm", "right": "17mm"},
            )
            yield re.sub(r"\s+", " ", heading), content
        browser.close()


def make_pdf(output: Path = OUTPUT) -> int:
    """Writes the book as one PDF.

    Args:
        output: the file to write.

    Returns:
        The number of its pages.

    Raises:
        FileNotFoundError: if a page of the contents is not built.
    """
    from pypdf import PdfReader, PdfWriter

    pages = listed_pages()
    missing = [name for _, name in pages if not (BUILT / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is not in {BUILT}: run `make book` first")
    writer = PdfWriter()
    current, bookmark = None, None
    for (part, _), (heading, content) in zip(
        pages, print_pages([name for _, name in pages]), strict=True
    ):
        start = len(writer.pages)
        for page in PdfReader(io.BytesIO(content)).pages:
            writer.add_page(page)
        if part != current:
            current, bookmark = part, writer.add_outline_item(title=part, page_number=start)
        writer.add_outline_item(title=heading, page_number=start, parent=bookmark)
    # The pages' common fonts and pictures are kept once.
    writer.compress_identical_objects(remove_duplicates=True, remove_unreferenced=True)
    writer.add_metadata({"/Title": TITLE, "/Author": f"The authors of {TITLE}"})
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".part")
    with partial.open("wb") as file:
        writer.write(file)
    partial.replace(output)
    return len(writer.pages)


def main() -> int:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    try:
        count = make_pdf(output)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{count} pages in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
