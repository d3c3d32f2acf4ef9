"""Every claim of a finished chapter is measured once, put at risk, and has the registry's verdict."""

import ast
import math
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import yaml

from companion.display.claims import VERDICTS, Claim, Condition, Control, Nuance

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = yaml.safe_load((ROOT / "book" / "claims.yml").read_text(encoding="utf-8"))

# How many claims the lecture notes make in each family.
FAMILIES = {"BG": 6, "TK": 6, "EV": 1, "IS": 3, "FID": 1, "PS": 3}
FAMILIES |= {"GAN": 13, "AR": 3, "AE": 3, "DAE": 4, "VAE": 5, "VG": 4, "VQ": 6, "DE": 1}
FAMILIES |= {"DF": 8, "DD": 3, "ID": 3, "CG": 2, "GL": 1}


# Chapters whose claims still have a stated verdict and an interval. No chapter may be added to it.
OLDER_FORM = {
    "01-generative-vs-discriminative",
    "02-the-generative-task",
    "03-inception-score",
    "04-fid",
    "05-psnr",
    "08-autoencoder",
    "09-denoising-autoencoder",
    "10-vae",
}


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


def condition_of(record: dict) -> Condition:
    return Condition(
        record["kind"], tuple(float(bound) for bound in record["bounds"]), record["because"]
    )


def checked(record: dict) -> str:
    """Computes a claim's verdict again from its record, with all the refusals of `claim`."""
    nuance = record["nuance"] and Nuance(
        "as on the card", record["nuance"]["value"], condition_of(record["nuance"]["shown_if"])
    )
    card = Claim(
        record["claim"],
        "",
        record["value"],
        record["spread"],
        condition_of(record["refuted_if"]),
        Control(**record["control"]),
        nuance,
        because="as on the card",
        format="g",
        unit="",
    )
    card.check()
    return card.verdict


def fault(chapter: str, record: dict) -> str | None:
    """Says what is wrong with the record of a measurement, if anything."""
    if "between" in record:
        if chapter not in OLDER_FORM:
            return "has an interval and a stated verdict; give refuted_if= and control="
        low, high = record["between"]
        if math.isinf(low) and math.isinf(high):
            return "has an interval open to everything"
        if not low <= record["value"] <= high:
            return "is not in its interval"
        return None
    try:
        verdict = checked(record)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        return str(error)
    if verdict != record["verdict"]:
        return f"says {record['verdict']!r} where its numbers say {verdict!r}"
    return None


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
    assert chapter == REGISTRY[id]["chapter"]
    assert fault(chapter, record) is None
    assert record["verdict"] == REGISTRY[id]["verdict"]


NEW = {
    "claim": "GAN-9",
    "value": 6.0,
    "spread": 0.5,
    "refuted_if": {"kind": "below", "bounds": [4.0], "because": "a circle scores less"},
    "control": {"name": "a circle", "value": 3.0, "spread": None},
    "nuance": None,
    "verdict": "true",
}
OLD = {"claim": "IS-1", "value": 6.0, "between": [4.0, 8.0], "verdict": "true"}
SHOWN = {"value": 2.0, "shown_if": {"kind": "above", "bounds": [1], "because": "r"}}


def test_records_in_order_have_no_fault():
    assert fault("12-vq-vae", NEW) is None
    assert fault("12-vq-vae", {**NEW, "verdict": "nuanced", "nuance": SHOWN}) is None
    assert fault("04-fid", OLD) is None


@pytest.mark.parametrize(
    ("chapter", "record", "words"),
    [
        ("12-vq-vae", OLD, "give refuted_if="),
        ("04-fid", {**OLD, "between": [-math.inf, math.inf]}, "open to everything"),
        ("04-fid", {**OLD, "value": 9.0}, "not in its interval"),
        ("12-vq-vae", {**NEW, "control": {"name": "c", "value": 7.0, "spread": None}}, "control"),
        ("12-vq-vae", {**NEW, "control": {"name": "c", "value": 6.0, "spread": None}}, "itself"),
        ("12-vq-vae", {**NEW, "control": {"name": "c", "value": 3.8, "spread": 0.3}}, "spread"),
        ("12-vq-vae", {k: v for k, v in NEW.items() if k != "control"}, "control"),
        (
            "12-vq-vae",
            {**NEW, "refuted_if": {"kind": "below", "bounds": [-math.inf], "because": "r"}},
            "finite",
        ),
        (
            "12-vq-vae",
            {**NEW, "refuted_if": {"kind": "below", "bounds": [4.0], "because": ""}},
            "because",
        ),
        ("12-vq-vae", {**NEW, "verdict": "wrong"}, "numbers say 'true'"),
        ("12-vq-vae", {**NEW, "nuance": SHOWN}, "numbers say 'nuanced'"),
    ],
)
def test_records_at_fault_are_refused(chapter, record, words):
    assert words in fault(chapter, record)


def test_the_older_form_dies_out():
    measured = {chapter for chapter, record in MEASURED if "between" in record}
    assert measured == OLDER_FORM, "a chapter that has moved over leaves the set"


def test_bounds_are_written_before_the_run():
    """A bound that is computed in the cell is drawn round the result."""
    computed = []
    for path in sorted((ROOT / "book").glob("[0-9][0-9]-*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                computed += [f"{path.stem}: {call}" for call in computed_bounds(cell.source)]
    assert not computed


def computed_bounds(source: str) -> list[str]:
    """Finds the conditions in a cell whose bounds are not written as numbers."""
    lines = (line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    calls = (node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.Call))
    return [
        ast.unparse(call)
        for call in calls
        if isinstance(call.func, ast.Name)
        and call.func.id in ("above", "below", "outside", "inside")
        and any(keyword.arg == "because" for keyword in call.keywords)
        and any(isinstance(node, ast.Name) for bound in call.args for node in ast.walk(bound))
    ]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("%time\nbelow(4.0, because=f'{x}')", 0),
        ("outside(-1, 2 / 3, because='r')", 0),
        ("below(value - 1, because='r')", 1),
        ("claim('X', v, refuted_if=inside(0.4, high, because='r'))", 1),
        ("inside(x)", 0),
    ],
)
def test_computed_bounds_are_found(source, found):
    assert len(computed_bounds(source)) == found


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
