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


# --- Discretised logistics (PixelCNN++, Salimans et al., 2017) ---------------------------------------------------

LEAST_LOG_SCALE = -7.0
# Below such a mass of a bin, the difference of two sigmoids has lost its digits.
LEAST_MASS = 1e-5


def discretised_logistic_log_likelihood(
    x: Float[Tensor, "*shape"],
    mu: Float[Tensor, "*shape"],
    log_scale: Float[Tensor, "*shape"],
    levels: int = 256,
) -> Float[Tensor, "*shape"]:
    """Returns log P of a level under a logistic distribution that is cut into bins, in nats.

    P(x) = σ((x + δ − μ)/s) − σ((x − δ − μ)/s), δ half the step between levels; the bins of −1 and of 1 are open to the
    outside, so that all levels together have the mass 1. Where a bin has a mass below 1e-5 the density at its middle
    times its width is taken, whose gradient does not vanish.

    Args:
        x: levels, evenly spread over [−1, 1].
        mu: means, in the same units.
        log_scale: logarithms of s, of which those below −7 count as −7.
        levels: how many there are; 256 for bytes.

    Raises:
        ValueError: for fewer than two levels.
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}.")
    x, mu = _wide(x), _wide(mu)
    log_scale = _wide(log_scale).clamp(min=LEAST_LOG_SCALE)
    delta, precision = 1 / (levels - 1), torch.exp(-log_scale)
    upper, lower = (x + delta - mu) * precision, (x - delta - mu) * precision
    # Of two tails the smaller: σ(b) − σ(a) = σ(−a) − σ(−b), and small numbers keep their digits.
    flip = upper + lower > 0
    a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    mass = b.sigmoid() - a.sigmoid()
    middle = (x - mu) * precision
    density = -middle.abs() - log_scale - 2 * F.softplus(-middle.abs()) + math.log(2 * delta)
    inside = torch.where(mass > LEAST_MASS, mass.clamp(min=LEAST_MASS).log(), density)
    inside = torch.where(x > 1 - delta, F.logsigmoid(-lower), inside)
    return torch.where(x < -1 + delta, F.logsigmoid(upper), inside)


@dataclass(frozen=True, eq=False)
class LogisticMixture:
    """A mixture of discretised logistics for every pixel, all of whose channels share the component.

    Within a component the mean of a channel is linear in the pixel's *true* earlier channels: green's is
    μ_g + α r, blue's μ_b + β r + γ g, where α, β, γ are in (−1, 1) (Salimans et al., 2017, Eq. 3).

    Attributes:
        logits: of the components, "n m h w".
        means: μ, "n m c h w".
        log_scales: "n m c h w".
        coefficients: "n m q h w", q = c (c − 1) / 2: for each channel in turn, one for each that is earlier.
        levels: that a number can have.
    """

    logits: Float[Tensor, "n m h w"]
    means: Float[Tensor, "n m c h w"]
    log_scales: Float[Tensor, "n m c h w"]
    coefficients: Float[Tensor, "n m q h w"]
    levels: int = 256

    @classmethod
    def from_parameters(
        cls, parameters: Float[Tensor, "n k h w"], channels: int, levels: int = 256
    ) -> "LogisticMixture":
        """Splits a network's outputs: m logits, then m each of c means, c log-scales and c (c − 1)/2 coefficients.

        Raises:
            ValueError: if the number of parameters is no multiple of what one component has.
        """
        pairs = channels * (channels - 1) // 2
        each = 1 + 2 * channels + pairs
        n, k, h, w = parameters.shape
        if k == 0 or k % each:
            raise ValueError(
                f"a component of {channels} channel(s) has {each} parameters, and {k} is no multiple of that."
            )
        m = k // each
        x = _wide(parameters)
        logits, rest = x[:, :m], x[:, m:].reshape(n, m, each - 1, h, w)
        means, log_scales, coefficients = rest.split([channels, channels, pairs], dim=2)
        return cls(
            logits,
            means,
            log_scales.clamp(min=LEAST_LOG_SCALE),
            coefficients.tanh(),
            levels,
        )

    def _mean(self, channel: int, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n m h w"]:
        """Returns the means of a channel given the earlier ones of x."""
        start = channel * (channel - 1) // 2
        mean = self.means[:, :, channel]
        for earlier in range(channel):
            mean = mean + self.coefficients[:, :, start + earlier] * x[:, None, earlier]
        return mean

    def log_prob(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n h w"]:
        """Returns log P of every pixel, all its channels together, in nats."""
        total = self.logits.log_softmax(dim=1)
        for channel in range(x.shape[1]):
            mean = self._mean(channel, x)
            total = total + discretised_logistic_log_likelihood(
                x[:, None, channel].expand_as(mean),
                mean,
                self.log_scales[:, :, channel],
                self.levels,
            )
        return total.logsumexp(dim=1)

    def sample(
        self, u: Float[Tensor, "n d h w"]
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """Draws pixels by uniform numbers, and returns them with the means of their component given earlier channels.

        Args:
            u: in [0, 1), d = c + 1: the first picks the component, each other one a channel's level by inversion.

        Returns:
            Levels in [−1, 1], exactly as `log_prob` has them; and the means that they were drawn about, clamped to
            [−1, 1].
        """
        cumulative = self.logits.softmax(dim=1).cumsum(dim=1)
        passed = cumulative <= u[:, :1] * cumulative[:, -1:]
        picked = passed.sum(dim=1, keepdim=True).clamp(max=self.logits.shape[1] - 1)
        x = torch.zeros_like(self.means[:, 0])
        means, top = torch.zeros_like(x), (self.levels - 1) / 2
        for channel in range(x.shape[1]):
            mean = self._mean(channel, x).gather(1, picked)[:, 0]
            scale = self.log_scales[:, :, channel].gather(1, picked)[:, 0].exp()
            v = u[:, channel + 1].clamp(1e-7, 1 - 1e-7)
            # A logistic number rounded to the nearest level falls into that level's bin.
            drawn = mean + scale * (v.log() - (-v).log1p())
            x[:, channel] = ((drawn.clamp(-1, 1) + 1) * top).round() / top - 1
            means[:, channel] = mean.clamp(-1, 1)
        return x, means


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
