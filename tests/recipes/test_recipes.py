"""Recipes: what goes into a training set, what the cards of the checkpoints say, and checkpoints from Python."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from companion.checkpoints import checkpoint_names, load_card, load_checkpoint
from companion.clip import CLIP
from companion.data import DATASETS, ImageDataset, load
from companion.data.scenes import scenes
from companion.data.sources import is_scenes
from companion.evaluation import Evaluator
from companion.gan import GANConfig, discriminator_depth
from companion.recipes import (
    RECIPES,
    DigitCNNRecipe,
    Interrupted,
    Splits,
    Unmeasured,
    VAERecipe,
    make_checkpoint,
    recipe_of,
    without_held_out,
)
from companion.recipes.base import FROM_DATA
from companion.training import Outcome, RunError, Trainer
from companion.vq_vae import VQVAE, VQVAEConfig

SMALL = DigitCNNRecipe().replace(data="digits", steps=3, batch_size=16, width=4)


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

    monkeypatch.setattr("companion.recipes.base.load", small)
    splits = Splits(DigitCNNRecipe(), tmp_path)
    assert rows(splits.train) == rows(digits[:300])
    assert asked == [("mnist", "train", tmp_path)]
    assert splits.held_out is held_out
    assert splits.full_test is not None
    assert asked[-1] == ("mnist", "test", tmp_path)
    count = len(asked)
    assert splits.train is splits.train
    assert splits.tests == [held_out, splits.full_test]
    assert len(asked) == count  # nothing is loaded twice


def test_embedded_digits_are_trained_and_measured_apart(digits, held_out):
    splits = Splits(SMALL)
    assert splits.train.sha256 == digits.sha256
    assert splits.held_out.sha256 == held_out.sha256
    assert splits.full_test is None
    assert splits.classes == tuple("0123456789")


def test_other_data_sets_are_measured_on_their_test_split(monkeypatch, digits):
    asked = []

    def small(name, split="train", root=None):
        asked.append((name, split))
        return digits[:5]

    monkeypatch.setattr("companion.recipes.base.load", small)
    splits = Splits(DigitCNNRecipe(data="fashion_mnist"))
    assert len(splits.train) == len(splits.held_out) == 5
    assert asked == [("fashion_mnist", "train"), ("fashion_mnist", "test")]
    assert splits.full_test is None
    assert len(Splits(DigitCNNRecipe(test_data="cifar10")).tests) == 1
    assert asked[-1] == ("cifar10", "test")


def test_pictures_of_one_s_own(tmp_path):
    for i in range(3):
        pixels = np.full((20, 30, 3), 80 * i, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    recipe = VAERecipe(data=str(tmp_path), image_size=16, channels=3)
    splits = Splits(recipe)
    assert splits.train.images.shape == (3, 3, 16, 16)
    assert Splits(recipe.replace(channels=1)).train.images.shape == (3, 1, 16, 16)
    assert Splits(recipe.replace(channels=None, image_size=None)).train.images.shape[2:] == (20, 30)
    assert splits.held_out is splits.train
    assert splits.train.split == "train"
    assert splits.full_test is None
    parts = Splits(recipe.replace(validation=0.3))
    assert (len(parts.train), len(parts.held_out)) == (2, 1)
    assert not rows(parts.train) & rows(parts.held_out)
    assert (parts.train.split, parts.held_out.split) == ("train", "validation")
    with pytest.raises(ValueError, match=r"20×30.*--image-size 20"):
        recipe.config(Splits(recipe.replace(image_size=None)).train)


@pytest.mark.parametrize("name", ["minst", "digit", "pictures"])
def test_unknown_data_are_named_with_the_nearest(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"unknown data '{name}'.*Known: cifar10, digits"):
        Splits(DigitCNNRecipe(data=name))
    with pytest.raises(ValueError, match=f"unknown data '{name}'"):
        Splits(DigitCNNRecipe(test_data=name))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 1.0}, "validation must be a finite number"),
        ({"validation": 0.1, "data": "./a", "test_data": "digits"}, "give one of them"),
        ({"validation": 0.1}, "'mnist' has a test split"),
        ({"image_size": 0}, "image_size must be a whole number"),
        ({"widht": 3}, "unknown setting 'widht'. Did you mean 'width'"),
        ({"width": -1}, "width must be a whole number"),
        ({"steps": 0}, "steps must be a whole number from 1"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        DigitCNNRecipe().replace(**settings)


def test_a_network_of_another_kind():
    with pytest.raises(TypeError, match="GANConfig"):
        DigitCNNRecipe(network=GANConfig())


def blank(size: int) -> ImageDataset:
    """Two black colour images of a size."""
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    labels = torch.zeros(2, dtype=torch.int64)
    return ImageDataset(images=images, labels=labels, classes=("a",), name="n", split="train")


@pytest.mark.parametrize("size", [28, 32, 48, 96, 256])
def test_settings_wait_for_the_size_of_the_images(size):
    """Patches of 8 pixels do not tile the 28 of the default, but the 32 of the data; no size is preferred."""
    for patch in (1, 2, 4, 7, 8, 12, 14, 48, 512):
        recipe = RECIPES["masked-autoencoder"].replace(patch=patch)
        assert recipe.replace(patch=4) == RECIPES["masked-autoencoder"]
        if size % patch:
            with pytest.raises(ValueError, match=f"patch is {patch} and size {size}"):
                recipe.config(blank(size))
        else:
            config = recipe.config(blank(size))
            assert (config.channels, config.size, config.patch) == (3, size, patch)
    depth = discriminator_depth(size)
    for layer in range(-10, 10):
        recipe = RECIPES["vae-gan"].replace(layer=layer)
        assert recipe.replace(layer=1) == RECIPES["vae-gan"]
        if -depth <= layer < depth:
            assert recipe.config(blank(size)).layer == layer
        else:
            with pytest.raises(ValueError, match=f"layer must be .* got {layer}"):
                recipe.config(blank(size))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("masked-autoencoder", {"patch": 0}, "patch must be a whole number of at least 1, got 0"),
        ("masked-autoencoder", {"patch": 1.5}, "patch must be a whole number"),
        ("masked-autoencoder", {"patch": 8, "heads": 0}, "heads must be a whole number"),
        ("vae-gan", {"layer": 10}, "layer must be a whole number from -10 to 9, got 10"),
        ("vae-gan", {"layer": -(10**9)}, "layer must be a whole number from -10 to 9"),
    ],
)
def test_settings_that_suit_no_size(name, settings, message):
    with pytest.raises(ValueError, match=message):
        RECIPES[name].replace(**settings)


def test_settings_of_a_network_that_is_given_with_them():
    other = replace(RECIPES["gan"].network, generator_width=8)
    found = RECIPES["gan"].replace(network=other, latent_dim=9, steps=7)
    assert found.network == replace(other, latent_dim=9)
    assert found.steps == 7


def test_a_network_too_large_for_the_memory(digits, monkeypatch):
    monkeypatch.setattr("companion.recipes.base.memory_of", lambda device: 2**20)
    with pytest.raises(ValueError, match=r"102,826 parameters.*2\.0 MiB|102,826 parameters.*GiB"):
        DigitCNNRecipe().objective(digits)
    monkeypatch.setattr("companion.recipes.base.memory_of", lambda device: 2**22)
    DigitCNNRecipe().objective(digits)


# --- The recipes and the checkpoints that ship --------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_builds_the_same_network_each_time(name, digits):
    recipe = RECIPES[name]
    recipe = recipe.replace(**{k: 16 for k in recipe.settings() if k.endswith("width")})
    data = scenes("train", 2) if is_scenes(recipe.data) else digits[:2]
    _, channels, size, _ = data.images.shape
    tokenizer = VQVAE(VQVAEConfig(channels=channels, size=size, width=4))
    built = {"tokenizer": tokenizer, "judge": CLIP()}
    parents = {role: built[role] for role in recipe.parents()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b = (recipe.objective(data, parents).network.state_dict() for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert torch.equal(torch.get_rng_state(), before)
    other = replace(recipe, seed=1).objective(data, parents).network.state_dict()
    assert any(not torch.equal(a[key], other[key]) for key in a)


@pytest.mark.parametrize("name", ["code-prior", "dalle"])
def test_a_parent_that_makes_no_codes_of_these_images_is_refused_at_once(name, digits):
    recipe = RECIPES[name]
    data = scenes("train", 2) if is_scenes(recipe.data) else digits[:2]
    with pytest.raises(ValueError, match=r"takes images of shape \(1, 20, 20\), but those of"):
        recipe.objective(data, {"tokenizer": VQVAE(VQVAEConfig(size=20, width=4))})
    with pytest.raises(ValueError, match="is a CLIP, which does not turn images into codes"):
        recipe.objective(data, {"tokenizer": CLIP()})


@pytest.mark.parametrize("name", ["clip", "dalle"])
def test_captions_that_do_not_fit_are_found_before_the_first_step(name):
    recipe = RECIPES[name].replace(
        data="scenes", **{"clip": {"context": 4}, "dalle": {"text_length": 3}}[name]
    )
    splits = Splits(recipe)
    vars(splits).update(train=scenes("train", 100), held_out=scenes("test", 100))
    with pytest.raises(ValueError, match=r"tokens, but this .* reads at most 3"):
        recipe.check(splits, Evaluator(samples=10))


def test_the_parts_of_a_batch_have_one_temperature():
    """A discrete VAE trained with gradients accumulated over four parts ends where it ends without."""
    data, found = scenes("train", 64), []
    for accumulate in (1, 4):
        recipe = RECIPES["dvae"].replace(
            steps=3, batch_size=16, width=4, codes=8, blocks=1, accumulate=accumulate
        )
        trainer = Trainer(recipe.objective(data), data, recipe)
        for _ in trainer:
            pass
        found.append(trainer.network.state_dict())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", list(RECIPES))
def test_names_of_settings_are_unique(name):
    """On the command line they stand side by side, with the options of the run."""
    from companion.cli.train import TrainOptions

    recipe = RECIPES[name]
    own = {f.name for f in fields(recipe)} - {"network"}
    inner = {f.name for f in fields(recipe.network)} - set(FROM_DATA)
    run = {f.name for f in fields(TrainOptions())}
    assert not own & inner
    assert not (own | inner) & run
    assert set(recipe.settings()) == own | inner


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_survives_its_card(name):
    """Settings go through JSON and come back."""
    recipe = RECIPES[name]
    settings = json.loads(json.dumps({"name": name} | recipe.settings()))
    assert recipe_of(replace(load_card("digit-cnn"), recipe=settings)) == recipe


@pytest.mark.parametrize("name", checkpoint_names())
def test_the_card_names_today_s_recipe(name):
    """Whoever changes a recipe has to train again."""
    card = load_card(name)
    recipe = recipe_of(card)
    # What the card says of images of one's own, and of the machine's precision, says nothing about these weights.
    assert recipe.data in DATASETS
    same = recipe.replace(precision="auto", image_size=None, channels=None)
    assert same == RECIPES[name]
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
    kept = Splits(recipe).train
    assert not rows(kept) & rows(held_out)
    assert len(kept) == card.data["images"]
    assert kept.sha256 == card.data["sha256"]


# --- Checkpoints from Python --------------------------------------------------------------------------------------


def test_three_lines_make_a_checkpoint(tmp_path, held_out):
    card = make_checkpoint(SMALL, "mine", tmp_path, progress=False, log_every=1)
    assert card == load_card(tmp_path / "mine.safetensors")
    assert card.recipe == {"name": "digit-cnn"} | SMALL.settings()
    assert recipe_of(card) == SMALL
    assert card.data["images"] == 4000
    assert card.data["held out sha256"] == held_out.sha256
    assert {m.label for m in card.measurements} == {"training loss", "digits/test: accuracy"}
    assert card.evaluation == {"samples": 1000, "seed": 0, "batch_size": 100}
    assert card.precision == ("bf16-mixed" if torch.cuda.is_available() else "32-true")
    network = load_checkpoint(tmp_path / "mine.safetensors")
    assert network.config.width == 4
    # Measured as it is stored, in half precision.
    right = (network(held_out.floats()).argmax(dim=1) == held_out.labels).double().mean()
    assert card.value("accuracy") == pytest.approx(float(right), abs=0.002)


def test_the_average_of_the_weights_is_what_is_stored(tmp_path):
    recipe = SMALL.replace(ema=0.9)
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
    monkeypatch.setattr(
        "companion.recipes.making.run", lambda *_, **__: Outcome(2, 3, 0.1, {}, signal=15)
    )
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
    assert recipe_of(card) == DigitCNNRecipe().replace(width=7)


def test_a_card_that_names_no_recipe():
    with pytest.raises(ValueError, match="the card of 'digit-cnn' names no recipe"):
        recipe_of(replace(load_card("digit-cnn"), recipe={}))


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (SMALL, {"samples": 5}, "samples must be at least 10, got 5"),
        (SMALL.replace(test_data="cifar10"), {}, "colour 32×32"),
        (RECIPES["autoencoder"].replace(data="digits", parts=1000), {}, None),
    ],
)
def test_what_cannot_be_measured_is_not_trained(recipe, options, message, tmp_path, monkeypatch):
    """Nothing of a run is begun."""
    few = load("digits", "train")[:50]
    colours = replace(few, images=few.images.repeat(1, 3, 1, 1)[:, :, :, :], kind="images")

    def small(name, split="train", root=None, download=True):
        if name == "cifar10":
            return replace(colours, images=torch.zeros(50, 3, 32, 32, dtype=torch.uint8))
        return few if split == "train" else load("digits", split)

    monkeypatch.setattr("companion.recipes.base.load", small)
    message = message or "parts is 1000.*only 50"
    with pytest.raises(ValueError, match=message):
        make_checkpoint(recipe, "mine", tmp_path / "run", progress=False, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("problem", [ValueError("it broke."), KeyboardInterrupt()])
def test_the_checkpoint_is_there_before_it_is_measured(problem, tmp_path, monkeypatch):
    def broken(self, network, evaluator, splits):
        card = load_card(tmp_path / "mine.safetensors")
        assert [m.name for m in card.measurements] == ["training loss"]
        # What is measured is what is stored.
        stored = load_checkpoint(tmp_path / "mine.safetensors").state_dict()
        assert all(torch.equal(stored[k], v.cpu()) for k, v in network.state_dict().items())
        raise problem

    monkeypatch.setattr(DigitCNNRecipe, "evaluate", broken)
    with pytest.raises(Unmeasured, match=r"the training is complete.*companion evaluate") as found:
        make_checkpoint(SMALL, "mine", tmp_path, progress=False)
    assert found.value.stopped == isinstance(problem, KeyboardInterrupt)
    assert found.value.path == tmp_path / "mine.safetensors"
    assert load_checkpoint(tmp_path / "mine.safetensors").config.width == 4
    monkeypatch.undo()
    card = make_checkpoint(SMALL, "mine", tmp_path, progress=False, resume=True)
    assert card.value("accuracy") >= 0
