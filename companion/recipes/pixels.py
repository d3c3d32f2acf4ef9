"""What the recipes of chapter 7 have in common: autoregressive models of pixels, scored exactly."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Int64
from torch import Tensor, nn

from companion.data import ImageDataset, to_uint8
from companion.data.batch import Batch
from companion.distributions import bits_per_dimension
from companion.evaluation import Evaluator
from companion.evaluation.evaluator import about_data
from companion.measurement import Measurement
from companion.randomness import PerImage, Source
from companion.recipes.base import Recipe, Splits
from companion.training import Objective, single_objective


@runtime_checkable
class PixelModel(Protocol):
    """A network that says how likely an image's pixels are."""

    def observe(self, x: Tensor, source: Source, /) -> Tensor:
        """Returns images as they are modelled, such as black and white ones."""

    def nll(self, x: Tensor, source: Source, labels: Tensor | None, /) -> Tensor:
        """Returns −log P of each image, in nats."""

    def loss(self, x: Tensor, source: Source, labels: Tensor | None, /) -> dict[str, Tensor]:
        """Returns the mean over the batch."""

    def sample(self, n: int, source: Source, /) -> Tensor:
        """Draws images in [−1, 1]."""


N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class PixelsRecipe(Recipe[N]):
    """A model of pixels: trained and measured by its exact likelihood.

    Attributes:
        conditional: tell the network the label.
    """

    batch_size: int = 16
    learning_rate: float = 2e-3
    beta2: float = 0.99
    warmup: float = 0.02
    clip: float | None = 1.0
    ema: float | None = 0.999
    conditional: bool = False

    def classes(self, dataset: ImageDataset) -> int:
        """Returns the number of the data's classes, for a conditional network."""
        return len(dataset.classes) if self.conditional else 0

    def losses(self, network: N, parents: Mapping[str, nn.Module]) -> Objective:
        model: Any = network  # a module and a `PixelModel`, which no type can say

        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            return model.loss(batch.require_images(), source, self._labels(batch))

        return single_objective(network, loss, sample=lambda net, n, source: net.sample(n, source))

    def check(self, splits: Splits, evaluator: Evaluator) -> None:
        super().check(splits, evaluator)
        evaluator.check(splits.held_out)

    def evaluate(
        self, network: PixelModel, evaluator: Evaluator, splits: Splits
    ) -> list[Measurement]:
        def nats(batch: Batch, source: PerImage) -> Tensor:
            return network.nll(batch.require_images(), source, self._labels(batch))

        found, of = [], self.kind_of_pixels()
        for test in splits.labelled_tests if self.conditional else splits.tests:
            value = evaluator.mean(nats, test, "pixels")
            bits = float(bits_per_dimension(value, test.images[0].numel()))
            about = about_data(test, of, evaluator.seed)
            found += [
                Measurement(name="−log p", value=value, unit="nats", better="lower", **about),
                Measurement(name="bits/dim", value=bits, unit="bits/dim", better="lower", **about),
            ]
        reference = observed(network, evaluator, splits.held_out)
        return found + evaluator.sample_quality(network.sample, reference, of=of)

    def _labels(self, batch: Batch) -> Int64[Tensor, " n"] | None:
        return batch.require_labels() if self.conditional else None

    def kind_of_pixels(self) -> str:
        """Says which pixels are modelled: likelihoods of different ones do not compare, nor do samples."""
        levels = self.network.levels
        return {2: "black and white", 256: "bytes"}.get(levels, f"{levels} levels")


def observed(network: PixelModel, evaluator: Evaluator, dataset: ImageDataset) -> ImageDataset:
    """Returns images as a network models them, such as black and white ones: what its samples compare with.

    Args:
        network: whose.
        evaluator: has the seed by which pixels are drawn.
        dataset: the images.
    """

    def pixels(batch: Batch, source: PerImage) -> Tensor:
        return to_uint8(network.observe(batch.require_images(), source))

    return replace(dataset, images=evaluator.each(pixels, dataset, "pixels"))
