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
from typing import Literal, NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from companion.distributions import (
    bernoulli_log_likelihood,
    dequantise,
    gaussian_log_density,
    kl_diagonal,
    kl_gaussian,
    log_mean_exp,
)
from companion.nn.residual import ResidualDecoder, ResidualEncoder, mlp
from companion.randomness import Source, integers, normal, uniform

__all__ = [
    "VAE",
    "Bound",
    "LinearVAE",
    "active_units",
    "aggregate_kl",
    "aggregate_kl_gaussian",
    "binarise",
    "sample_aggregate",
]


def binarise(x: Float[Tensor, "n c h w"], source: Source) -> Float[Tensor, "n c h w"]:
    """Draws black or white pixels, −1 or 1, whose mean is the grey value: dynamic binarisation.

    Images that hold only −1 and 1, such as a statically binarised set, pass unchanged.
    """
    return torch.where(uniform(tuple(x.shape), source, x.device) < (x + 1) / 2, 1.0, -1.0)


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


class VAE(nn.Module):
    """A variational autoencoder of square images in [−1, 1].

    With the Bernoulli likelihood, images are binarised anew whenever a bound is computed (dynamic binarisation,
    drawn from the caller's source), and decoded images and samples are the pixels' *means*, not bits.

    Args:
        channels: of the images.
        size: their side; a multiple of 4 for the convolutional architecture.
        width: of the networks: channels at half the side, or hidden units of the perceptron in sixteens.
        latent: d, the number of latent coordinates.
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
        ValueError: if an option is unknown or a number out of range.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        width: int = 16,
        latent: int = 16,
        *,
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli",
        architecture: Literal["convolutional", "mlp"] = "convolutional",
        depth: int = 1,
        beta: float = 1.0,
        free_nats: float = 0.0,
        sigma: float | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(f"likelihood must be bernoulli or gaussian, got {likelihood!r}.")
        if architecture not in ("convolutional", "mlp"):
            raise ValueError(f"architecture must be convolutional or mlp, got {architecture!r}.")
        if latent < 1 or beta < 0 or free_nats < 0 or classes < 0:
            raise ValueError(
                "latent must be at least 1, and beta, free_nats and classes not negative, got "
                f"{latent}, {beta}, {free_nats} and {classes}."
            )
        if sigma is not None and (likelihood != "gaussian" or sigma <= 0):
            raise ValueError(
                f"sigma is the positive standard deviation of a gaussian likelihood, got {sigma}."
            )
        self.channels, self.size, self.width, self.latent = channels, size, width, latent
        self.likelihood, self.architecture, self.depth = likelihood, architecture, depth
        self.beta, self.free_nats, self.sigma, self.classes = beta, free_nats, sigma, classes
        shape = (channels, size, size)
        if architecture == "convolutional":
            self.encoder: nn.Module = ResidualEncoder(
                channels + classes, size, width, depth, 2 * latent
            )
            self.decoder: nn.Module = ResidualDecoder(
                latent + classes, channels, size, width, depth
            )
        else:
            hidden, pixels = (16 * width,) * depth, math.prod(shape)
            self.encoder = nn.Sequential(
                nn.Flatten(), mlp((pixels + classes * size**2, *hidden, 2 * latent))
            )
            self.decoder = nn.Sequential(
                mlp((latent + classes, *hidden, pixels)), nn.Unflatten(1, shape)
            )
        if likelihood == "gaussian":
            # Starts at the scale of the data; a fixed one is no parameter.
            start = torch.tensor(2 * math.log(sigma or 0.5))
            if sigma is None:
                self.log_var_x = nn.Parameter(start)
            else:
                self.register_buffer("log_var_x", start, persistent=False)

    # -- Encoder and decoder ------------------------------------------------------------------------------

    def _one_hot(self, labels: Tensor | None, n: int) -> Tensor:
        if (labels is None) != (self.classes == 0):
            raise ValueError(
                f"this VAE has {self.classes} classes: give labels exactly when there are some."
            )
        device = next(self.parameters()).device
        if labels is None:
            return torch.zeros(n, 0, device=device)
        return F.one_hot(labels, self.classes).to(device, torch.float32)

    def encode(
        self, x: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Returns μ(x) and log σ²(x) of the posterior q(z|x); nothing is drawn.

        A Bernoulli VAE is trained on black and white images (`binarise`); grey ones are accepted too.
        """
        y = self._one_hot(labels, len(x))
        planes = repeat(y, "n k -> n k h w", h=x.shape[2], w=x.shape[3])
        mu, log_var = self.encoder(torch.cat([x, planes], dim=1)).float().chunk(2, dim=1)
        return mu, log_var

    def reparameterise(
        self, mu: Float[Tensor, "n d"], log_var: Float[Tensor, "n d"], source: Source
    ) -> Float[Tensor, "n d"]:
        """Draws z = μ + σ·ε with ε ~ N(0, I), differentiable in μ and σ."""
        return mu + (0.5 * log_var).exp() * normal(tuple(mu.shape), source, mu.device)

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
        return 2 * raw.sigmoid() - 1 if self.likelihood == "bernoulli" else raw.clamp(-1, 1)

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
        if self.likelihood == "bernoulli":
            terms = bernoulli_log_likelihood(raw, (x + 1) / 2)
        else:
            terms = gaussian_log_density(x, raw, self.log_var_x)
        return terms.flatten(1).sum(dim=1)

    # -- Bounds and loss ----------------------------------------------------------------------------------

    def observe(self, x: Float[Tensor, "n c h w"], source: Source) -> Float[Tensor, "n c h w"]:
        """Turns images into what the likelihood is of: random bits, or dequantised bytes."""
        return binarise(x, source) if self.likelihood == "bernoulli" else dequantise(x, source)

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
        mu, log_var = self.encode(x, labels)
        z = self.reparameterise(mu, log_var, source)
        return Bound(self.log_likelihood(x, z, labels), kl_diagonal(mu, log_var))

    def loss(
        self,
        x: Float[Tensor, "n c h w"],
        source: Source,
        labels: Int64[Tensor, " n"] | None = None,
    ) -> dict[str, Tensor]:
        """Returns means over the batch in nats: "loss", "reconstruction" (−log p(x|z)) and "kl"."""
        bound = self.elbo(x, source, labels)
        kl = bound.kl.sum(dim=1)
        paid = kl.clamp(min=self.free_nats) if self.free_nats else kl
        reconstruction = -bound.log_likelihood.mean()
        return {
            "loss": reconstruction + self.beta * paid.mean(),
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
            k: draws of z an image.
            source: of the pixels' noise and of the draws.
            labels: classes, for a conditional model.
            chunk: draws an image that are decoded together; memory grows with it.

        Raises:
            ValueError: if k or chunk is below 1.
        """
        if k < 1 or chunk < 1:
            raise ValueError(f"k and chunk must be at least 1, got {k} and {chunk}.")
        x = self.observe(x, source)
        mu, log_var = self.encode(x, labels)
        weights = []
        for start in range(0, k, chunk):
            m = min(chunk, k - start)
            eps = normal((len(x), m, self.latent), source, x.device)
            z = mu[:, None] + (0.5 * log_var)[:, None].exp() * eps
            # log p(z) − log q(z|x): the constants of the two Gaussians cancel.
            log_ratio = 0.5 * (eps.square() - z.square() + log_var[:, None]).sum(dim=2)
            images = repeat(x, "n c h w -> (n m) c h w", m=m)
            classes = None if labels is None else repeat(labels, "n -> (n m)", m=m)
            log_p = self.log_likelihood(images, rearrange(z, "n m d -> (n m) d"), classes)
            weights.append(rearrange(log_p, "(n m) -> n m", m=m) + log_ratio)
        return log_mean_exp(torch.cat(weights, dim=1))

    # -- Generation ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, n: int, source: Source, labels: Int64[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n c h w"]:
        """Draws z from the prior and returns the pixels' means, in [−1, 1].

        A conditional model without labels draws them, all classes alike.
        """
        device = next(self.parameters()).device
        if labels is None and self.classes:
            labels = integers(self.classes, (n,), source, device)
        return self.decode(normal((n, self.latent), source, device), labels)

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
        if not 0 <= coordinate < self.latent:
            raise ValueError(f"coordinate must lie in 0…{self.latent - 1}, got {coordinate}.")
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
    eps = normal((n, mu.shape[1]), source, mu.device)
    return mu[which] + (0.5 * log_var[which]).exp() * eps


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
        latent: d, below D.

    Raises:
        ValueError: if the latent dimension is not in 1…D − 1.
    """

    def __init__(self, dimension: int, latent: int) -> None:
        super().__init__()
        if not 1 <= latent < dimension:
            raise ValueError(f"latent must lie in 1…{dimension - 1}, got {latent}.")
        self.dimension, self.latent = dimension, latent
        self.weight = nn.Parameter(torch.randn(dimension, latent) / math.sqrt(dimension))
        self.mean = nn.Parameter(torch.zeros(dimension))
        self.log_var_x = nn.Parameter(torch.zeros(()))
        self.encoder = nn.Parameter(torch.randn(latent, dimension) / math.sqrt(dimension))
        self.log_var_z = nn.Parameter(torch.zeros(latent))

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
        noise = values[self.latent :].mean()
        if noise <= 1e-12 * values[0]:
            raise ValueError(
                "the data lie in the latent subspace, so the likelihood grows without limit; use fewer latents."
            )
        kept = values[: self.latent]
        weight = vectors[:, : self.latent] * (kept - noise).clamp(min=0).sqrt()
        # The exact posterior: covariance s² M⁻¹ and mean M⁻¹Wᵀ(x − m), M = WᵀW + s²I = Λ, diagonal.
        self.weight.copy_(weight)
        self.mean.copy_(data.mean(dim=0))
        self.log_var_x.copy_(noise.log())
        self.encoder.copy_(weight.T / kept[:, None])
        self.log_var_z.copy_((noise / kept).log())
        return self
