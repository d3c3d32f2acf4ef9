"""The denoising autoencoder of chapter 9."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from companion.denoising_autoencoder import (
    DenoisingAutoencoder,
    DenoisingAutoencoderConfig,
    corrupt,
)
from companion.evaluation import Evaluator
from companion.measurement import Measurement
from companion.randomness import Source
from companion.recipes.base import Recipe, Splits, probe
from companion.training import Objective, single_objective

# The level that the chapter's figures show, measured whatever the range of the training.
SHOWN = 0.5


@dataclass(frozen=True, kw_only=True)
class DenoisingAutoencoderRecipe(Recipe[DenoisingAutoencoder]):
    """The denoising autoencoder of chapter 9: Gaussian noise of all levels in a range, one network that is not told."""

    model: ClassVar[type[nn.Module]] = DenoisingAutoencoder

    steps: int = 4000
    learning_rate: float = 2e-3
    ema: float | None = 0.999
    channels_last: bool = True
    network: DenoisingAutoencoderConfig = field(default_factory=DenoisingAutoencoderConfig)

    def losses(self, network: DenoisingAutoencoder, parents: Mapping[str, nn.Module]) -> Objective:
        return single_objective(
            network,
            lambda batch, source: network.loss(batch.require_images(), source),
            sample=(lambda net, n, source: net.sample(n, source)) if network.can_sample else None,
        )

    def check(self, splits: Splits, evaluator: Evaluator) -> None:
        super().check(splits, evaluator)
        evaluator.check(splits.held_out)

    @property
    def levels(self) -> list[float]:
        """The amounts of corruption that are measured: the lowest and highest of the training, and a middle one."""
        low, high = self.network.amount, self.network.amount_max
        return sorted({low, SHOWN, low if high is None else high})

    def evaluate(
        self, network: DenoisingAutoencoder, evaluator: Evaluator, splits: Splits
    ) -> list[Measurement]:
        found: list[Measurement] = []
        for test in splits.tests:
            for level in self.levels:

                def denoise(x: Tensor, source: Source, level: float = level) -> Tensor:
                    return network(corrupt(x, self.network.corruption, level, source))

                found += evaluator.reconstruction(denoise, test, of=f"noise {level:g}")
        found += probe(network.encode, evaluator, splits)
        if network.can_sample:
            found += evaluator.sample_quality(network.sample, splits.held_out)
        return found
