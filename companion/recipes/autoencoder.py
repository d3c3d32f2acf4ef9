"""The autoencoder of chapter 8."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from companion import checks
from companion.autoencoder import Autoencoder, AutoencoderConfig, fit_mixture
from companion.autoencoder import sample as sample_codes
from companion.evaluation import Evaluator
from companion.measurement import Measurement
from companion.randomness import derive
from companion.recipes.base import Recipe, Splits, probe
from companion.training import Objective, single_objective

# Codes of so many training images show their density.
MOST_CODES = 10_000


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe(Recipe[Autoencoder]):
    """The autoencoder of chapter 8: the least squared error through a bottleneck.

    Attributes:
        parts: Gaussians in the mixture that is fitted to the codes when samples are measured.
    """

    model: ClassVar[type[nn.Module]] = Autoencoder

    steps: int = 8_000
    batch_size: int = 64
    learning_rate: float = 3e-3
    clip: float | None = 1.0
    channels_last: bool = True
    parts: int = 10
    network: AutoencoderConfig = field(default_factory=AutoencoderConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(1, 1000, parts=self.parts)

    def losses(self, network: Autoencoder, parents: Mapping[str, nn.Module]) -> Objective:
        return single_objective(
            network, lambda batch, source: network.loss(batch.require_images(), source)
        )

    def check(self, splits: Splits, evaluator: Evaluator) -> None:
        super().check(splits, evaluator)
        evaluator.check(splits.held_out)
        codes = len(splits.train[:MOST_CODES])
        if codes <= self.parts:
            raise ValueError(
                f"parts is {self.parts}: a mixture of so many Gaussians is fitted to the codes of the training images, "
                f"and these are only {codes}. Lower parts (--parts {max(1, codes // 5)}), or train on more images."
            )

    def evaluate(
        self, network: Autoencoder, evaluator: Evaluator, splits: Splits
    ) -> list[Measurement]:
        found: list[Measurement] = []
        for test in splits.tests:
            found += evaluator.reconstruction(lambda x, _: network(x), test)
        found += probe(network.encode, evaluator, splits)
        some = splits.train[:MOST_CODES]
        codes = evaluator.each(
            lambda batch, _: network.encode(batch.require_images()).float(), some, "codes"
        )
        density = fit_mixture(codes, self.parts, derive(self.seed, "mixture")).to(evaluator.device)
        return found + evaluator.sample_quality(
            lambda n, source: sample_codes(network, density, n, source),
            splits.held_out,
            of="codes from a mixture",
        )
