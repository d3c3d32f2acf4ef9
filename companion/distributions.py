"""Densities, divergences and their units: what likelihood-based models are made of.

Everything is in nats. Functions of diagonal distributions return one number for every coordinate, so that the
caller sees which coordinates carry the information; sum them over the coordinates of one sample. Arguments are
promoted to float32 at least, so that bfloat16 outputs of a network lose no digits here.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from companion.randomness import Source, normal, uniform

# The step between neighbouring bytes after companion.data.to_float, which maps 0…255 to [−1, 1].
BYTE = 1 / 127.5


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def kl_diagonal(
    mu: Float[Tensor, "*shape"],
    log_var: Float[Tensor, "*shape"],
    mu_p: Float[Tensor, "*shape"] | float = 0.0,
    log_var_p: Float[Tensor, "*shape"] | float = 0.0,
) -> Float[Tensor, "*shape"]:
    """Returns KL(N(μ, σ²) ‖ N(μ_p, σ_p²)) for every coordinate; by default p is the standard normal.

    KL = ½ (log σ_p² − log σ² + (σ² + (μ − μ_p)²) / σ_p² − 1).

    Args:
        mu: means of the first distribution.
        log_var: logarithms of its variances.
        mu_p: means of the second.
        log_var_p: logarithms of its variances.

    Returns:
        Nats, at least 0 up to rounding.
    """
    mu, log_var = _wide(mu), _wide(log_var)
    if isinstance(log_var_p, Tensor):
        log_var_p = _wide(log_var_p)
        precision: Tensor | float = torch.exp(-log_var_p)
    else:
        precision = math.exp(-log_var_p)
    return 0.5 * (log_var_p - log_var + (log_var.exp() + (mu - mu_p).square()) * precision - 1)


@dataclass(frozen=True, eq=False, init=False)
class DiagonalGaussian:
    """Independent Gaussians, one for every coordinate: a posterior, a prior, or one step of a diffusion.

    Attributes:
        mean: μ; the first dimension counts the samples.
        log_var: log σ², of the same shape; what is given may also be a number or a tensor that broadcasts to it.

    Both are kept in float32 at least.

    Raises:
        ValueError: if the shape of `log_var` does not broadcast to that of `mean`.
    """

    mean: Float[Tensor, "..."]
    log_var: Float[Tensor, "..."]

    def __init__(self, mean: Float[Tensor, "..."], log_var: Float[Tensor, "..."] | float) -> None:
        mean = _wide(mean)
        given = _wide(log_var) if isinstance(log_var, Tensor) else torch.tensor(log_var).to(mean)
        try:
            expanded = given.expand(mean.shape)
        except RuntimeError:
            raise ValueError(
                f"log_var of the shape {tuple(given.shape)} does not broadcast to the mean's, "
                f"{tuple(mean.shape)}."
            ) from None
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "log_var", expanded)

    @classmethod
    def standard(cls, like: Float[Tensor, "*shape"]) -> "DiagonalGaussian":
        """Returns the standard normal in the shape, and on the device, of a tensor."""
        return cls(torch.zeros_like(like), 0.0)

    @property
    def std(self) -> Float[Tensor, "..."]:
        """The standard deviations σ."""
        return (0.5 * self.log_var).exp()

    @property
    def mode(self) -> Float[Tensor, "..."]:
        """Where the density is largest: the mean."""
        return self.mean

    def sample(self, source: Source) -> Float[Tensor, "..."]:
        """Draws μ + σ ε with ε from the source, so that gradients reach μ and σ (Kingma and Welling, 2014)."""
        eps = normal(tuple(self.mean.shape), source, self.mean.device).to(self.mean.dtype)
        return self.mean + self.std * eps

    def kl(self, other: "DiagonalGaussian | None" = None) -> Float[Tensor, "..."]:
        """Returns KL(this ‖ other) for every coordinate, in nats; by default the other is the standard normal."""
        if other is None:
            return kl_diagonal(self.mean, self.log_var)
        return kl_diagonal(self.mean, self.log_var, other.mean, other.log_var)

    def log_prob(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Returns log N(x; μ, σ²) of every coordinate, in nats; x broadcasts against the mean."""
        return gaussian_log_density(x, self.mean, self.log_var)


def _check_symmetric(name: str, covariance: Tensor) -> None:
    # The Cholesky factorisation reads one triangle only and would take whatever the other holds.
    asymmetry = float((covariance - covariance.mT).abs().max())
    largest = float(covariance.abs().max())
    if asymmetry > 1e-5 * largest:
        raise ValueError(
            f"{name} is not symmetric (entries across the diagonal differ by {asymmetry:g}), so it is no "
            f"covariance; if that is rounding, give ({name} + {name}.mT) / 2."
        )


