"""Recipes: what goes into a training set, what the cards of the checkpoints say, and checkpoints from Python."""

import json
import math
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from companion import recipes
from companion.checkpoints import checkpoint_names, load_card, load_checkpoint
from companion.data import ImageDataset, load
from companion.metrics.digit_cnn import DigitCNN
from companion.recipes import (
    RECIPES,
    DigitCNNRecipe,
    Interrupted,
    Recipe,
    finite,
    make_checkpoint,
    network_of,
    recipe_of,
    without_held_out,
)
from companion.training import Outcome, RunError
from companion.vae_gan import VAEGAN

SMALL = DigitCNNRecipe(data="digits", steps=3, batch_size=16, width=4)


@pytest.fixture(scope="module")
def held_out() -> ImageDataset:
    return load("digits", "test")


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load("digits", "train")


def rows(dataset: ImageDataset) -> set[bytes]:
    return {image.numpy().tobytes() for image in dataset.images}


def mixed(digits: ImageDataset, held_out: ImageDataset) -> ImageDataset:
    """Training digits with held-out ones among them, some of them twice and with a false label."""
    parts = [digits[:300], held_out[::10], held_out[::50]]
    labels = torch.cat([part.labels for part in parts])
    labels[-5:] = 0
    images = torch.cat([part.images for part in parts])
    mix = replace(digits[:1], images=images, labels=labels)
    return mix.shuffled(torch.Generator().manual_seed(0))


# --- What is trained on -------------------------------------------------------------------------------------------


def test_held_out_digits_are_left_out_by_content(digits, held_out):
    mix = mixed(digits, held_out)
    assert len(mix) == 420
    kept = without_held_out(mix)
    assert len(kept) == 300
    assert rows(kept) == rows(digits[:300])


def test_one_changed_pixel_makes_another_image(held_out):
    changed = held_out.images[:1].clone()
    changed[0, 0, 0, 0] += 1
    assert len(without_held_out(replace(held_out, images=changed, labels=held_out.labels[:1]))) == 1
    assert len(without_held_out(held_out)) == 0


def test_mnist_comes_without_the_held_out_digits(digits, held_out, monkeypatch, tmp_path):
    asked = []

    def small(name, split="train", root=None, download=True):
        asked.append((name, split, root))
        return held_out if name == "digits" else mixed(digits, held_out)

    monkeypatch.setattr(recipes, "load", small)
    recipe = DigitCNNRecipe()
    assert rows(recipe.training_data(tmp_path)) == rows(digits[:300])
    assert asked == [("mnist", "train", tmp_path)]
    assert recipe.held_out(tmp_path) is held_out
    assert recipe.full_test(tmp_path) is not None
    assert asked[-1] == ("mnist", "test", tmp_path)


def test_embedded_digits_are_trained_and_measured_apart(digits, held_out):
    assert SMALL.training_data().sha256 == digits.sha256
    assert SMALL.held_out().sha256 == held_out.sha256
    assert SMALL.full_test() is None


def test_other_data_sets_are_measured_on_their_test_split(monkeypatch, digits):
    asked = []

    def small(name, split="train", root=None):
        asked.append((name, split))
        return digits[:5]

    monkeypatch.setattr(recipes, "load", small)
    recipe = DigitCNNRecipe(data="fashion_mnist")
    recipe.training_data()
    recipe.held_out()
    assert asked == [("fashion_mnist", "train"), ("fashion_mnist", "test")]
    assert recipe.full_test() is None


