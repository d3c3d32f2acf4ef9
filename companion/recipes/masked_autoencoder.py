"""The masked autoencoder of chapter 9."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from companion import checks
from companion.data.batch import Batch
from companion.evaluation import Evaluator
from companion.evaluation.evaluator import about_data
from companion.masked_autoencoder import MaskedAutoencoder, MaskedAutoencoderConfig
from companion.measurement import Measurement
from companion.randomness import Source
from companion.recipes.base import Recipe, Splits, probe
from companion.training import Objective, single_objective


@dataclass(frozen=True, kw_only=True)
class MaskedAutoencoderRecipe(Recipe[MaskedAutoencoder]):
    """The masked autoencoder of chapter 9: patches of 4×4 pixels, three quarters of them hidden."""

    model: ClassVar[type[nn.Module]] = MaskedAutoencoder

    steps: int = 3000
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup: float = 0.1
    beta2: float = 0.95
    clip: float | None = 1.0
    ema: float | None = 0.999
    network: MaskedAutoencoderConfig = field(default_factory=MaskedAutoencoderConfig)

    def place_holder(self, settings: Mapping[str, Any]) -> int:
        usual, patch = super().place_holder(settings), settings["patch"]
        checks.whole(1, patch=patch)
        # One patch is an image as well.
        return patch if usual % patch else usual

    def losses(self, network: MaskedAutoencoder, parents: Mapping[str, nn.Module]) -> Objective:
        return single_objective(
            network, lambda batch, source: network.loss(batch.require_images(), source)
        )

    def evaluate(
        self, network: MaskedAutoencoder, evaluator: Evaluator, splits: Splits
    ) -> list[Measurement]:
        def errors(batch: Batch, source: Source) -> Tensor:
            return network.errors(batch.require_images(), source)

        found = [
            Measurement(
                name="MSE of hidden patches",
                value=evaluator.mean(errors, test, "masks"),
                better="lower",
                **about_data(test, seed=evaluator.seed),
            )
            for test in splits.tests
        ]
        return found + probe(network.features, evaluator, splits)
