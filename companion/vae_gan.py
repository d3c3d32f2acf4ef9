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
With `features=False` the likeness is that of pixels, and with `adversarial=0` nobody judges: both off is the ordinary
VAE with the same networks, which is what a comparison needs.

Shapes: images "n c h w" in [−1, 1]; codes "n latent".
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from companion.distributions import kl_diagonal
from companion.errors import unknown_name
from companion.gan import LOSSES, Discriminator, Generator, Scalar
from companion.nn.convolutional import ConvEncoder
from companion.randomness import Source, normal


class VAEGAN(nn.Module):
    """Encoder, decoder and discriminator, with a loss for each.

    Args:
        channels: of the images, 1 or 3.
        size: their side in pixels: 28, 32, 64 and others that can be halved to at most 8.
        latent: numbers a code.
        encoder_width: channels of the encoder at the full side.
        decoder_width: channels of the decoder at half the side.
        discriminator_width: channels of the discriminator at half the side.
        layer: which convolution's output is compared; −1 is the deepest.
        features: compare features; False compares pixels.
        precision: 1/σ² of the Gaussian around features or pixels, by which half the squared distance is multiplied.
        beta: weight of the KL.
        gamma: weight of the likeness in the decoder's loss, beside the judge.
        adversarial: weight of the judge there; 0 leaves the decoder unjudged.
        loss: one of `companion.gan.LOSSES`.

    Raises:
        ValueError: if a weight is negative, there is no such layer or loss, or as from the networks.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        latent: int = 32,
        encoder_width: int = 16,
        decoder_width: int = 32,
        discriminator_width: int = 32,
        layer: int = -1,
        features: bool = True,
        precision: float | int = 1.0,
        beta: float | int = 1.0,
        gamma: float | int = 1.0,
        adversarial: float | int = 1.0,
        loss: str = "non-saturating",
    ) -> None:
        super().__init__()
        if min(precision, beta, gamma, adversarial) < 0:
            raise ValueError(
                "precision, beta, gamma and adversarial must not be negative, got "
                f"{precision}, {beta}, {gamma} and {adversarial}."
            )
        if loss not in LOSSES:
            raise unknown_name("loss", loss, LOSSES)
        self.channels, self.size, self.latent = channels, size, latent
        self.encoder_width, self.decoder_width = encoder_width, decoder_width
        self.discriminator_width, self.layer, self.features = discriminator_width, layer, features
        self.precision, self.beta, self.gamma = precision, beta, gamma
        self.adversarial, self.loss = adversarial, loss
        self.encoder = ConvEncoder(channels, size, encoder_width, 2 * latent)
        self.decoder = Generator(latent, channels, size, decoder_width)
        self.discriminator = Discriminator(channels, size, discriminator_width)
        depth = len(self.discriminator.convolutions)
        if not -depth <= layer < depth:
            raise ValueError(f"layer must lie in {-depth}…{depth - 1}, got {layer}.")

    # -- Codes and images -----------------------------------------------------------------------------------

    def encode(
        self, x: Float[Tensor, "n c h w"]
    ) -> tuple[Float[Tensor, "n latent"], Float[Tensor, "n latent"]]:
        """Returns the posterior's mean and logarithm of variance."""
        mu, log_var = self.encoder(x).float().chunk(2, dim=1)
        # The variance of a code stays between e^−12 and e^4: a bad first step cannot blow up what follows.
        return mu, log_var.clamp(-12, 4)

    def decode(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n c h w"]:
        """Returns images in [−1, 1]."""
        return self.decoder(z)

    def reconstruct(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Returns the images of the posteriors' means."""
        return self.decode(self.encode(x)[0])

    @torch.no_grad()
    def sample(self, n: int, source: Source) -> Float[Tensor, "n c h w"]:
        """Draws codes from the prior and returns their images."""
        return self.decode(self._prior(n, source))

    def _prior(self, n: int, source: Source) -> Tensor:
        return normal((n, self.latent), source, next(self.parameters()).device)

    def _again(self, x: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        """The reconstruction from one draw of the posterior, and the KL of each image in nats."""
        mu, log_var = self.encode(x)
        z = mu + (0.5 * log_var).exp() * normal((len(x), self.latent), source, x.device)
        return self.decode(z), kl_diagonal(mu, log_var).sum(dim=1)

    # -- The three losses -----------------------------------------------------------------------------------

    def likeness(
        self, x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, " n"]:
        """Returns half the squared distance of images, in features or in pixels, times the precision (Eq. 7)."""
        if self.features:
            with torch.no_grad():
                a = self.discriminator.features(x)[self.layer].float()
            b = self.discriminator.features(y)[self.layer].float()
        else:
            a, b = x, y.float()
        return 0.5 * self.precision * (a - b).square().flatten(1).sum(dim=1)

    def encoder_loss(self, x: Float[Tensor, "n c h w"], source: Source) -> dict[str, Scalar]:
        """Returns the KL and the likeness, in nats an image."""
        again, kl = self._again(x, source)
        likeness = self.likeness(x, again).mean()
        return {"loss": self.beta * kl.mean() + likeness, "KL": kl.mean(), "likeness": likeness}

    def decoder_loss(self, x: Float[Tensor, "n c h w"], source: Source) -> dict[str, Scalar]:
        """Returns γ times the likeness, and what the judge says of reconstructions and prior samples."""
        again, _ = self._again(x, source)
        loss = self.gamma * self.likeness(x, again).mean()
        if self.adversarial:
            drawn = self.decode(self._prior(len(x), source))
            logits = torch.cat([self.discriminator(again), self.discriminator(drawn)])
            loss = loss + self.adversarial * LOSSES[self.loss].generator(logits)
        return {"loss": loss}

    def discriminator_loss(self, x: Float[Tensor, "n c h w"], source: Source) -> dict[str, Scalar]:
        """Returns the judge's loss, with reconstructions and prior samples as fakes."""
        with torch.no_grad():
            again = self._again(x, source)[0].to(x.dtype)
            drawn = self.decode(self._prior(len(x), source)).to(x.dtype)
        real = self.discriminator(x)
        again, drawn = self.discriminator(again), self.discriminator(drawn)
        loss = LOSSES[self.loss].discriminator(real, torch.cat([again, drawn]))
        return {
            "loss": loss,
            "real": real.mean(),
            "reconstructions": again.mean(),
            "samples": drawn.mean(),
        }
