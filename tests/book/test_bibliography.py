"""The bibliography: every entry says what a reader needs, and every citation has an entry."""

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from pybtex.database import Entry, parse_file

BOOK = Path(__file__).resolve().parents[2] / "book"
WHERE = {
    "article": "journal",
    "inproceedings": "booktitle",
    "book": "publisher",
    "techreport": "institution",
    "phdthesis": "school",
    "misc": "howpublished",
}
CITATION = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    return dict(parse_file(BOOK / "references.bib").entries)


def plain(text: str) -> str:
    """Lower-case ASCII letters and digits of a piece of BibTeX, with spaces."""
    text = re.sub(r"\\[a-zA-Z]+\s*\{?\s*([a-zA-Z])?", r"\1", text.replace(r"\o", "o"))
    text = re.sub(r"\\.", "", text)
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9 ]", "", re.sub(r"[-/]", " ", text.lower()))


def first_author(entry: Entry) -> str:
    person = entry.persons["author"][0]
    names = [*person.prelast_names, *person.last_names]
    return plain("".join(names)).replace(" ", "")


def test_every_entry_has_author_title_year_and_place(entries):
    problems = []
    for key, entry in entries.items():
        if entry.type not in WHERE:
            problems.append(f"{key}: unknown kind {entry.type}")
            continue
        if not entry.persons.get("author"):
            problems.append(f"{key}: no author")
        for name in ("title", "year", WHERE[entry.type]):
            if not entry.fields.get(name, "").strip():
                problems.append(f"{key}: no {name}")
    assert not problems, "\n".join(problems)


def test_keys_agree_with_author_year_and_title(entries):
    problems = []
    for key, entry in entries.items():
        parts = re.fullmatch(r"([a-z]+)(\d{4})([a-z0-9]+)", key)
        if parts is None:
            problems.append(f"{key}: keys are author, year and a word of the title")
            continue
        author, year, word = parts.groups()
        if author != first_author(entry):
            problems.append(f"{key}: the first author is {first_author(entry)}")
        if year != entry.fields["year"]:
            problems.append(f"{key}: the year is {entry.fields['year']}")
        if word not in plain(entry.fields["title"]).split():
            problems.append(f"{key}: no word of {entry.fields['title']!r}")
    assert not problems, "\n".join(problems)


def test_no_paper_is_listed_twice(entries):
    titles = Counter(plain(entry.fields["title"]) for entry in entries.values())
    # Two editions of a textbook may share a title's beginning, never the whole of it.
    assert [title for title, count in titles.items() if count > 1] == []
    numbers = Counter(e.fields["eprint"] for e in entries.values() if "eprint" in e.fields)
    assert [number for number, count in numbers.items() if count > 1] == []


def test_arxiv_numbers_fit_the_years(entries):
    problems = []
    for key, entry in entries.items():
        number = entry.fields.get("eprint")
        if number is None:
            continue
        if not re.fullmatch(r"\d{4}\.\d{4,5}", number):
            problems.append(f"{key}: {number} is no arXiv number")
            continue
        posted, year = 2000 + int(number[:2]), int(entry.fields["year"])
        # Some papers were posted later than they appeared, none more than a year.
        if not posted - 1 <= year <= posted + 4:
            problems.append(f"{key}: posted in {posted}, published in {year}")
        if not 1 <= int(number[2:4]) <= 12:
            problems.append(f"{key}: {number} names no month")
    assert not problems, "\n".join(problems)


def prose() -> dict[str, str]:
    """The text of every page of the book, without code and outputs."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in BOOK.glob("*.md")}
    for path in BOOK.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[path.name] = "\n".join(
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
        )
    return texts


def test_citations_and_entries_are_the_same(entries):
    cited = {
        (name, key.strip())
        for name, text in prose().items()
        for keys in CITATION.findall(text)
        for key in keys.split(",")
    }
    assert len(cited) > 5, "hardly any citation found: has the way of citing changed?"
    missing = sorted(f"{name}: {key}" for name, key in cited if key not in entries)
    assert not missing, "\n".join(missing)
    # The file holds what the book stands on and nothing that nobody reads.
    assert not set(entries) - {key for _, key in cited}
