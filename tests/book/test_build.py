"""The built book read as text: links, anchors, pictures, and no address outside."""

import html
import re
import urllib.parse
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import build
import pytest
import yaml
from chapter_numbers import chapter_number

ROOT = Path(__file__).resolve().parents[2]
# Elements that make a browser fetch what they name.
FETCHING = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
}


@dataclass
class PageText(HTMLParser):
    """What the tests need of a page."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    images: list[dict] = field(default_factory=list)
    figures: int = 0
    captions: int = 0
    title: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._in_title = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        for key in ("id", "name"):
            if values.get(key):
                self.ids.add(values[key])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") in {
            "stylesheet",
            "preload",
            "icon",
            "modulepreload",
        }:
            self.fetched.append(values["href"])
        if tag in FETCHING and values.get(FETCHING[tag]):
            self.fetched.append(values[FETCHING[tag]])
        if tag == "img":
            self.images.append(values)
        self.figures += tag == "figure"
        self.captions += tag == "figcaption"
        self._in_title = self._in_title or tag == "title"

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data


@pytest.fixture(scope="module")
def pages(site, page_names) -> dict[str, PageText]:
    """The pages of the book, read."""
    texts = {}
    for name in page_names:
        texts[name] = PageText()
        texts[name].feed((site / name).read_text(encoding="utf-8"))
        texts[name].close()
    return texts


def _is_outside(address: str) -> bool:
    return bool(urllib.parse.urlsplit(address).scheme) or address.startswith("//")


def _target(page: str, address: str, site: Path) -> tuple[Path, str]:
    parts = urllib.parse.urlsplit(address)
    path = urllib.parse.unquote(parts.path)
    start = site if path.startswith("/") else (site / page).parent
    target = (start / path.lstrip("/")).resolve() if path else (site / page).resolve()
    return target, urllib.parse.unquote(parts.fragment)


def test_links_and_anchors_resolve(pages, site):
    broken = []
    by_file = {(site / name).resolve(): text for name, text in pages.items()}
    for name, text in pages.items():
        for link in map(html.unescape, text.links):
            if _is_outside(link) or link == "#":
                continue
            target, anchor = _target(name, link, site)
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                broken.append(f"{name}: {link}: no such page")
            elif anchor and target in by_file and anchor not in by_file[target].ids:
                broken.append(f"{name}: {link}: no such place on the page")
    assert not broken, "\n" + "\n".join(broken)


def test_whatever_a_page_fetches_is_in_the_book(pages, site):
    missing = []
    for name, text in pages.items():
        for address in text.fetched:
            if address.startswith("data:"):
                continue
            if _is_outside(address):
                missing.append(f"{name}: {address}: another host")
            elif not _target(name, address, site)[0].is_file():
                missing.append(f"{name}: {address}: no such file")
    assert not missing, "\n" + "\n".join(missing)


def test_style_sheets_and_scripts_name_no_other_host(site):
    own = [site / "_static" / "book.css", site / "_static" / "book.js"]
    for path in own:
        assert path.is_file(), f"{path.name} is not in the built book"
        assert not re.search(r"https?://|@import", path.read_text(encoding="utf-8"))
    imports = re.compile(r"@import[^;]*//|url\(\s*['\"]?(?:https?:)?//")
    for sheet in site.rglob("*.css"):
        found = imports.search(sheet.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{sheet.relative_to(site)} asks another host: {found[0]}"


def test_pictures_have_alternative_text_and_figures_captions(pages):
    problems = []
    for name, text in pages.items():
        for image in text.images:
            alt = image.get("alt")
            decorative = "logo__image" in (image.get("class") or "")
            if alt is None or (not alt.strip() and not decorative):
                problems.append(f"{name}: picture without alternative text: {str(image)[:120]}")
            elif re.fullmatch(r"\S*\.(png|svg|jpe?g)|[0-9a-f]{16,}", alt.strip()):
                problems.append(f"{name}: the alternative text is a file name: {alt[:80]}")
        if text.figures != text.captions:
            problems.append(f"{name}: {text.figures} figures, {text.captions} captions")
    assert not problems, "\n" + "\n".join(problems)


def test_every_page_of_the_contents_is_built_under_its_title(pages):
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    files = [contents["root"]]
    files += [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    for file in files:
        assert f"{file}.html" in pages
        title = pages[f"{file}.html"].title.strip()
        assert title, f"{file} has no title"
        assert not re.match(r"\d\d-|<no title>", title), f"{file} has the title {title!r}"


def test_chapters_have_the_numbers_of_their_files(site):
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    numbered = [
        c["file"] for part in contents["parts"] if part.get("numbered") for c in part["chapters"]
    ]
    numbers = [chapter_number(file) for file in numbered]
    assert numbers == sorted(set(numbers)), "the chapters are not in their order"
    front = (site / "book" / "index.html").read_text(encoding="utf-8")
    for number, file in zip(numbers, numbered, strict=True):
        page = (site / f"{file}.html").read_text(encoding="utf-8")
        heading = re.search(r'<h1><span class="section-number">(.*?)</span>', page)
        assert heading, f"{file}: the heading has no number"
        assert heading[1].strip() == f"{number}.", f"{file}: the heading says {heading[1]}"
        sections = set(re.findall(r'<h2><span class="section-number">(\d+)\.', page))
        assert sections == {str(number)}, f"{file}: its sections are numbered {sections}"
        link = re.search(rf'href="{file.removeprefix("book/")}.html">(\d+)\. ', front)
        assert link, f"{file}: not among the numbered contents"
        assert int(link[1]) == number, f"{file}: the contents say {link[1]}"


def test_the_root_leads_to_the_front_page(site):
    assert 'url=book/index.html"' in (site / "index.html").read_text(encoding="utf-8")


def test_nothing_but_the_book_is_published(page_names):
    generated = {"genindex.html", "search.html", "prf-prf.html"}
    stray = [name for name in page_names if not name.startswith("book/") and name not in generated]
    assert not stray, f"published by accident: {stray}"


# --- when it is built ---------------------------------------------------------------------------------


@pytest.fixture
def small_book(tmp_path, monkeypatch) -> Path:
    """A folder that looks like the repository, and a builder that counts how often it is called."""
    (tmp_path / "book" / "_static").mkdir(parents=True)
    for name in (
        "_config.yml",
        "_toc.yml",
        "requirements.txt",
        "book/01-a.ipynb",
        "book/_static/book.css",
    ):
        (tmp_path / name).write_text(name, encoding="utf-8")
    output = tmp_path / "_build" / "html"
    output.mkdir(parents=True)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "OUTPUT", output)
    return tmp_path


def test_a_book_is_built_when_something_changed_and_only_then(small_book, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(build, "build", lambda: calls.append(1) or 0)
    assert build.main() == build.main() == 0
    assert len(calls) == 1
    said = capsys.readouterr().out.splitlines()
    assert "is built. Open file://" in said[0]
    assert "was built already. Open file://" in said[1]
    for i, name in enumerate(
        ("_toc.yml", "requirements.txt", "book/_static/book.css", "book/new.md"), 2
    ):
        (small_book / name).write_text("changed", encoding="utf-8")
        assert build.main() == 0
        assert len(calls) == i, name
    (small_book / "book" / "new.md").unlink()
    assert build.main() == 0
    assert len(calls) == 6
    for stranger in ("README.md", "book/.cache", "book/x.pyc"):
        (small_book / stranger).write_text("changed", encoding="utf-8")
    assert build.main() == 0
    assert len(calls) == 6


def test_a_build_that_failed_is_not_taken_for_one(small_book, monkeypatch):
    results = [0, 3, 0]
    monkeypatch.setattr(build, "build", lambda: results.pop(0))
    assert build.main() == 0
    (small_book / "_toc.yml").write_text("changed", encoding="utf-8")
    assert build.main() == 3
    (small_book / "_toc.yml").write_text("_toc.yml", encoding="utf-8")  # as it was at first
    assert build.main() == 0
    assert not results
