"""The lazy registry: names and summaries at once, a recipe when it is asked for."""

import subprocess
import sys

import pytest

from companion.recipes import RECIPES, DigitCNNRecipe
from companion.recipes.registry import ENTRIES, Recipes


@pytest.mark.parametrize("name", list(ENTRIES))
def test_every_entry_leads_to_its_recipe(name):
    recipe = RECIPES[name]
    assert type(recipe).__name__ == ENTRIES[name].kind
    assert RECIPES[name] is recipe
    settings = recipe.settings()
    assert {k: settings[k] for k in ENTRIES[name].settings} == ENTRIES[name].settings


def test_variants_differ_in_nothing_else():
    for name in ("gan-cifar10", "vae-gan-pixels"):
        default, recipe = type(RECIPES[name])().settings(), RECIPES[name].settings()
        changed = {k for k in recipe if recipe[k] != default[k]}
        assert changed <= set(ENTRIES[name].settings)


def test_it_behaves_as_a_mapping():
    found = Recipes(ENTRIES)
    assert list(found) == sorted(ENTRIES)
    assert len(found) == len(ENTRIES)
    assert "gan" in found
    assert "gam" not in found
    with pytest.raises(KeyError):
        found["gam"]
    mine = DigitCNNRecipe(steps=3)
    found["mine"] = mine
    assert found["mine"] is mine
    assert found.summary("mine").startswith("The digit classifier")
    assert len(found) == len(ENTRIES) + 1
    del found["mine"], found["gan"]
    assert "mine" not in found
    assert "gan" not in found
    assert "gan" in RECIPES
    with pytest.raises(KeyError):
        del found["gan"]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown recipe 'gam'. Did you mean 'gan'\?.*See the list"
    ):
        RECIPES.find("gam", "See the list.")
    assert RECIPES.find("gan") is RECIPES["gan"]


def test_names_and_summaries_need_no_pytorch():
    program = (
        "import sys\n"
        "from companion.recipes import RECIPES\n"
        "for name in RECIPES: print(name, RECIPES.summary(name))\n"
        "print([m for m in ('torch', 'lightning_fabric', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert len(lines) == len(ENTRIES) + 1


def test_everything_that_is_promised_is_there():
    import companion.recipes as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing
