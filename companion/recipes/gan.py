"""The generative adversarial network of chapter 6."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from companion import checks
from companion.data import ImageDataset
from companion.data.batch import Batch
from companion.evaluation import Evaluator
from companion.gan import GAN, GANConfig
from companion.measurement import Measurement
from companion.randomness import Source
from companion.recipes.base import Recipe, Splits
from companion.training import Objective, Phase


@dataclass(frozen=True, kw_only=True)
class GANRecipe(Recipe[GAN]):
    """The generative adversarial network of chapter 6: DCGAN's networks, spectral normalisation, the hinge loss.

    Attributes:
        conditional: give both networks the label.
        generator_every: updates of the discriminator for each of the generator.
        generator_rate: the generator's learning rate, where it differs.
    """

    model: ClassVar[type[nn.Module]] = GAN

    steps: int = 10_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    beta1: float = 0.0
    beta2: float = 0.99
    warmup: float = 0.0
    ema: float | None = 0.999
    channels_last: bool = True
    conditional: bool = False
    generator_every: int = 1
    generator_rate: float | None = None
    network: GANConfig = field(default_factory=GANConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(1, 1000, generator_every=self.generator_every)
        if self.generator_rate is not None:
            checks.number(above=0, generator_rate=self.generator_rate)
        if self.compile and (self.network.gradient_penalty or self.network.r1):
            raise ValueError(
                "a penalty on the discriminator's slope needs second derivatives, which torch.compile does not have; "
                "leave out compile, or the penalty."
            )

    def classes(self, dataset: ImageDataset) -> int:
        """Returns the number of the data's classes, for conditional networks."""
        return len(dataset.classes) if self.conditional else 0

    def losses(self, network: GAN, parents: Mapping[str, nn.Module]) -> Objective:
        def tell(batch: Batch, source: Source) -> dict[str, Tensor]:
            labels = batch.labels_for(network.config.classes)
            return network.discriminator_loss(batch.require_images(), source, labels)

        def fool(batch: Batch, source: Source) -> dict[str, Tensor]:
            labels = batch.labels_for(network.config.classes)
            return network.generator_loss(len(batch), source, labels)

        d, g = list(network.discriminator.parameters()), list(network.generator.parameters())
        return Objective(
            network,
            (
                Phase("discriminator", d, tell),
                Phase("generator", g, fool, self.generator_rate, self.generator_every),
            ),
            sample=lambda net, n, source: net.sample(n, source),
        )

    def check(self, splits: Splits, evaluator: Evaluator) -> None:
        super().check(splits, evaluator)
        evaluator.check(splits.held_out)

    def evaluate(self, network: GAN, evaluator: Evaluator, splits: Splits) -> list[Measurement]:
        return evaluator.sample_quality(network.sample, splits.held_out)
