"""Every claim of a finished chapter is measured once, within its interval, with the registry's verdict."""

from collections import Counter
from pathlib import Path

import nbformat
import pytest
import yaml

from companion.display.claims import VERDICTS

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = yaml.safe_load((ROOT / "book" / "claims.yml").read_text(encoding="utf-8"))

# How many claims the lecture notes make in each family.
FAMILIES = {"BG": 6, "TK": 6, "EV": 1, "IS": 3, "FID": 1, "PS": 3}
FAMILIES |= {"GAN": 13, "AR": 3, "AE": 3, "DAE": 4, "VAE": 5, "VG": 4, "VQ": 6, "DE": 1}
FAMILIES |= {"DF": 8, "DD": 3, "ID": 3, "CG": 2, "GL": 1}


def measurements() -> list[tuple[str, dict]]:
    """Reads (chapter, record) of every claim card in the committed notebooks."""
    return [
        (path.stem, output.metadata["companion"])
        for path in sorted((ROOT / "book").glob("[0-9][0-9]-*.ipynb"))
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "claim" in output.get("metadata", {}).get("companion", {})
    ]


MEASURED = measurements()
FINISHED = {path.stem for path in (ROOT / "book").glob("[0-9][0-9]-*.ipynb")}


def test_registry_has_every_claim():
    expected = {f"{family}-{i}" for family, n in FAMILIES.items() for i in range(1, n + 1)}
    assert set(REGISTRY) == expected


@pytest.mark.parametrize("id", REGISTRY)
def test_registry_entry_is_whole(id):
    entry = REGISTRY[id]
    assert set(entry) == {"chapter", "text", "verdict", "explanation"}
    assert entry["verdict"] in VERDICTS
    assert all(isinstance(entry[key], str) and entry[key].strip() for key in entry)


@pytest.mark.parametrize(
    "id", [id for id, entry in REGISTRY.items() if entry["chapter"] in FINISHED]
)
def test_claim_is_measured_once_and_holds(id):
    records = [(chapter, record) for chapter, record in MEASURED if record["claim"] == id]
    assert len(records) == 1, f"{id} is measured {len(records)} times"
    chapter, record = records[0]
    low, high = record["between"]
    assert chapter == REGISTRY[id]["chapter"]
    assert low <= record["value"] <= high
    assert record["verdict"] == REGISTRY[id]["verdict"]


def test_no_stray_measurements():
    counts = Counter(record["claim"] for _, record in MEASURED)
    assert set(counts) <= set(REGISTRY)


def test_the_first_five_chapters_measure_twenty_claims():
    first = [
        id
        for id, entry in REGISTRY.items()
        if entry["chapter"][:2] in ("01", "02", "03", "04", "05")
    ]
    assert len(first) == 20
    assert set(first) <= {record["claim"] for _, record in MEASURED}
