"""Recipes: what goes into the digit classifier's training set, and the command that trains it."""

import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from companion import recipes
from companion.checkpoints import load_card, load_checkpoint
from companion.data import DataError, ImageDataset, load
from companion.recipes import DigitCNNRecipe, train_digit_cnn, without_held_out


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


def test_the_shipped_classifier_never_saw_a_held_out_digit(held_out):
    """The training set that the card names, made again from MNIST, holds none of the 1,000."""
    try:
        mnist = load("mnist", "train", download=False)
    except OSError as error:
        pytest.skip(f"MNIST is neither cached nor in $COMPANION_DATA: {error}")
    kept = without_held_out(mnist)
    card = load_card("digit-cnn")
    assert not rows(kept) & rows(held_out)
    assert len(kept) == card.data["images"] == 59_000
    assert kept.sha256 == card.data["sha256"]
    assert held_out.sha256 == card.data["held out sha256"]


def test_the_card_names_today_s_recipe():
    """Whoever changes the recipe has to train again."""
    card = load_card("digit-cnn")
    assert card.recipe == {"name": "digit-cnn"} | asdict(DigitCNNRecipe())
    assert card.data["left out"] == 1000


def test_a_small_run_makes_a_card(digits, held_out):
    recipe = DigitCNNRecipe(width=8, epochs=1, batch_size=64)
    model, card = train_digit_cnn(recipe, mixed(digits, held_out), held_out, held_out[:50])
    assert card.data["left out"] == 120
    assert card.data["images"] == 300
    assert card.steps == 300 // 64
    assert card.recipe["epochs"] == 1
    assert not model.training
    weight = model.head.weight
    assert torch.equal(weight, weight.half().float())  # measured as it will be stored


def test_from_the_command_line(digits, held_out, tmp_path, monkeypatch, capsys):
    asked = []

    def small(name, split="train", root=None):
        asked.append((name, split, root))
        return (held_out if split == "test" else digits)[::20]

    monkeypatch.setattr(recipes, "load", small)
    options = ["--width", "4", "--epochs", "1", "--batch-size", "32", "--no-bf16"]
    recipes.main(
        ["digit-cnn", "--data", str(tmp_path), "--output", str(tmp_path / "out"), *options]
    )
    assert asked[0] == ("mnist", "train", tmp_path)
    assert asked[1][:2] == ("digits", "test")
    card = load_card(tmp_path / "out" / "digit-cnn.safetensors")
    assert card.recipe["width"] == 4
    assert card.recipe["bf16"] is False
    assert load_checkpoint(tmp_path / "out" / "digit-cnn.safetensors").width == 4
    assert "digits/test accuracy" in capsys.readouterr().out


def test_help_names_every_recipe():
    result = subprocess.run(
        [sys.executable, "-m", "companion.recipes", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "digit-cnn" in result.stdout


def test_missing_data_end_without_a_traceback(tmp_path, monkeypatch):
    def unreachable(name, split="train", root=None):
        raise DataError("put the files here")

    monkeypatch.setattr(recipes, "load", unreachable)
    with pytest.raises(SystemExit, match="error: put the files here"):
        recipes.main(["digit-cnn", "--output", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_unknown_recipe_ends_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        recipes.main(["digit-cn"])
    assert stop.value.code == 2
    assert "digit-cnn" in capsys.readouterr().err
