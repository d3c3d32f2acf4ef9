"""The convolutional autoregressive networks of chapter 7."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from companion.data import ImageDataset
from companion.data.batch import Batch
from companion.distributions import bits_per_dimension
from companion.evaluation import Evaluator
from companion.evaluation.evaluator import about_data
from companion.measurement import Measurement
from companion.pixelcnn import PixelCNN, PixelCNNConfig
from companion.randomness import PerImage, Source
from companion.recipes.base import Recipe, Splits
from companion.recipes.image_gpt import observed
from companion.training import Objective, single_objective


@dataclass(frozen=True, kw_only=True)
class PixelCNNRecipe(Recipe[PixelCNN]):
    """The gated PixelCNN of chapter 7: dynamically binarised MNIST, exact nats.

    Attributes:
        conditional: tell the network the label.
    """

    model: ClassVar[type[nn.Module]] = PixelCNN

    steps: int = 13_000
    batch_size: int = 16
    learning_rate: float = 2e-3
    beta2: float = 0.99
    warmup: float = 0.02
    clip: float | None = 1.0
    ema: float | None = 0.999
    conditional: bool = False
    network: PixelCNNConfig = field(default_factory=PixelCNNConfig)

    def classes(self, dataset: ImageDataset) -> int:
        """Returns the number of the data's classes, for a conditional network."""
        return len(dataset.classes) if self.conditional else 0

    def losses(self, network: PixelCNN, parents: Mapping[str, nn.Module]) -> Objective:
        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            labels = batch.labels_for(network.config.classes)
            return network.loss(batch.require_images(), source, labels)

        return single_objective(network, loss, sample=lambda net, n, source: net.sample(n, source))

    def check(self, splits: Splits, evaluator: Evaluator) -> None:
        super().check(splits, evaluator)
        evaluator.check(splits.held_out)

    def evaluate(
        self, network: PixelCNN, evaluator: Evaluator, splits: Splits
    ) -> list[Measurement]:
        def nats(batch: Batch, source: PerImage) -> Tensor:
            labels = batch.labels_for(network.config.classes)
            return network.nll(batch.require_images(), source, labels)

        found = []
        for test in splits.labelled_tests if self.conditional else splits.tests:
            value = evaluator.mean(nats, test, "pixels")
            about = about_data(test, seed=evaluator.seed)
            found.append(
                Measurement(name="−log p", value=value, unit="nats", better="lower", **about)
            )
            bits = float(bits_per_dimension(value, test.images[0].numel()))
            found.append(
                Measurement(name="bits/dim", value=bits, unit="bits/dim", better="lower", **about)
            )
        reference = observed(network, evaluator, splits.held_out)
        return found + evaluator.sample_quality(network.sample, reference, of=self.kind_of_pixels())

    def kind_of_pixels(self) -> str:
        """Says which pixels samples have, and so which real ones they are compared with."""
        levels = self.network.levels
        return "black and white" if levels == 2 else "" if levels == 256 else f"{levels} levels"
