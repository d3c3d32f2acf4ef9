"""The VAE-GAN of chapter 11."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from companion import checks
from companion.data.batch import Batch
from companion.evaluation import Evaluator
from companion.gan import discriminator_depth
from companion.measurement import Measurement
from companion.randomness import Source
from companion.recipes.base import Recipe, Splits
from companion.training import Objective, Phase
from companion.vae_gan import VAEGAN, VAEGANConfig

# Convolutions of a discriminator of images of 4,096 pixels, the largest that recipes take.
DEEPEST = discriminator_depth(4096)


@dataclass(frozen=True, kw_only=True)
class VAEGANRecipe(Recipe[VAEGAN]):
    """The VAE-GAN of chapter 11: an autoencoder whose reconstructions are judged by a discriminator's features."""

    model: ClassVar[type[nn.Module]] = VAEGAN

    steps: int = 8_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    beta1: float = 0.0
    beta2: float = 0.99
    warmup: float = 0.02
    ema: float | None = 0.999
    channels_last: bool = True
    network: VAEGANConfig = field(default_factory=VAEGANConfig)

    def place_holder(self, settings: Mapping[str, Any]) -> int:
        usual, layer = super().place_holder(settings), settings["layer"]
        checks.whole(-DEEPEST, DEEPEST - 1, layer=layer)
        # Images of twice the side are seen by one convolution more.
        missing = max(layer + 1, -layer) - discriminator_depth(usual)
        return usual * 2 ** max(missing, 0)

    def losses(self, network: VAEGAN, parents: Mapping[str, nn.Module]) -> Objective:
        def phase(name: str, part: nn.Module, loss: Callable[..., Mapping[str, Tensor]]) -> Phase:
            def of_batch(batch: Batch, source: Source) -> Mapping[str, Tensor]:
                return loss(batch.require_images(), source)

            return Phase(name, list(part.parameters()), of_batch)

        phases = (
            phase("discriminator", network.discriminator, network.discriminator_loss),
            phase("encoder", network.encoder, network.encoder_loss),
            phase("decoder", network.decoder, network.decoder_loss),
        )
        judged = self.network.features or self.network.adversarial
        return Objective(
            network,
            phases if judged else phases[1:],
            sample=lambda net, n, source: net.sample(n, source),
        )

    def check(self, splits: Splits, evaluator: Evaluator) -> None:
        super().check(splits, evaluator)
        evaluator.check(splits.held_out)

    def evaluate(self, network: VAEGAN, evaluator: Evaluator, splits: Splits) -> list[Measurement]:
        found: list[Measurement] = []
        for test in splits.tests:
            found += evaluator.reconstruction(lambda x, _: network.reconstruct(x), test)
        return found + evaluator.sample_quality(network.sample, splits.held_out)
