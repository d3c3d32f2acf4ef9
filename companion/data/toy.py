"""Two-dimensional densities whose answer is known: an exact sampler and an exact log-density for each.

| density | how its log-density is computed |
|---|---|
| `RingOfGaussians`, `GridOfGaussians` | mixture of k equal Gaussians, by logsumexp |
| `Moons`, `SwissRoll` | a curve blurred by a Gaussian: an integral along the curve, by quadrature |
| `Pinwheel` | Gaussian arms twisted around the origin: change of variables, determinant 1 |

Every density has `sample(n, generator)`, `log_prob(x)` in nats, and `half_width`: the square
[-half_width, half_width]² holds all but a negligible part of the mass, which is what plots and sums over a
grid need. Computation is in float64 throughout; the result has the type of the input.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

# Beyond this many standard deviations a Gaussian in two dimensions keeps 1e-14 of its mass.
TAIL = 8.0
# Quadrature: one panel for every two standard deviations of arc, so that the integrand is smooth on each.
NODES_PER_PANEL = 20
# Points meet components or nodes in blocks of about so many pairs (1 MB), which is fastest.
BLOCK = 131_072


def grid(half_width: float, side: int) -> Float64[Tensor, "m 2"]:
    """Returns the centres of side × side equal cells that tile [-half_width, half_width]², row by row.

    The first coordinate varies fastest, so that `log_prob(grid(a, m)).reshape(m, m)` is an image whose rows
    run along the second coordinate. The area of a cell is (2 * half_width / side)².

    Raises:
        ValueError: the half-width is not positive, or the side is less than 1.
    """
    _positive("half_width", half_width)
    _at_least("side", side, 1)
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) * (2 * half_width / side) - half_width
    second, first = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([first.reshape(-1), second.reshape(-1)], dim=1)


class _GaussianMixture:
    """k equal, isotropic Gaussians: p(x) = 1/k Σ_j N(x; μ_j, std² I)."""

    std: float

    @property
    def means(self) -> Float64[Tensor, "k 2"]:
        """The centres μ_j."""
        raise NotImplementedError

    @property
    def half_width(self) -> float:
        """Half the side of the square around the origin that holds the mass."""
        return float(self.means.abs().amax()) + TAIL * self.std

    def sample(self, n: int, generator: torch.Generator) -> Float32[Tensor, "n 2"]:
        """Draws n points: a mode uniformly, then a Gaussian around it."""
        _at_least("n", n, 0)
        means = self.means.to(generator.device)
        mode = torch.randint(len(means), (n,), generator=generator, device=generator.device)
        return (means[mode] + self.std * _normal((n, 2), generator)).to(torch.float32)

    def log_prob(self, x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        """Returns log p(x) in nats."""
        points = _points(x)
        weight = torch.zeros(len(self.means), dtype=torch.float64) - math.log(len(self.means))
        return _log_mixture(points, self.means, weight, self.std).to(x)

    def responsibilities(self, x: Float[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        """Returns p(mode j | x); each row sums to 1."""
        points = _points(x)
        return torch.softmax(_scaled_distances(points, self.means, self.std), dim=1).to(x)


@dataclass(frozen=True)
class RingOfGaussians(_GaussianMixture):
    """Equal Gaussians evenly spaced on a circle, the first at angle 0: where GANs lose modes.

    Attributes:
        modes: how many.
        radius: of the circle.
        std: of each Gaussian, in each coordinate.
    """

    modes: int = 8
    radius: float = 2.0
    std: float = 0.02

    def __post_init__(self) -> None:
        _at_least("modes", self.modes, 1)
        _positive("radius", self.radius)
        _positive("std", self.std)

    @cached_property
    def means(self) -> Float64[Tensor, "k 2"]:
        """The centres, counter-clockwise."""
        angle = torch.arange(self.modes, dtype=torch.float64) * (2 * math.pi / self.modes)
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)


@dataclass(frozen=True)
class GridOfGaussians(_GaussianMixture):
    """side × side equal Gaussians on a square lattice around the origin.

    Attributes:
        side: modes along each axis, 5 for the usual grid of 25.
        spacing: distance between neighbours.
        std: of each Gaussian, in each coordinate.
    """

    side: int = 5
    spacing: float = 1.0
    std: float = 0.05

    def __post_init__(self) -> None:
        _at_least("side", self.side, 1)
        _positive("spacing", self.spacing)
        _positive("std", self.std)

    @cached_property
    def means(self) -> Float64[Tensor, "k 2"]:
        """The centres, row by row."""
        axis = (torch.arange(self.side, dtype=torch.float64) - (self.side - 1) / 2) * self.spacing
        second, first = torch.meshgrid(axis, axis, indexing="ij")
        return torch.stack([first.reshape(-1), second.reshape(-1)], dim=1)


class _BlurredCurve:
    """A curve c(t), t uniform in [a, b], blurred: p(x) = 1/(b-a) ∫ N(x; c(t), std² I) dt.

    The integral is a Gauss-Legendre sum on panels about two standard deviations long, that is, a mixture of
    Gaussians at the nodes with the quadrature's weights. The error of log p is below 1e-8 nats within 12
    standard deviations of the curve, and below 1e-8 of |log p| in the rest of the square of `half_width` (tested
    against more nodes and against adaptive quadrature).
    """

    std: float

    @cached_property
    def _nodes(self) -> tuple[Float64[Tensor, "m 2"], Float64[Tensor, " m"]]:
        """The centres and the logarithms of the weights, which sum to 1."""
        raise NotImplementedError

    @property
    def half_width(self) -> float:
        """Half the side of the square around the origin that holds the mass."""
        return float(self._nodes[0].abs().amax()) + TAIL * self.std

    def log_prob(self, x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        """Returns log p(x) in nats."""
        centres, log_weights = self._nodes
        return _log_mixture(_points(x), centres, log_weights, self.std).to(x)


@dataclass(frozen=True)
class Moons(_BlurredCurve):
    """Two interleaved half circles of radius 1, each with half of the mass, blurred by a Gaussian.

    The upper one is (cos t, sin t) and the lower one (1 - cos t, 1/2 - sin t), t uniform in [0, π], both then
    shifted by (-1/2, -1/4) so that the whole is centred at the origin (the shape of scikit-learn's
    `make_moons`, whose t is evenly spaced instead).

    Attributes:
        std: of the blur, in each coordinate.
    """

    std: float = 0.1

    def __post_init__(self) -> None:
        _positive("std", self.std)

    def sample(self, n: int, generator: torch.Generator) -> Float32[Tensor, "n 2"]:
        """Draws n points: a moon, a place on it, then the blur."""
        _at_least("n", n, 0)
        t = math.pi * _uniform(n, generator)
        lower = _uniform(n, generator) < 0.5
        curve = torch.where(lower[:, None], _lower_moon(t), _upper_moon(t))
        return (curve + self.std * _normal((n, 2), generator)).to(torch.float32)

    @cached_property
    def _nodes(self) -> tuple[Float64[Tensor, "m 2"], Float64[Tensor, " m"]]:
        t, log_weights = _quadrature(
            np.linspace(0, math.pi, math.ceil(math.pi / (2 * self.std)) + 1)
        )
        centres = torch.cat([_upper_moon(t), _lower_moon(t)])
        return centres, torch.cat([log_weights, log_weights]) - math.log(2)


def _upper_moon(t: Float64[Tensor, " n"]) -> Float64[Tensor, "n 2"]:
    return torch.stack([t.cos() - 0.5, t.sin() - 0.25], dim=1)


def _lower_moon(t: Float64[Tensor, " n"]) -> Float64[Tensor, "n 2"]:
    return torch.stack([0.5 - t.cos(), 0.25 - t.sin()], dim=1)


@dataclass(frozen=True)
class SwissRoll(_BlurredCurve):
    """A spiral of one and a half turns, blurred by a Gaussian.

    The curve is scale · (t cos t, t sin t) with t uniform in [1.5 π, 4.5 π], as in scikit-learn's
    `make_swiss_roll` seen from above, so the outer arm is thinner than the inner one.

    Attributes:
        std: of the blur, in each coordinate.
        scale: of the curve; the default puts its end 2 from the origin.
    """

    std: float = 0.05
    scale: float = 2.0 / (4.5 * math.pi)

    def __post_init__(self) -> None:
        _positive("std", self.std)
        _positive("scale", self.scale)

    def sample(self, n: int, generator: torch.Generator) -> Float32[Tensor, "n 2"]:
        """Draws n points: a place on the spiral, then the blur."""
        _at_least("n", n, 0)
        t = math.pi * (1.5 + 3.0 * _uniform(n, generator))
        return (self._curve(t) + self.std * _normal((n, 2), generator)).to(torch.float32)

    def _curve(self, t: Float64[Tensor, " n"]) -> Float64[Tensor, "n 2"]:
        return self.scale * torch.stack([t * t.cos(), t * t.sin()], dim=1)

    @cached_property
    def _nodes(self) -> tuple[Float64[Tensor, "m 2"], Float64[Tensor, " m"]]:
        # Panels of equal length on the curve, not of equal t: the outer arm is passed three times as fast.
        fine = np.linspace(1.5 * math.pi, 4.5 * math.pi, 4097)
        arc = self.scale * (fine * np.sqrt(1 + fine**2) + np.arcsinh(fine)) / 2
        panels = math.ceil((arc[-1] - arc[0]) / (2 * self.std))
        t, log_weights = _quadrature(np.interp(np.linspace(arc[0], arc[-1], panels + 1), arc, fine))
        return self._curve(t), log_weights


@dataclass(frozen=True)
class Pinwheel:
    """Gaussian arms around the origin, twisted the more the farther out.

    An untwisted arm is a Gaussian at (radius, 0) with one standard deviation along the arm and a smaller one
    across. A point z of it is turned by the angle 2π j / arms + rate · exp(|z|). A turn that depends on the
    distance alone moves every circle rigidly, so the map is one to one, keeps areas, and has determinant 1;
    the density at x is that of the arm at x turned back. (Johnson et al., 2016, turn by the first coordinate
    of z instead: the picture is almost the same, but then the map folds and has no exact density.)

    Attributes:
        arms: how many.
        radius: distance of the arms' centres from the origin.
        radial_std: standard deviation along an arm.
        tangential_std: standard deviation across.
        rate: of the twist, in radians.
    """

    arms: int = 5
    radius: float = 1.0
    radial_std: float = 0.3
    tangential_std: float = 0.1
    rate: float = 0.25

    def __post_init__(self) -> None:
        _at_least("arms", self.arms, 1)
        for name in ("radius", "radial_std", "tangential_std"):
            _positive(name, getattr(self, name))
        if not math.isfinite(self.rate):
            raise ValueError(f"rate must be a finite number of radians, got {self.rate}.")

    @property
    def half_width(self) -> float:
        """Half the side of the square around the origin that holds the mass."""
        return self.radius + TAIL * max(self.radial_std, self.tangential_std)

    def sample(self, n: int, generator: torch.Generator) -> Float32[Tensor, "n 2"]:
        """Draws n points: an arm, a Gaussian point of it, then the twist."""
        _at_least("n", n, 0)
        arm = torch.randint(self.arms, (n,), generator=generator, device=generator.device)
        stds = torch.tensor([self.radial_std, self.tangential_std], dtype=torch.float64)
        z = _normal((n, 2), generator) * stds.to(generator.device)
        z[:, 0] += self.radius
        return _turn(z, self._twist(z) + arm * (2 * math.pi / self.arms)).to(torch.float32)

    def log_prob(self, x: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
        """Returns log p(x) in nats."""
        return (self._log_arms(_points(x)).logsumexp(dim=1) - math.log(self.arms)).to(x)

    def responsibilities(self, x: Float[Tensor, "n 2"]) -> Float[Tensor, "n arms"]:
        """Returns p(arm j | x); each row sums to 1."""
        return torch.softmax(self._log_arms(_points(x)), dim=1).to(x)

    def _twist(self, z: Float64[Tensor, "n 2"]) -> Float64[Tensor, " n"]:
        # Beyond a distance of 30 the turn stays what it is there, or the exponential would overflow.
        return self.rate * torch.linalg.vector_norm(z, dim=1).clamp(max=30.0).exp()

    def _log_arms(self, x: Float64[Tensor, "n 2"]) -> Float64[Tensor, "n arms"]:
        """log p(x | arm j), by turning x back; |x| = |z|, so the twist is known."""
        untwisted = _turn(x, -self._twist(x))
        constant = -math.log(2 * math.pi * self.radial_std * self.tangential_std)
        columns = []
        for j in range(self.arms):
            back = untwisted.new_tensor(-2 * math.pi * j / self.arms)
            z = _turn(untwisted, back)
            along = (z[:, 0] - self.radius) / self.radial_std
            across = z[:, 1] / self.tangential_std
            columns.append(constant - 0.5 * (along**2 + across**2))
        return torch.stack(columns, dim=1)


def _turn(z: Float64[Tensor, "n 2"], angle: Float64[Tensor, "*m"]) -> Float64[Tensor, "n 2"]:
    """Turns points counter-clockwise by an angle in radians, one for each or one for all."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * z[:, 0] - sin * z[:, 1], sin * z[:, 0] + cos * z[:, 1]], dim=1)