def test_pictures_of_one_s_own(tmp_path):
    for i in range(3):
        pixels = np.full((20, 30, 3), 80 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    recipe = DigitCNNRecipe(data=str(tmp_path), image_size=16, channels=3)
    assert recipe.training_data().images.shape == (3, 3, 16, 16)
    assert replace(recipe, channels=1).training_data().images.shape == (3, 1, 16, 16)
    assert recipe.held_out().split == "all"
    assert recipe.full_test() is None


@pytest.mark.parametrize("name", ["minst", "digit", "pictures"])
def test_unknown_data_are_named_with_the_nearest(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"unknown data '{name}'.*Known: cifar10, digits"):
        DigitCNNRecipe(data=name).training_data()


# --- The recipes and the checkpoints that ship --------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_builds_the_same_network_each_time(name, digits):
    recipe = RECIPES[name]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = (recipe.objective(digits[:2]).network.state_dict() for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert torch.equal(torch.get_rng_state(), before)
    other = replace(recipe, seed=1).objective(digits[:2]).network.state_dict()
    assert any(not torch.equal(a[key], other[key]) for key in a)


def test_a_network_has_the_settings_of_its_recipe(digits):
    recipe = replace(RECIPES["vae-gan"], encoder_width=4, likeness=3.0, beta=0.5, latent=5)
    network = network_of(VAEGAN, recipe, digits, precision=recipe.likeness)
    assert (network.encoder_width, network.beta, network.latent) == (4, 0.5, 5)
    assert (network.channels, network.size) == (1, 28)
    assert network.precision == 3.0  # and not the arithmetic's, which every recipe has


def test_an_argument_that_no_recipe_records_is_refused(digits):
    with pytest.raises(TypeError, match="DigitCNNRecipe has no classes for DigitCNN"):
        network_of(DigitCNN, SMALL, digits)
    with pytest.raises(TypeError, match="unexpected keyword argument 'classses'"):
        network_of(DigitCNN, SMALL, digits, classes=10, classses=9)


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_survives_its_card(name, digits):
    """Settings and the network's arguments go through JSON and come back."""
    recipe = RECIPES[name]
    network = recipe.objective(digits[:2]).network
    config = json.loads(json.dumps(recipes._config(network), allow_nan=False))
    again = type(network)(**config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    settings = json.loads(json.dumps({"name": name} | asdict(recipe)))
    assert recipe_of(replace(load_card("digit-cnn"), recipe=settings)) == recipe


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_documents_its_settings(name):
    own = [f.name for f in fields(RECIPES[name]) if f.name not in {g.name for g in fields(Recipe)}]
    for field in own:
        assert f"    {field}: " in type(RECIPES[name]).__doc__


@pytest.mark.parametrize("name", checkpoint_names())
def test_the_card_names_today_s_recipe(name):
    """Whoever changes a recipe has to train again."""
    card = load_card(name)
    recipe = recipe_of(card)
    assert recipe == RECIPES[name]
    assert card.steps == recipe.steps
    assert card.data["held out"] == "digits/test"


@pytest.mark.parametrize("name", checkpoint_names())
def test_no_shipped_checkpoint_saw_a_held_out_digit(name, held_out):
    """The training set that the card names, made again from MNIST, holds none of the 1,000."""
    card = load_card(name)
    assert held_out.sha256 == card.data["held out sha256"]
    recipe = recipe_of(card)
    if recipe.data == "mnist":
        try:
            load("mnist", "train", download=False)
        except OSError as error:
            pytest.skip(f"MNIST is neither cached nor in $COMPANION_DATA: {error}")
        assert card.data["images"] == 59_000
    kept = recipe.training_data()
    assert not rows(kept) & rows(held_out)
    assert len(kept) == card.data["images"]
    assert kept.sha256 == card.data["sha256"]


# --- Checkpoints from Python --------------------------------------------------------------------------------------


def test_three_lines_make_a_checkpoint(tmp_path, held_out):
    card = make_checkpoint(SMALL, "mine", tmp_path, progress=False, log_every=1)
    assert card == load_card(tmp_path / "mine.safetensors")
    assert card.recipe == {"name": "digit-cnn"} | asdict(SMALL)
    assert recipe_of(card) == SMALL
    assert card.data["images"] == 4000
    assert card.data["held out sha256"] == held_out.sha256
    assert set(card.metrics) == {"training loss", "digits/test accuracy"}
    network = load_checkpoint(tmp_path / "mine.safetensors")
    assert network.width == 4
    # Measured as it is stored, in half precision.
    right = (network(held_out.floats()).argmax(dim=1) == held_out.labels).double().mean()
    assert card.metrics["digits/test accuracy"] == pytest.approx(float(right), abs=0.002)


def test_the_average_of_the_weights_is_what_is_stored(tmp_path):
    recipe = replace(SMALL, ema=0.9)
    make_checkpoint(SMALL, "a", tmp_path / "a", progress=False)
    make_checkpoint(recipe, "b", tmp_path / "b", progress=False)
    a, b = (load_checkpoint(tmp_path / n / f"{n}.safetensors").state_dict() for n in "ab")
    assert not torch.equal(a["head.weight"], b["head.weight"])


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    make_checkpoint(SMALL, "mine", tmp_path, progress=False)
    with pytest.raises(RunError, match="holds a run already"):
        make_checkpoint(SMALL, "mine", tmp_path, progress=False)
    card = make_checkpoint(SMALL, "mine", tmp_path, progress=False, resume=True)
    assert card.steps == 3


def test_an_interrupted_training_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "run", lambda *_, **__: Outcome(2, 3, 0.1, {}, signal=15))
    with pytest.raises(Interrupted, match="Stopped at step 2 of 3") as stop:
        make_checkpoint(SMALL, "mine", tmp_path)
    assert (stop.value.step, stop.value.signal) == (2, 15)
    assert list(tmp_path.iterdir()) == []


def test_a_card_of_an_unknown_recipe(tmp_path):
    card = replace(load_card("digit-cnn"), recipe={"name": "digit-cnm"})
    with pytest.raises(ValueError, match="unknown recipe 'digit-cnm'"):
        recipe_of(card)


def test_settings_of_former_days_are_left_out():
    card = replace(load_card("digit-cnn"), recipe={"name": "digit-cnn", "epochs": 8, "width": 7})
    assert recipe_of(card) == DigitCNNRecipe(width=7)


def test_only_finite_numbers_reach_a_card():
    found = finite({"a": 1.0, "b": math.inf, "c": math.nan})
    assert found == {"a": 1.0, "b": None, "c": None}
