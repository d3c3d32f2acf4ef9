"""The pages beside the chapters: contents, map, glossary and the registry of claims."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
CHAPTERS = 22
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def contents() -> dict:
    return yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))


def listed_files() -> list[str]:
    parts = contents()["parts"]
    return [contents()["root"], *(c["file"] for part in parts for c in part["chapters"])]


def test_contents_and_files_agree():
    for file in listed_files():
        found = [path for path in ROOT.glob(f"{file}.*") if path.suffix in {".md", ".ipynb"}]
        assert len(found) == 1, f"{file}: {len(found)} sources"
    written = {f"book/{p.stem}" for p in BOOK.iterdir() if p.suffix in {".md", ".ipynb"}}
    assert written == set(listed_files()), "every page is in _toc.yml, and nothing else"


def test_the_map_lists_every_chapter_in_order_and_links_the_finished_ones():
    text = (BOOK / "index.md").read_text(encoding="utf-8")
    items = re.findall(r"^(\d+)\. (.*(?:\n   .*)*)", text, re.MULTILINE)
    assert [int(number) for number, _ in items] == list(range(1, CHAPTERS + 1))
    finished = {p.stem: int(p.stem[:2]) for p in BOOK.glob("[0-9][0-9]-*.ipynb")}
    for number, item in items:
        link = re.match(r"\[\]\(/book/([\w-]+)\)", item)
        if link:
            assert finished.get(link[1]) == int(number), f"chapter {number} links to {link[1]}"
            assert "*(to come)*" not in item
        else:
            assert item.endswith("*(to come)*"), f"chapter {number}: link it or mark it"
            assert int(number) not in finished.values(), f"chapter {number} is there: link it"


def glossary() -> list[tuple[str, str]]:
    text = (BOOK / "glossary.md").read_text(encoding="utf-8")
    body = re.search(r"```\{glossary\}\n(.*?)```", text, re.DOTALL)[1]
    return re.findall(r"^(\S.*)\n  (.+)$", body, re.MULTILINE)


def test_the_glossary_has_english_chinese_and_a_definition():
    entries = glossary()
    assert len(entries) >= 60
    names = [term.casefold() for term, _ in entries]
    assert len(names) == len(set(names)), "a term is explained twice"
    proper = {"DALL-E", "GLIDE"}
    for term, definition in entries:
        assert CHINESE.search(definition) or term in proper, f"{term} has no Chinese name"
        assert len(definition.split(". ", 1)[-1]) >= 25, f"{term} is hardly defined"


@pytest.mark.parametrize(
    "term",
    [
        "GAN",
        "VAE",
        "FID",
        "IS",
        "PSNR",
        "HMM",
        "GMM",
        "SVM",
        "KNN",
        "MAE",
        "DAE",
        "VQ-VAE",
        "U-Net",
    ],
)
def test_the_glossary_knows_the_notes_abbreviations(term):
    pattern = re.compile(rf"(^|\(){re.escape(term)}($|\))")
    assert any(pattern.search(name) for name, _ in glossary())


def test_claims_are_well_formed():
    claims = yaml.safe_load((BOOK / "claims.yml").read_text(encoding="utf-8"))
    for name, claim in claims.items():
        assert re.fullmatch(r"[A-Z]+-\d+", name)
        assert set(claim) == {"chapter", "text", "verdict", "explanation"}, name
        assert claim["verdict"] in {"true", "nuanced", "wrong"}, name
        assert 1 <= int(claim["chapter"][:2]) <= CHAPTERS, name
        for field in ("text", "explanation"):
            assert claim[field][0].isupper(), f"{name}: {field} starts with a capital"
            assert claim[field].endswith("."), f"{name}: {field} ends with a full stop"


def test_claims_of_one_family_are_numbered_without_gaps():
    claims = yaml.safe_load((BOOK / "claims.yml").read_text(encoding="utf-8"))
    families: dict[str, list[int]] = {}
    for name in claims:
        family, number = name.rsplit("-", 1)
        families.setdefault(family, []).append(int(number))
    for family, numbers in families.items():
        assert numbers == list(range(1, len(numbers) + 1)), family
