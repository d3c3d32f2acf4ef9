"""The variational autoencoder (Kingma and Welling, 2014; Rezende et al., 2014), its bounds and its latent space.

Symbols: x an image of D numbers, z a code of d numbers, p(z) = N(0, I) the prior, p(x|z) the decoder's
likelihood, q(z|x) = N(μ(x), diag σ²(x)) the encoder's posterior, q(z) = 1/N Σ_n q(z|x_n) the aggregate posterior.
Bounds are sums over dimensions, in nats per image; losses are their means over the batch.

Choices that differ from the papers, and why: residual convolutions instead of perceptrons (the perceptron is
there too, `architecture="mlp"`); "free bits" are counted over a whole image instead of over groups of latents
(Kingma et al., 2016), so that an image's loss does not depend on the rest of its batch; Gaussian decoders see
dequantised bytes, so that their density bounds a probability and cannot grow without limit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from companion import checks
from companion.distributions import (
    DiagonalGaussian,
    bernoulli_log_likelihood,
    binarise,
    dequantise,
    gaussian_log_density,
    kl_diagonal,
    kl_gaussian,
    log_mean_exp,
)
from companion.nn.convolutional import ResidualDecoder, ResidualEncoder
from companion.nn.layers import perceptron
from companion.randomness import Source, integers, normal, source_of

__all__ = [
    "VAE",
    "Bound",
    "LinearVAE",
    "VAEConfig",
    "active_units",
    "aggregate_kl",
    "aggregate_kl_gaussian",
    "binarise",
    "sample_aggregate",
]


class Bound(NamedTuple):
    """The terms of the evidence lower bound of each image, in nats.

    Attributes:
        log_likelihood: log p(x|z) for one draw of z from the posterior, which estimates its expectation.
        kl: KL(q(z|x) ‖ p(z)) of every latent coordinate, in closed form.
    """

    log_likelihood: Float[Tensor, " n"]
    kl: Float[Tensor, "n d"]

    @property
    def elbo(self) -> Float[Tensor, " n"]:
        """log p(x|z) − KL, whose expectation is at most log p(x)."""
        return self.log_likelihood - self.kl.sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The settings of a `VAE`.

    Attributes:
        channels: of the images.
        size: their side in pixels; a multiple of 4 for the convolutional architecture.
        width: channels at half the side of the image; hidden units of the perceptron in sixteens.
        latent_dim: d, the number of latent coordinates.
        likelihood: "bernoulli" for black and white pixels, "gaussian" for bytes.
        architecture: "convolutional" or "mlp".
        depth: residual blocks at each scale; of the perceptron, hidden layers.
        beta: weight of the KL term in the loss (Higgins et al., 2017); bounds always use 1. 0 makes the loss that
            of an autoencoder with a noisy code.
        free_nats: KL of an image below which the loss does not reward a smaller one.
        sigma: standard deviation of the Gaussian likelihood, in units of [−1, 1]; None learns one number for all
            pixels (Rybkin et al., 2021).
        classes: number of labels the model is conditional on; 0 for none.

    Raises:
        ValueError: for a setting that cannot work; the message names it, its value and the remedy.
    """

    channels: int = 1
    size: int = 28
    width: int = 32
    latent_dim: int = 32
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    architecture: Literal["convolutional", "mlp"] = "convolutional"
    depth: int = 1
    beta: float | int = 1.0
    free_nats: float | int = 0.0
    sigma: float | int | None = None
    classes: int = 0

    def __post_init__(self) -> None:
        checks.whole(1, channels=self.channels, size=self.size, width=self.width)
        checks.whole(1, latent_dim=self.latent_dim)
        checks.whole(0, classes=self.classes)
        checks.whole(0, checks.MOST_LAYERS, depth=self.depth)
        checks.one_of(["bernoulli", "gaussian"], likelihood=self.likelihood)
        checks.one_of(["convolutional", "mlp"], architecture=self.architecture)
        checks.number(0, beta=self.beta, free_nats=self.free_nats)
        if self.sigma is not None:
            checks.number(above=0, sigma=self.sigma)
            if self.likelihood != "gaussian":
                raise ValueError(
                    f"sigma is the standard deviation of a gaussian likelihood, got sigma {self.sigma} and likelihood "
                    f"{self.likelihood!r}: leave sigma out, or choose the gaussian one."
                )
        if self.architecture == "convolutional" and self.size % 4:
            raise ValueError(
                f"size must be a multiple of 4, got {self.size}; pad or resize the images."
            )


