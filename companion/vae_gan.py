"""An autoencoder judged by a discriminator: the VAE-GAN.

Reference:
    Larsen et al., Autoencoding beyond pixels using a learned similarity metric, 2016: Algorithm 1, Eqs. 5 to 8.

Three networks: an encoder q(z|x), a decoder that is also a generator, and a discriminator. What counts as a good
reconstruction is said by the discriminator's own features, not by pixels, and it learns to tell real images from
reconstructions *and* from samples of the prior. Each network follows its own sum:

    encoder        KL(q(z|x) ‖ N(0, I)) + L_features
    decoder        γ · L_features + L_fool
    discriminator  L_tell

so that the encoder never tries to fool, and the discriminator does not bend its features to make images alike.

Deviations: the discriminator has spectral normalisation in place of batch normalisation; the two kinds of fakes have
half a vote each, where the paper lets them count once each against the real images' once; the KL has a weight β.
With `features=False` pixels are compared, and with `adversarial=0` the discriminator has no say: both off is the
ordinary VAE with the same networks, which is what a comparison needs.

Shapes: images "n c h w" in [−1, 1]; codes "n latent_dim".
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion import checks
from companion.distributions import DiagonalGaussian
from companion.gan import LOSSES, Discriminator, Generator, Loss, Scalar, discriminator_depth
from companion.nn.convolutional import ConvEncoder
from companion.randomness import Source, normal, source_of


@dataclass(frozen=True, kw_only=True)
class VAEGANConfig:
    """The settings of a `VAEGAN`.

    Attributes:
        channels: of the images, 1 or 3.
        size: their side in pixels: 28, 32, 64 and others that can be halved to at most 8.
        latent_dim: numbers per code.
        encoder_width: channels of the encoder at the full side of the image.
        decoder_width: channels of the decoder at half the side.
        discriminator_width: channels of the discriminator at half the side.
        layer: which of the discriminator's convolutions is compared; −1 is the deepest.
        features: compare features; False compares pixels.
        observation_precision: 1/σ² of the Gaussian around features or pixels, by which half the squared distance is
            multiplied.
        beta: weight of the KL.
        gamma: weight of the reconstruction in the decoder's loss, beside the discriminator.
        adversarial: weight of the discriminator there; 0 leaves the decoder unjudged.
        loss: one of `companion.gan.LOSSES`.

    Raises:
        ValueError: for a setting that cannot work; the message names it, its value and the remedy.
    """

    channels: int = 1
    size: int = 28
    latent_dim: int = 32
    encoder_width: int = 16
    decoder_width: int = 64
    discriminator_width: int = 32
    layer: int = 1
    features: bool = True
    observation_precision: float | int = 10.0
    beta: float | int = 1.0
    gamma: float | int = 0.01
    adversarial: float | int = 1.0
    loss: Loss = "hinge"

    def __post_init__(self) -> None:
        checks.whole(1, channels=self.channels, size=self.size, latent_dim=self.latent_dim)
        checks.whole(1, encoder_width=self.encoder_width, decoder_width=self.decoder_width)
        checks.whole(1, discriminator_width=self.discriminator_width)
        checks.flag(features=self.features)
        checks.number(0, observation_precision=self.observation_precision, beta=self.beta)
        checks.number(0, gamma=self.gamma, adversarial=self.adversarial)
        checks.one_of(LOSSES, loss=self.loss)
        depth = discriminator_depth(self.size)
        checks.whole(-depth, depth - 1, layer=self.layer)


class VAEGAN(nn.Module):
    """Encoder, decoder and discriminator, with a loss for each.

    Args:
        config: the settings; the defaults are those of the shipped checkpoint "vae-gan".
    """

    Config = VAEGANConfig

    def __init__(self, config: VAEGANConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or VAEGANConfig()
        self.encoder = ConvEncoder(c.channels, c.size, c.encoder_width, 2 * c.latent_dim)
        self.decoder = Generator(c.latent_dim, c.channels, c.size, c.decoder_width)
        self.discriminator = Discriminator(c.channels, c.size, c.discriminator_width)

    # -- Codes and images -----------------------------------------------------------------------------------

    def encode(
        self, x: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n latent_dim"], Float[Tensor, "n latent_dim"]]:
        """Returns the posterior's mean and logarithm of variance.

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they have another shape than the network was built for.
        """
        mu, log_var = self.encoder(x).float().chunk(2, dim=1)
        # The variance of a code stays between e^−12 and e^4: a bad first step cannot blow up what follows.
        return mu, log_var.clamp(-12, 4)

    def decode(self, z: Float[Tensor, "n latent_dim"]) -> Float[Tensor, "n c h w"]:
        """Returns images in [−1, 1]."""
        return self.decoder(z)

    def reconstruct(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Returns the images of the posteriors' means."""
        return self.decode(self.encode(x)[0])

    @torch.no_grad()
    def sample(
        self, n: int, source: Source | None = None, *, seed: int | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Draws codes from the prior and returns their images, in [−1, 1].

        Args:
            n: how many.
            source: of the codes.
            seed: in place of a source; image i is then a function of the seed and of i alone.

        Raises:
            ValueError: unless exactly one of source and seed is given.
        """
        return self.decode(self._prior(n, source_of(n, source, seed)))

    def _prior(self, n: int, source: Source) -> Tensor:
        return normal((n, self.config.latent_dim), source, next(self.parameters()).device)

    def _again(self, x: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        """The reconstruction from one draw of the posterior, and the KL of each image in nats."""
        posterior = DiagonalGaussian(*self.encode(x))
        return self.decode(posterior.sample(source)), posterior.kl().sum(dim=1)

    # -- The three losses -----------------------------------------------------------------------------------

    def reconstruction_loss(
        self, x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, " n"]:
        """Returns −log p(x|y) of each image up to a constant, in nats; p is Gaussian in features or pixels (Eq. 7).

        It is half the squared distance times `observation_precision`.
        """
        if self.config.features:
            with torch.no_grad():
                a = self.discriminator.features(x)[self.config.layer].float()
            b = self.discriminator.features(y)[self.config.layer].float()
        else:
            a, b = x, y.float()
        return 0.5 * self.config.observation_precision * (a - b).square().flatten(1).sum(dim=1)

    def encoder_loss(self, x: Float[Tensor, "n c h w"], source: Source) -> dict[str, Scalar]:
        """Returns β times the KL plus the reconstruction loss, and both alone, in nats per image."""
        again, kl = self._again(x, source)
        reconstruction = self.reconstruction_loss(x, again).mean()
        return {
            "loss": self.config.beta * kl.mean() + reconstruction,
            "KL": kl.mean(),
            "reconstruction": reconstruction,
        }

    def decoder_loss(self, x: Float[Tensor, "n c h w"], source: Source) -> dict[str, Scalar]:
        """Returns γ times the reconstruction loss, plus the generator's loss on reconstructions and prior samples."""
        again, _ = self._again(x, source)
        loss = self.config.gamma * self.reconstruction_loss(x, again).mean()
        if self.config.adversarial:
            drawn = self.decode(self._prior(len(x), source))
            logits = torch.cat([self.discriminator(again), self.discriminator(drawn)])
            loss = loss + self.config.adversarial * LOSSES[self.config.loss].generator(logits)
        return {"loss": loss}

    def discriminator_loss(self, x: Float[Tensor, "n c h w"], source: Source) -> dict[str, Scalar]:
        """Returns the discriminator's loss, with reconstructions and prior samples as fakes, and the mean logits."""
        with torch.no_grad():
            again = self._again(x, source)[0].to(x.dtype)
            drawn = self.decode(self._prior(len(x), source)).to(x.dtype)
        real = self.discriminator(x)
        again, drawn = self.discriminator(again), self.discriminator(drawn)
        loss = LOSSES[self.config.loss].discriminator(real, torch.cat([again, drawn]))
        return {
            "loss": loss,
            "real": real.mean(),
            "reconstructions": again.mean(),
            "samples": drawn.mean(),
        }