def _quadrature(
    edges: Float64[np.ndarray, " p"],
) -> tuple[Float64[Tensor, " m"], Float64[Tensor, " m"]]:
    """Gauss-Legendre nodes on the panels between the edges, and the logs of weights that sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES_PER_PANEL)
    length = np.diff(edges)[:, None]
    t = edges[:-1, None] + length * (nodes + 1) / 2
    share = length * weights / (2 * (edges[-1] - edges[0]))
    return torch.from_numpy(t.reshape(-1)), torch.from_numpy(np.log(share).reshape(-1))


def _scaled_distances(
    x: Float64[Tensor, "n 2"], centres: Float64[Tensor, "m 2"], std: float
) -> Float64[Tensor, "n m"]:
    """-|x - c|² / (2 std²), by differences: the expanded square would lose digits far from the origin."""
    centres = centres.to(x.device)
    first = x[:, :1] - centres[:, 0]
    second = x[:, 1:] - centres[:, 1]
    return -(first.square() + second.square()) / (2 * std**2)


def _log_mixture(
    x: Float64[Tensor, "n 2"],
    centres: Float64[Tensor, "m 2"],
    log_weights: Float64[Tensor, " m"],
    std: float,
) -> Float64[Tensor, " n"]:
    """log Σ_j w_j N(x; c_j, std² I), in blocks of points that stay in the processor's cache."""
    # -|x - c|² / 2 std² = (x · c - |c|² / 2) / std² - |x|² / 2 std², whose second part leaves the sum. In float64
    # the cancellation costs about 1e-16 · |x| |c| / std², far below the quadrature's error.
    slope = (centres / std**2).T.to(x.device)
    offset = (log_weights - centres.square().sum(dim=1) / (2 * std**2)).to(x.device)
    outside = -x.square().sum(dim=1) / (2 * std**2) - math.log(2 * math.pi * std**2)
    logs = []
    for block in x.split(max(1, BLOCK // len(centres))):
        exponent = torch.addmm(offset, block, slope)
        if exponent.requires_grad:  # the gradient needs what the quicker way below overwrites
            logs.append(exponent.logsumexp(dim=1))
            continue
        largest = exponent.amax(dim=1, keepdim=True)
        logs.append(exponent.sub_(largest).exp_().sum(dim=1).log() + largest[:, 0])
    return torch.cat(logs) + outside if logs else outside


def _points(x: Tensor) -> Float64[Tensor, "n 2"]:
    """Checks points and returns them in float64."""
    if not x.is_floating_point():
        raise TypeError(f"points must be floats, got {x.dtype}.")
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"points must have shape (n, 2), got {tuple(x.shape)}.")
    if bool(torch.isnan(x).any()):
        raise ValueError(f"{int(torch.isnan(x).any(dim=1).sum())} of {len(x)} points are NaN.")
    return x.to(torch.float64)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Float64[Tensor, "..."]:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)


def _uniform(n: int, generator: torch.Generator) -> Float64[Tensor, " n"]:
    return torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, got {value}.")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")
