"""The discrete VAE of chapter 13, DALL-E's tokenizer of images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from companion import checks
from companion.dalle.dvae import DVAE, DVAEConfig
from companion.data import ImageDataset
from companion.data.batch import Batch
from companion.data.sources import is_scenes
from companion.evaluation import Evaluator
from companion.evaluation.evaluator import about_data
from companion.measurement import Measurement
from companion.metrics.scene_oracle import accuracies
from companion.randomness import Source
from companion.recipes.base import Recipe, Splits, captions_of
from companion.recipes.vq_vae import usage
from companion.training import Objective, single_objective


@dataclass(frozen=True, kw_only=True)
class DVAERecipe(Recipe[DVAE]):
    """The discrete VAE of chapter 13: Gumbel-softmax codes, a logit-Laplace likelihood.

    Attributes:
        temperature: τ of the relaxation at the end; it begins at 1 and falls by half a cosine.
        temperature_share: share of the training over which τ falls.
        beta_first: weight of the KL at the beginning.
        beta: weight of the KL at the end.
        beta_share: share of the training over which the weight goes from one to the other, by half a cosine.
    """

    model: ClassVar[type[nn.Module]] = DVAE

    data: str = "mnist_scenes"
    steps: int = 7_000
    batch_size: int = 16
    learning_rate: float = 2e-3
    clip: float | None = 1.0
    temperature: float = 1 / 16
    temperature_share: float = 0.5
    beta_first: float = 6.0
    beta: float = 0.0
    beta_share: float = 0.5
    network: DVAEConfig = field(default_factory=DVAEConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number(above=0, temperature=self.temperature)
        checks.number(above=0, temperature_share=self.temperature_share, beta_share=self.beta_share)
        checks.number(0, beta_first=self.beta_first, beta=self.beta)

    def place_holder(self, settings: Mapping[str, Any]) -> int:
        usual, factor = super().place_holder(settings), settings["factor"]
        checks.whole(1, factor=factor)
        return factor if usual % factor else usual

    def losses(self, network: DVAE, parents: Mapping[str, nn.Module]) -> Objective:
        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            # The network counts, so that a training that stops goes on at the same temperature; whole batches, so that
            # all parts of one have the same.
            done = network.images_seen.div(self.batch_size, rounding_mode="floor") / self.steps
            temperature = half_cosine(done / self.temperature_share, 1.0, self.temperature)
            beta = half_cosine(done / self.beta_share, self.beta_first, self.beta)
            return network.loss(batch.require_images(), source, temperature, beta)

        return single_objective(network, loss, sample=lambda net, n, source: net.sample(n, source))

    def evaluate(self, network: DVAE, evaluator: Evaluator, splits: Splits) -> list[Measurement]:
        found: list[Measurement] = []
        for test in splits.tests:
            found += evaluator.reconstruction(lambda x, _: network(x), test)
            found += usage(network, evaluator, test)
            if is_scenes(self.data):
                found += read_again(network, evaluator, test)
        return found


def read_again(network: DVAE, evaluator: Evaluator, scenes: ImageDataset) -> list[Measurement]:
    """Measures how often the oracle reads in reconstructions of scenes what their captions say."""
    again = evaluator.each(
        lambda batch, _: network(batch.require_images()), scenes, "reconstructions"
    )
    about = about_data(scenes, "reconstructions")
    return [
        Measurement(name=f"accuracy of {what}", value=value, better="higher", **about)
        for what, value in accuracies(again, captions_of(scenes)).items()
    ]


def half_cosine(share: Tensor, first: float, last: float) -> Tensor:
    """Returns a value that goes from the first to the last as the share goes from 0 to 1, and stays there."""
    return last + (first - last) * 0.5 * (1 + torch.cos(math.pi * share.float().clamp(max=1.0)))
