"""Models that build on others: a transformer over the signs of an autoencoder's codes, trained, measured, sampled.

It is a two-stage model in miniature: the parent's encoder gives the tokens, its decoder draws the images.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from companion.autoencoder import Autoencoder, AutoencoderConfig
from companion.checkpoints import (
    Card,
    CheckpointError,
    load_card,
    load_checkpoint,
    save_card,
    save_checkpoint,
)
from companion.cli import main
from companion.data import load, to_uint8
from companion.data.batch import Batch
from companion.evaluation import Evaluator
from companion.evaluation.evaluator import about_data
from companion.measurement import Measurement
from companion.nn.transformer import CausalTransformer, TransformerConfig
from companion.randomness import PerImage, Source, initialisation, normal
from companion.recipes import RECIPES, Recipe, Splits, load_assembled, make_checkpoint
from companion.training import Objective, RunError, single_objective

BITS, START = 4, 2


class SignModel(nn.Module):
    """The prior and the autoencoder together."""

    def __init__(self, prior: CausalTransformer, encoder: Autoencoder) -> None:
        super().__init__()
        self.prior, self.encoder = prior, encoder

    def tokens(self, x: Tensor) -> Tensor:
        signs = (self.encoder.encode(x) > 0).long()
        return torch.cat([torch.full((len(x), 1), START), signs], dim=1)

    def nats(self, x: Tensor) -> Tensor:
        return -self.prior.log_probs(self.tokens(x)).sum(1)

    def sample(self, n: int, source: Source) -> Tensor:
        uniform = torch.special.ndtr(normal((n, BITS), source))
        tokens = torch.full((n, 1), START)
        for place in range(BITS):
            logits = self.prior(tokens)[:, -1, :START]
            token = (uniform[:, place] < logits.softmax(1)[:, 1]).long()
            tokens = torch.cat([tokens, token[:, None]], dim=1)
        return self.encoder.decode(2.0 * tokens[:, 1:] - 1)


@dataclass(frozen=True, kw_only=True)
class SignRecipe(Recipe[CausalTransformer]):
    """A transformer over the signs of an autoencoder's codes.

    Attributes:
        autoencoder: the checkpoint whose codes they are.
    """

    model: ClassVar[type[nn.Module]] = CausalTransformer

    data: str = "digits"
    steps: int = 3
    batch_size: int = 8
    autoencoder: str = "autoencoder"
    network: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(3, BITS + 1, width=8, layers=1, heads=2)
    )

    def parents(self) -> Mapping[str, str]:
        return {"codes": self.autoencoder}

    def losses(self, network: CausalTransformer, parents: Mapping[str, nn.Module]) -> Objective:
        whole = self.assemble(network, parents)

        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            return {"loss": whole.nats(batch.require_images()).mean()}

        return single_objective(network, loss)

    def assemble(self, network: CausalTransformer, parents: Mapping[str, nn.Module]) -> SignModel:
        return SignModel(network, parents["codes"])

    def evaluate(
        self, network: SignModel, evaluator: Evaluator, splits: Splits
    ) -> list[Measurement]:
        test = splits.held_out[:50]
        nats = evaluator.mean(lambda batch, _: network.nats(batch.require_images()), test)
        about = about_data(test)
        return [Measurement(name="code length", value=nats, unit="nats", better="lower", **about)]


def autoencoder(folder, seed=0):
    """Writes an autoencoder with weights of its own; nobody has to train it for a transformer to stand on it."""
    with initialisation(seed):
        network = Autoencoder(AutoencoderConfig(latent_dim=BITS, width=4))
    save_checkpoint(network, Card(name="codes"), folder)
    return folder


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return autoencoder(tmp_path_factory.mktemp("parent"))


@pytest.fixture(scope="module")
def held_out():
    return load("digits", "test")


@pytest.fixture(autouse=True)
def registered():
    RECIPES["signs"] = SignRecipe()
    yield
    del RECIPES["signs"]


@pytest.fixture
def child(parent, tmp_path):
    recipe = RECIPES["signs"].replace(autoencoder=str(parent))
    make_checkpoint(recipe, "signs", tmp_path / "signs", progress=False)
    return tmp_path / "signs"


def test_a_card_names_what_the_model_builds_on(child, parent):
    card = load_card(child)
    assert card.name == "signs"
    assert card.parents == {"codes": {"name": "codes", "sha256": load_card(parent).sha256}}


def test_the_folder_of_a_run_is_complete_in_itself(child, parent):
    """What the model builds on lies beside it, so that the folder can be moved, and is still found as one model."""
    moved = child.rename(child.parent / "moved")
    copy, original = (folder / "codes.safetensors" for folder in (moved, parent))
    assert copy.read_bytes() == original.read_bytes()
    whole = load_assembled(moved)
    assert isinstance(whole, SignModel)
    assert isinstance(load_checkpoint(moved), CausalTransformer)


def test_the_card_has_what_a_direct_computation_gives(child, parent, held_out):
    encoder, prior = load_checkpoint(parent), load_checkpoint(child / "signs.safetensors")
    with torch.no_grad():
        expected = SignModel(prior, encoder).nats(held_out[:50].floats()).double().mean()
    assert load_card(child).value("code length") == pytest.approx(float(expected), rel=1e-5)


def test_only_the_child_is_trained(parent):
    recipe = RECIPES["signs"].replace(autoencoder=str(parent))
    encoder = load_checkpoint(parent)
    objective = recipe.objective(Splits(recipe).train, {"codes": encoder})
    trained = {id(p) for phase in objective.phases for p in phase.parameters}
    assert trained == {id(p) for p in objective.network.parameters()}


def test_the_command_line_evaluates_samples_and_compares(child, held_out, tmp_path, capsys):
    numbers, array = tmp_path / "numbers.json", tmp_path / "drawn.npy"
    assert main(["evaluate", str(child), "--json", str(numbers)]) == 0
    (found,) = json.loads(numbers.read_text())["measurements"]
    assert found["value"] == pytest.approx(load_card(child).value("code length"), rel=1e-6)

    assert main(["sample", str(child), "--n", "12", "--out", str(array), "--seed", "5"]) == 0
    with torch.no_grad():
        drawn = load_assembled(child).sample(12, PerImage(5, 0, 12)).clamp(-1, 1)
    assert np.array_equal(np.load(array), to_uint8(drawn).numpy())

    assert main(["compare", "digits/test", str(child), "--n", "20"]) == 0
    assert "FID" in capsys.readouterr().out


def test_a_parent_that_is_missing_or_another_is_named(child, tmp_path, capsys):
    for file in child.glob("codes.*"):
        file.unlink()
    assert main(["sample", str(child), "--out", str(tmp_path / "a.png")]) == 1
    error = capsys.readouterr().err
    assert "'signs' builds on 'codes'" in error
    assert "'codes.safetensors'" in error
    autoencoder(child, seed=1)
    with pytest.raises(CheckpointError, match=r"builds on the 'codes'.*was trained with"):
        load_assembled(child)


def test_a_run_goes_on_with_the_same_parent_only(parent, tmp_path):
    """A stopped training that is resumed on other codes would be neither one model nor the other."""
    other = autoencoder(tmp_path / "other", seed=1)
    long = RECIPES["signs"].replace(autoencoder=str(parent), steps=4)
    make_checkpoint(long, "signs", tmp_path / "run", save_every=2, progress=False)
    again = long.replace(steps=6)
    with pytest.raises(RunError, match="parent 'codes'"):
        make_checkpoint(
            replace(again, autoencoder=str(other)), "signs", tmp_path / "run",
            resume=True, progress=False,
        )  # fmt: skip


def test_two_models_in_a_folder_are_still_two(child, parent):
    """Only what another builds on steps back."""
    card = load_card(child)
    save_card(replace(card, parents={}), child)
    with pytest.raises(CheckpointError, match="holds several checkpoints"):
        load_card(child)