class VAE(nn.Module):
    """A variational autoencoder of square images in [−1, 1].

    With the Bernoulli likelihood, images are binarised anew whenever a bound is computed (dynamic binarisation,
    drawn from the caller's source), and decoded images and samples are the pixels' *means*, not bits.

    Args:
        config: the settings; the defaults are those of the shipped checkpoint "vae".
    """

    Config = VAEConfig

    def __init__(self, config: VAEConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or VAEConfig()
        shape = (c.channels, c.size, c.size)
        if c.architecture == "convolutional":
            self.encoder: nn.Module = ResidualEncoder(
                c.channels + c.classes, c.size, c.width, c.depth, 2 * c.latent_dim
            )
            self.decoder: nn.Module = ResidualDecoder(
                c.latent_dim + c.classes, c.channels, c.size, c.width, c.depth
            )
        else:
            hidden, pixels = (16 * c.width,) * c.depth, math.prod(shape)
            self.encoder = nn.Sequential(
                nn.Flatten(),
                perceptron(pixels + c.classes * c.size**2, *hidden, 2 * c.latent_dim),
            )
            self.decoder = nn.Sequential(
                perceptron(c.latent_dim + c.classes, *hidden, pixels), nn.Unflatten(1, shape)
            )
        if c.likelihood == "gaussian":
            # Starts at the scale of the data; a fixed one is no parameter.
            start = torch.tensor(2 * math.log(c.sigma or 0.5))
            if c.sigma is None:
                self.log_var_x = nn.Parameter(start)
            else:
                self.register_buffer("log_var_x", start, persistent=False)

    # -- Encoder and decoder ------------------------------------------------------------------------------

    def _one_hot(self, labels: Tensor | None, n: int) -> Tensor:
        classes = self.config.classes
        if (labels is None) != (classes == 0):
            raise ValueError(
                f"this VAE has {classes} classes: give each sample's label."
                if classes
                else "this VAE was built without classes: leave the labels out."
            )
        device = next(self.parameters()).device
        if labels is None:
            return torch.zeros(n, 0, device=device)
        return F.one_hot(labels, classes).to(device, torch.float32)

    def encode(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Returns μ(x) and log σ²(x) of the posterior q(z|x); nothing is drawn.

        A Bernoulli VAE is trained on black and white images (`binarise`); grey ones are accepted too.

        Raises:
            TypeError: if the images are bytes.
            ValueError: if they have another shape than the network was built for, or labels are missing or too many.
        """
        checks.images(x, self.config.channels, self.config.size, "VAE")
        y = self._one_hot(labels, len(x))
        planes = repeat(y, "n k -> n k h w", h=x.shape[2], w=x.shape[3])
        mu, log_var = self.encoder(torch.cat([x, planes], dim=1)).float().chunk(2, dim=1)
        return mu, log_var

    def posterior(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None
    ) -> DiagonalGaussian:
        """Returns q(z|x) as a distribution; see `encode`."""
        return DiagonalGaussian(*self.encode(x, labels))

    def reparameterise(
        self, mu: Float[Tensor, "n d"], log_var: Float[Tensor, "n d"], source: Source
    ) -> Float[Tensor, "n d"]:
        """Draws z = μ + σ·ε with ε ~ N(0, I), differentiable in μ and σ."""
        return DiagonalGaussian(mu, log_var).sample(source)

    def decode_raw(
        self, z: Float[Tensor, "n d"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Returns the likelihood's parameters: logits of white pixels, or means in units of [−1, 1]."""
        return self.decoder(torch.cat([z, self._one_hot(labels, len(z))], dim=1)).float()

    def decode(
        self, z: Float[Tensor, "n d"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Returns E[x|z], the mean images, in [−1, 1]."""
        raw = self.decode_raw(z, labels)
        return 2 * raw.sigmoid() - 1 if self.config.likelihood == "bernoulli" else raw.clamp(-1, 1)

    def forward(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Returns the reconstruction from the posterior's mean, in [−1, 1]."""
        return self.decode(self.encode(x, labels)[0], labels)

    def log_likelihood(
        self,
        x: Float[Tensor, "n c h w"],
        z: Float[Tensor, "n d"],
        labels: Int64[Tensor, " n"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Returns log p(x|z), summed over pixels, in nats.

        Args:
            x: black and white pixels (−1 and 1) for the Bernoulli likelihood, dequantised ones for the Gaussian.
            z: codes.
            labels: classes, for a conditional model.
        """
        raw = self.decode_raw(z, labels)
        if self.config.likelihood == "bernoulli":
            terms = bernoulli_log_likelihood(raw, (x + 1) / 2)
        else:
            terms = gaussian_log_density(x, raw, self.log_var_x)
        return terms.flatten(1).sum(dim=1)

    # -- Bounds and loss ----------------------------------------------------------------------------------

    def observe(self, x: Float[Tensor, "n c h w"], source: Source) -> Float[Tensor, "n c h w"]:
        """Turns images into what the likelihood is of: random bits, or dequantised bytes."""
        return (
            binarise(x, source) if self.config.likelihood == "bernoulli" else dequantise(x, source)
        )

    def elbo(
        self,
        x: Float[Tensor, "n c h w"],
        source: Source,
        labels: Int64[Tensor, " n"] | None = None,
    ) -> Bound:
        """Returns the terms of the evidence lower bound of each image, with one draw of pixels and of z.

        Args:
            x: images in [−1, 1].
            source: of the pixels' noise and of z.
            labels: classes, for a conditional model.
        """
        x = self.observe(x, source)
        posterior = self.posterior(x, labels)
        z = posterior.sample(source)
        return Bound(self.log_likelihood(x, z, labels), posterior.kl())

    def loss(
        self,
        x: Float[Tensor, "n c h w"],
        source: Source,
        labels: Int64[Tensor, " n"] | None = None,
    ) -> dict[str, Tensor]:
        """Returns means over the batch in nats: "loss", "reconstruction" (−log p(x|z)) and "kl"."""
        bound = self.elbo(x, source, labels)
        kl = bound.kl.sum(dim=1)
        paid = kl.clamp(min=self.config.free_nats) if self.config.free_nats else kl
        reconstruction = -bound.log_likelihood.mean()
        return {
            "loss": reconstruction + self.config.beta * paid.mean(),
            "reconstruction": reconstruction.detach(),
            "kl": kl.mean().detach(),
        }

    def iwae(
        self,
        x: Float[Tensor, "n c h w"],
        k: int,
        source: Source,
        labels: Int64[Tensor, " n"] | None = None,
        chunk: int = 50,
    ) -> Float[Tensor, " n"]:
        """Returns the importance-weighted bound (Burda et al., 2016, Eq. 8) of each image, in nats.

        L_k = E log 1/k Σ_i p(x|z_i) p(z_i) / q(z_i|x) with k draws from q: the ELBO for k = 1, and never smaller
        in expectation for a larger k.

        Args:
            x: images in [−1, 1].
            k: draws of z per image.
            source: of the pixels' noise and of the draws.
            labels: classes, for a conditional model.
            chunk: draws per image that are decoded together; memory grows with it, and the result does not change.

        Raises:
            ValueError: if k or chunk is below 1.
        """
        checks.whole(1, k=k, chunk=chunk)
        x = self.observe(x, source)
        mu, log_var = self.encode(x, labels)
        # All draws at once: they are the same ones whatever is decoded together.
        eps = normal((len(x), k, self.config.latent_dim), source, x.device)
        z = mu[:, None] + (0.5 * log_var)[:, None].exp() * eps
        # log p(z) − log q(z|x): the constants of the two Gaussians cancel.
        log_ratio = 0.5 * (eps.square() - z.square() + log_var[:, None]).sum(dim=2)
        log_p = []
        for part in z.split(chunk, dim=1):
            m = part.shape[1]
            images = repeat(x, "n c h w -> (n m) c h w", m=m)
            classes = None if labels is None else repeat(labels, "n -> (n m)", m=m)
            found = self.log_likelihood(images, rearrange(part, "n m d -> (n m) d"), classes)
            log_p.append(rearrange(found, "(n m) -> n m", m=m))
        return log_mean_exp(torch.cat(log_p, dim=1) + log_ratio)

    # -- Generation ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        source: Source | None = None,
        *,
        seed: int | None = None,
        labels: Int64[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Draws z from the prior and returns the pixels' means, in [−1, 1].

        Args:
            n: how many.
            source: of the codes, and of the labels where they are drawn.
            seed: in place of a source; image i is then a function of the seed and of i alone.
            labels: one per image, for a conditional model; left out, they are drawn, all classes alike.

        Raises:
            ValueError: unless exactly one of source and seed is given.
        """
        source = source_of(n, source, seed)
        device = next(self.parameters()).device
        if labels is None and self.config.classes:
            labels = integers(self.config.classes, (n,), source, device)
        return self.decode(normal((n, self.config.latent_dim), source, device), labels)

    @torch.no_grad()
    def traverse(
        self,
        z: Float[Tensor, " d"],
        coordinate: int,
        values: Sequence[float],
        label: int | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Returns mean images as one latent coordinate takes the given values and the others stay.

        Raises:
            ValueError: if there is no such coordinate.
        """
        checks.whole(0, self.config.latent_dim - 1, coordinate=coordinate)
        codes = z.repeat(len(values), 1)
        codes[:, coordinate] = torch.tensor(values).to(z)
        labels = None if label is None else torch.full((len(values),), label, device=z.device)
        return self.decode(codes, labels)


# -- The aggregate posterior ------------------------------------------------------------------------------


def sample_aggregate(
    mu: Float[Tensor, "m d"], log_var: Float[Tensor, "m d"], n: int, source: Source
) -> Float[Tensor, "n d"]:
    """Draws from q(z) = 1/m Σ q(z|x_m): an image at random, then a code from its posterior."""
    which = integers(len(mu), (n,), source, mu.device)
    return DiagonalGaussian(mu[which], log_var[which]).sample(source)


def aggregate_kl(
    mu: Float[Tensor, "m d"],
    log_var: Float[Tensor, "m d"],
    n: int,
    source: Source,
    chunk: int = 256,
) -> Float[Tensor, " n"]:
    """Returns n draws of log q(z) − log p(z), z ~ q(z), whose mean estimates KL(q(z) ‖ N(0, I)) without bias.

    q(z) is the mixture of the m posteriors given, evaluated exactly, in float64. With few images it is a
    different, spikier density than that of all images, and its KL is larger: at most by log of the factor.

    Args:
        mu: posterior means.
        log_var: logarithms of posterior variances.
        n: draws.
        source: of the draws.
        chunk: draws at a time.

    Returns:
        Nats; take the mean, and the standard error from the spread.
    """
    z = sample_aggregate(mu, log_var, n, source).double()
    mu, log_var = mu.double(), log_var.double()
    precision = torch.exp(-log_var)
    # Σ_d (z − μ)²/σ² as three matrix products. Centred codes lose fewer digits.
    constant = (log_var + mu.square() * precision).sum(dim=1)
    log_q = torch.cat(
        [
            log_mean_exp(
                -0.5 * (part.square() @ precision.T - 2 * part @ (mu * precision).T + constant),
                dim=1,
            )
            for part in z.split(chunk)
        ]
    )
    return (log_q + 0.5 * z.square().sum(dim=1)).float()


def aggregate_kl_gaussian(
    mu: Float[Tensor, "m d"], log_var: Float[Tensor, "m d"] | None = None
) -> Float[Tensor, ""]:
    """Returns KL(N(m, S) ‖ N(0, I)), m and S the aggregate posterior's mean and covariance.

    It is the part of KL(q(z) ‖ N(0, I)) that a Gaussian can express: the rest, KL(q(z) ‖ N(m, S)), is never
    negative. Without `log_var` the codes are points, as an autoencoder's are, whose full KL is infinite.
    """
    covariance = torch.cov(mu.double().T, correction=0).reshape(mu.shape[1], mu.shape[1])
    if log_var is not None:
        covariance = covariance + log_var.double().exp().mean(dim=0).diag()
    return kl_gaussian(mu.double().mean(dim=0), covariance)


def active_units(mu: Float[Tensor, "m d"], threshold: float = 0.01) -> int:
    """Returns how many coordinates of the posterior mean vary over the images (Burda et al., 2016, section 5.2).

    Args:
        mu: posterior means of many images.
        threshold: of the variance.
    """
    return int((mu.var(dim=0) > threshold).sum())


# -- The linear VAE, where everything is known --------------------------------------------------------------


class LinearVAE(nn.Module):
    """p(x|z) = N(Wz + m, s²I), q(z|x) = N(V(x − m), diag σ²): probabilistic PCA as a VAE (Lucas et al., 2019).

    The evidence is a Gaussian in closed form, and so is the ELBO. At the maximum of the likelihood the posterior
    lies within the encoder's family (the columns of W can be taken orthogonal), so the gap closes.

    Args:
        dimension: D, of the data.
        latent_dim: d, below D.

    Raises:
        ValueError: if the latent dimension is not in 1…D − 1.
    """

    def __init__(self, dimension: int, latent_dim: int) -> None:
        super().__init__()
        checks.whole(1, dimension - 1, latent_dim=latent_dim)
        self.dimension, self.latent_dim = dimension, latent_dim
        self.weight = nn.Parameter(torch.randn(dimension, latent_dim) / math.sqrt(dimension))
        self.mean = nn.Parameter(torch.zeros(dimension))
        self.log_var_x = nn.Parameter(torch.zeros(()))
        self.encoder = nn.Parameter(torch.randn(latent_dim, dimension) / math.sqrt(dimension))
        self.log_var_z = nn.Parameter(torch.zeros(latent_dim))

    def encode(self, x: Float[Tensor, "n D"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Returns μ(x) and log σ², the same for every x."""
        mu = (x - self.mean) @ self.encoder.T
        return mu, self.log_var_z.expand_as(mu)

    def elbo(self, x: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
        """Returns the exact ELBO of each row: the expectation over z is in closed form."""
        mu, log_var = self.encode(x)
        # E‖x − m − Wz‖² = ‖x − m − Wμ‖² + Σ_j σ_j² ‖w_j‖²
        at_mean = gaussian_log_density(x, mu @ self.weight.T + self.mean, self.log_var_x).sum(dim=1)
        spread = (log_var.exp() * self.weight.square().sum(dim=0)).sum(dim=1)
        return at_mean - 0.5 * spread * torch.exp(-self.log_var_x) - kl_diagonal(mu, log_var).sum(1)

    def log_evidence(self, x: Float[Tensor, "n D"]) -> Float[Tensor, " n"]:
        """Returns log p(x) = log N(x; m, WWᵀ + s²I) of each row, exactly."""
        covariance = self.weight @ self.weight.T + self.log_var_x.exp() * torch.eye(
            self.dimension
        ).to(self.weight)
        return torch.distributions.MultivariateNormal(self.mean, covariance).log_prob(x)

    @torch.no_grad()
    def solve(self, x: Float[Tensor, "n D"]) -> "LinearVAE":
        """Sets all parameters to the maximum of the likelihood (Tipping and Bishop, 1999, Eqs. 7 and 8).

        W = U (Λ − s²I)^½ with the d leading eigenvectors U and eigenvalues Λ of the covariance, s² the mean of
        the other eigenvalues; encoder and posterior variances are those of the exact posterior.

        Returns:
            The object itself.

        Raises:
            ValueError: if the discarded directions have no variance, where the likelihood has no maximum.
        """
        data = x.double()
        covariance = torch.cov(data.T, correction=0)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0), vectors.flip(1)
        noise = values[self.latent_dim :].mean()
        if noise <= 1e-12 * values[0]:
            raise ValueError(
                "the data lie in the latent subspace, so the likelihood grows without limit; use fewer latents."
            )
        kept = values[: self.latent_dim]
        weight = vectors[:, : self.latent_dim] * (kept - noise).clamp(min=0).sqrt()
        # The exact posterior: covariance s² M⁻¹ and mean M⁻¹Wᵀ(x − m), M = WᵀW + s²I = Λ, diagonal.
        self.weight.copy_(weight)
        self.mean.copy_(data.mean(dim=0))
        self.log_var_x.copy_(noise.log())
        self.encoder.copy_(weight.T / kept[:, None])
        self.log_var_z.copy_((noise / kept).log())
        return self
