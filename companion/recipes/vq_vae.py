"""The vector-quantised autoencoder of chapter 12."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from companion import checks
from companion.dalle.dvae import DVAE
from companion.data import ImageDataset
from companion.data.batch import Batch
from companion.evaluation import Evaluator
from companion.evaluation.evaluator import about_data, seen_by
from companion.measurement import Measurement
from companion.metrics import fid
from companion.randomness import PerImage, Source
from companion.recipes.base import Recipe, Splits
from companion.training import Objective, single_objective
from companion.vq_vae import VQVAE, VQVAEConfig, perplexity


@dataclass(frozen=True, kw_only=True)
class VQVAERecipe(Recipe[VQVAE]):
    """The vector-quantised autoencoder of chapter 12: digits as 49 whole numbers.

    The weights are not averaged: a code that starts again takes its place at once, and an average of the encoders
    before and after would choose neither's codes. The learning rate falls to zero instead.
    """

    model: ClassVar[type[nn.Module]] = VQVAE

    steps: int = 14_000
    batch_size: int = 16
    learning_rate: float = 3e-3
    clip: float | None = 1.0
    ema: float | None = None
    network: VQVAEConfig = field(default_factory=VQVAEConfig)

    def place_holder(self, settings: Mapping[str, Any]) -> int:
        usual, patch = super().place_holder(settings), settings["downsampling"]
        checks.whole(1, downsampling=patch)
        return patch if usual % patch else usual

    def losses(self, network: VQVAE, parents: Mapping[str, nn.Module]) -> Objective:
        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            return network.loss(batch.require_images(), source)

        return single_objective(network, loss, sample=lambda net, n, source: net.sample(n, source))

    def check(self, splits: Splits, evaluator: Evaluator) -> None:
        super().check(splits, evaluator)
        evaluator.check(splits.held_out)

    def evaluate(self, network: VQVAE, evaluator: Evaluator, splits: Splits) -> list[Measurement]:
        found: list[Measurement] = []
        for test in splits.tests:
            found += evaluator.reconstruction(lambda x, _: network(x), test)
            found += usage(network, evaluator, test)
        found += reconstruction_fid(network, evaluator, splits.held_out)
        return found + evaluator.sample_quality(network.sample, splits.held_out, of="uniform codes")


def usage(network: VQVAE | DVAE, evaluator: Evaluator, dataset: ImageDataset) -> list[Measurement]:
    """Measures how evenly images use the codes, and what their codes cost: with all codes alike, and by their usage.

    Args:
        network: in evaluation mode.
        evaluator: shares the work over the processes.
        dataset: the images.
    """

    def codes(batch: Batch, _: PerImage) -> Tensor:
        return network.tokenize(batch.require_images())

    tokens = evaluator.each(codes, dataset, "codes")
    used = float(perplexity(torch.bincount(tokens.flatten(), minlength=network.vocabulary)))
    places = math.prod(network.grid)
    about = about_data(dataset)
    return [
        Measurement(name="perplexity", value=used, better="higher", **about),
        Measurement(
            name="bits per image",
            value=network.bits_per_image,
            unit="bits",
            better="lower",
            **about,
        ),
        Measurement(
            name="bits per image",
            value=places * math.log2(used),
            unit="bits",
            better="lower",
            **about_data(dataset, "by usage"),
        ),
    ]


def reconstruction_fid(
    network: VQVAE, evaluator: Evaluator, dataset: ImageDataset
) -> list[Measurement]:
    """Measures the FID of reconstructions to the images themselves, where the data have an extractor.

    Args:
        network: in evaluation mode.
        evaluator: has the extractor.
        dataset: the images.
    """
    extractor = evaluator.extractor_for(dataset)
    if extractor is None:
        return []

    def rows(batch: Batch, _: PerImage) -> dict[str, Tensor]:
        x = batch.require_images()
        return {
            "real": seen_by(extractor, x)["features"],
            "reconstructed": seen_by(extractor, network(x))["features"],
        }

    features = evaluator.each(rows, dataset, "reconstructions")
    value = fid(features["real"], features["reconstructed"])
    about = about_data(dataset, "reconstructions")
    return [Measurement(name="FID", value=value, better="lower", **about)]
