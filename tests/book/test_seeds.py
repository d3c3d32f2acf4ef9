"""The record of several trainings by one recipe: what the tool writes, and that what is committed is up to date."""

import json
from pathlib import Path

import pytest
import seeds

from companion import recipes
from companion.recipes import RECIPES, DigitCNNRecipe

SMALL = DigitCNNRecipe().replace(data="digits", steps=2, batch_size=8, width=2)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(RECIPES, "small", SMALL)


def test_every_seed_is_trained_once(small, tmp_path, monkeypatch):
    path, runs = tmp_path / "small-seeds.json", tmp_path / "runs"
    seeds.measure("small", [1, 0], path, runs)
    found = json.loads(path.read_text())
    assert list(found["seeds"]) == ["0", "1"]
    assert found["recipe"] == seeds.settings_of(SMALL.settings())
    weights = {entry["weights sha256"] for entry in found["seeds"].values()}
    assert len(weights) == 2
    assert "accuracy" in found["seeds"]["0"]["metrics"]
    monkeypatch.setattr(seeds, "make_checkpoint", lambda *_, **__: pytest.fail("trained again"))
    seeds.measure("small", [0, 1], path, runs)


def test_a_record_of_another_recipe_is_begun_anew(small, tmp_path, monkeypatch):
    path = tmp_path / "small-seeds.json"
    seeds.measure("small", [0], path, tmp_path / "a")
    monkeypatch.setitem(RECIPES, "small", SMALL.replace(width=3))
    seeds.measure("small", [1], path, tmp_path / "b")
    assert list(json.loads(path.read_text())["seeds"]) == ["1"]


RECORDS = sorted(seeds.MEASUREMENTS.glob("*-seeds.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_committed_records_are_of_today_s_recipes(path: Path):
    found = json.loads(path.read_text())
    assert seeds.settings_of(recipes.RECIPES[found["name"]].settings()) == found["recipe"]
    assert len(found["seeds"]) >= 3
    assert len({entry["weights sha256"] for entry in found["seeds"].values()}) == len(
        found["seeds"]
    )
    assert len({entry["data sha256"] for entry in found["seeds"].values()}) == 1