def kl_gaussian(
    mu: Float[Tensor, " d"],
    covariance: Float[Tensor, "d d"],
    mu_p: Float[Tensor, " d"] | None = None,
    covariance_p: Float[Tensor, "d d"] | None = None,
) -> Float[Tensor, ""]:
    """Returns KL(N(μ, Σ) ‖ N(μ_p, Σ_p)) for full covariances, in float64; by default p is standard normal.

    Raises:
        ValueError: if a covariance is not symmetric.
        torch.linalg.LinAlgError: if one is not positive definite.
    """
    mu, covariance = mu.double(), covariance.double()
    d = len(mu)
    mu_p = torch.zeros_like(mu) if mu_p is None else mu_p.double()
    covariance_p = torch.eye(d).to(covariance) if covariance_p is None else covariance_p.double()
    _check_symmetric("covariance", covariance)
    _check_symmetric("covariance_p", covariance_p)
    root, root_p = torch.linalg.cholesky(covariance), torch.linalg.cholesky(covariance_p)
    # L_p⁻¹L has tr(Σ_p⁻¹Σ) as its squared Frobenius norm.
    mixed = torch.linalg.solve_triangular(root_p, root, upper=False)
    shift = torch.linalg.solve_triangular(root_p, (mu - mu_p)[:, None], upper=False)
    log_det = 2 * (root_p.diagonal().log().sum() - root.diagonal().log().sum())
    return 0.5 * (log_det + mixed.square().sum() + shift.square().sum() - d)


def bernoulli_log_likelihood(
    logits: Float[Tensor, "*shape"], bits: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Returns log p(bit) of every coordinate, in nats, where p(1) = sigmoid(logit).

    Args:
        logits: any real numbers; never turned into probabilities, so that large ones stay finite.
        bits: 0 or 1. (A value between them gives the expectation over a bit that is 1 with that probability.)
    """
    return -F.binary_cross_entropy_with_logits(_wide(logits), _wide(bits), reduction="none")


def gaussian_log_density(
    x: Float[Tensor, "..."],
    mu: Float[Tensor, "..."] | float = 0.0,
    log_var: Float[Tensor, "..."] | float = 0.0,
) -> Float[Tensor, "..."]:
    """Returns log N(x; μ, σ²) of every coordinate, in nats.

    Args:
        x: where.
        mu: the means; they broadcast against x.
        log_var: log σ², a number, or a tensor that broadcasts: learned or fixed, the formula is the same.
    """
    x = _wide(x)
    log_var = _wide(log_var) if isinstance(log_var, Tensor) else torch.tensor(log_var).to(x)
    return -0.5 * (math.log(2 * math.pi) + log_var + (x - mu).square() * torch.exp(-log_var))


def log_mean_exp(x: Float[Tensor, "..."], dim: int = -1) -> Float[Tensor, "..."]:
    """Returns log(mean(exp(x))) along a dimension, without overflow."""
    return torch.logsumexp(_wide(x), dim=dim) - math.log(x.shape[dim])


def binarise(x: Float[Tensor, "n c h w"], source: Source) -> Float[Tensor, "n c h w"]:
    """Draws black or white pixels, −1 or 1, whose mean is the grey value: dynamic binarisation.

    Images that hold only −1 and 1, such as a statically binarised set, pass unchanged.
    """
    return torch.where(uniform(tuple(x.shape), source, x.device) < (x + 1) / 2, 1.0, -1.0)


def dequantise(x: Float[Tensor, "n *rest"], source: Source) -> Float[Tensor, "n *rest"]:
    """Spreads every byte evenly over its bin: x + u, u uniform in ±½ byte.

    A density fitted to such values bounds the probability of the bytes themselves from below (Theis et al.,
    2016, Eq. 5): by Jensen's inequality E_u[log p(x + u)] ≤ log ∫ p(x + u) du = log P(x).

    Args:
        x: bytes as `companion.data.to_float` maps them to [−1, 1].
        source: of the noise.

    Returns:
        Values in [−1 − 1/255, 1 + 1/255].
    """
    return x + (uniform(tuple(x.shape), source, x.device).to(x) - 0.5) * BYTE


def bits_per_dimension(
    nats: Float[Tensor, "*shape"] | float, dimensions: int, unit: float = 1.0
) -> Float[Tensor, "*shape"] | float:
    """Returns bits per dimension of a sample whose negative log-likelihood is given in nats.

    Args:
        nats: −log p of the whole sample, a sum over its dimensions.
        dimensions: how many it has: channels × height × width.
        unit: the width of a byte's bin where p is a density of values that were scaled; `BYTE` for images in
            [−1, 1] after `dequantise`. 1 for a probability of bits or bytes.

    Returns:
        −log₂ P(sample) / dimensions: with `unit=BYTE` what papers report for 8-bit images, an upper bound.

    Raises:
        ValueError: if there are no dimensions or the unit is not positive.
    """
    if dimensions < 1 or unit <= 0:
        raise ValueError(f"dimensions and unit must be positive, got {dimensions} and {unit}.")
    return (nats / dimensions - math.log(unit)) / math.log(2)
