"""The variational autoencoder of chapter 10."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from companion import checks
from companion.data import ImageDataset
from companion.data.batch import Batch
from companion.distributions import BYTE, bits_per_dimension
from companion.evaluation import Evaluator
from companion.evaluation.evaluator import about_data
from companion.measurement import Measurement
from companion.randomness import Source
from companion.recipes.base import Recipe, Splits
from companion.training import Objective, single_objective
from companion.vae import VAE, VAEConfig


@dataclass(frozen=True, kw_only=True)
class VAERecipe(Recipe[VAE]):
    """The variational autoencoder of chapter 10: dynamically binarised MNIST, bounds in nats.

    Attributes:
        conditional: give encoder and decoder the label.
        iwae: draws of the importance-weighted bound when it is measured; 0 leaves it out.
    """

    model: ClassVar[type[nn.Module]] = VAE

    steps: int = 30_000
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: float = 0.02
    clip: float | None = 200.0
    ema: float | None = 0.999
    conditional: bool = False
    iwae: int = 50
    network: VAEConfig = field(default_factory=VAEConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(0, 100_000, iwae=self.iwae)

    def classes(self, dataset: ImageDataset) -> int:
        """Returns the number of the data's classes, for a conditional network."""
        return len(dataset.classes) if self.conditional else 0

    def losses(self, network: VAE, parents: Mapping[str, nn.Module]) -> Objective:
        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            labels = batch.labels_for(network.config.classes)
            return network.loss(batch.require_images(), source, labels)

        return single_objective(network, loss, sample=lambda net, n, source: net.sample(n, source))

    def check(self, splits: Splits, evaluator: Evaluator) -> None:
        super().check(splits, evaluator)
        evaluator.check(splits.held_out)

    def evaluate(self, network: VAE, evaluator: Evaluator, splits: Splits) -> list[Measurement]:
        found: list[Measurement] = []
        for test in splits.labelled_tests if self.conditional else splits.tests:
            found += self._bounds(network, evaluator, test)
        return found + evaluator.sample_quality(network.sample, splits.held_out)

    def _bounds(self, network: VAE, evaluator: Evaluator, test: ImageDataset) -> list[Measurement]:
        """Measures the ELBO and its terms, and the tighter bound."""

        def terms(batch: Batch, source: Source) -> dict[str, Tensor]:
            labels = batch.labels_for(network.config.classes)
            bound = network.elbo(batch.require_images(), source, labels)
            return {
                "−ELBO": -bound.elbo,
                "reconstruction term": -bound.log_likelihood,
                "KL": bound.kl.sum(dim=1),
            }

        def tighter(batch: Batch, source: Source) -> Tensor:
            labels = batch.labels_for(network.config.classes)
            return -network.iwae(batch.require_images(), self.iwae, source, labels)

        rows = evaluator.each(terms, test, "elbo")
        values = {name: float(row.double().mean()) for name, row in rows.items()}
        if self.iwae:
            values[f"−IWAE-{self.iwae}"] = evaluator.mean(tighter, test, "iwae")
        about = about_data(test, seed=evaluator.seed)
        # A KL is neither good nor bad in itself: it is what the code costs.
        found = [
            Measurement(
                name=name,
                value=value,
                unit="nats",
                better="neither" if name in ("KL", "reconstruction term") else "lower",
                **about,
            )
            for name, value in values.items()
        ]
        if self.network.likelihood == "gaussian":
            bits = float(bits_per_dimension(values["−ELBO"], test.images[0].numel(), unit=BYTE))
            found.append(
                Measurement(name="bits/dim", value=bits, unit="bits/dim", better="lower", **about)
            )
        return found
