"""The Fréchet distance between Gaussians fitted to features (Heusel et al., 2017; Dowson and Landau, 1982).

d² = ‖μ₁ − μ₂‖² + Tr Σ₁ + Tr Σ₂ − 2 Tr (Σ₁Σ₂)^½

The trace of the root is the sum of the roots of the eigenvalues of Σ₁Σ₂. With a Cholesky factor Σ₂ = LLᵀ these
are the eigenvalues of the symmetric matrix LᵀΣ₁L, which are real and not negative by construction: no matrix
root is computed, nothing has to be made real afterwards, and no epsilon is added to the diagonal. Where a
covariance is singular, as it is with fewer samples than dimensions, pivoted Cholesky factors with as many
columns as there is rank take over, so that rounding noise in the null space is not mistaken for variance.
Everything is in float64.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from scipy.linalg import eigvalsh
from scipy.linalg.lapack import dpotrf, dpstrf, dsygst
from torch import Tensor

from companion.files import write_atomically
from companion.metrics._checks import as_float64, rows, too_large

# Rows that are converted to float64 at a time.
CHUNK = 4096
# Covariances whose largest entry is within 2^±300 neither overflow nor vanish when they are multiplied.
ORDINARY = 300
# The largest feature: its square leaves room for sums over 10^8 samples and products of two covariances' entries.
LARGEST = 1e140
# Files of statistics are not larger: 16,384 dimensions.
MOST_BYTES = 2**31 + 2**20


def _covariance(name: str, sigma: Any, dim: int) -> np.ndarray:
    """Checks a covariance and returns it, symmetric but for rounding, in float64 on the CPU, in column order."""
    s = as_float64(name, sigma, 2, "d, d").cpu().numpy()
    if s.shape != (dim, dim):
        raise ValueError(
            f"{name} must have the shape ({dim}, {dim}), as its mean says, got {s.shape}."
        )
    # In strips, because subtracting a large transpose in one go misses the cache at every step.
    asymmetry = max(
        float(np.abs(s[i : i + 64, i:] - s[i:, i : i + 64].T).max()) for i in range(0, dim, 64)
    )
    largest = max(float(s.max()), -float(s.min()))
    if asymmetry > 1e-5 * largest:
        raise ValueError(f"{name} is not symmetric, so it is no covariance.")
    if asymmetry > 1e-12 * largest:  # below that it is rounding, and either triangle will do
        s = (s + s.T) / 2
    # The transpose of a symmetric matrix costs nothing and suits LAPACK.
    return np.ascontiguousarray(s).T


def _factor(name: str, sigma: np.ndarray) -> np.ndarray:
    """Returns L with LLᵀ = Σ and as many columns as Σ has rank (pivoted Cholesky).

    Pivots below d·ε·max Σᵢᵢ, where float64 holds only rounding noise, count as zero.
    """
    factor, pivots, rank, _ = dpstrf(sigma, lower=1)
    lower = np.zeros((len(sigma), rank))
    lower[pivots - 1] = np.tril(factor[:, :rank])  # undo the pivoting: rows back to their places
    # The factorisation also stops at the first pivot that is negative, so see whether anything is left. A
    # hundred-thousandth of the largest entry is far above what float32 rounds away, at half the cost of float64.
    scale = float(max(sigma.max(), -sigma.min())) or 1.0
    part = (lower / scale**0.5).astype(np.float32)
    rows = sigma.T  # the same numbers, as Σ is symmetric, in the order in which they lie
    residual = max(
        float(
            np.abs(np.float32(rows[i : i + 128, i:] / scale) - part[i : i + 128] @ part[i:].T).max()
        )
        for i in range(0, len(rows), 128)  # strips small enough for the cache
    )
    if residual > 1e-5:
        raise ValueError(
            f"{name} is not positive semi-definite, so it is no covariance (its factorisation leaves "
            f"{residual * scale:g} over)."
        )
    return lower


def _eigenvalues(symmetric: np.ndarray) -> np.ndarray:
    """Returns the eigenvalues in ascending order; only the lower triangle is read."""
    return eigvalsh(symmetric, lower=True, driver="evd", check_finite=False)


def _root_trace_definite(s1: np.ndarray, s2: np.ndarray) -> float | None:
    """Returns Tr (Σ₁Σ₂)^½ of two positive definite covariances, or None if rounding would show in it.

    With Σ₂ = LLᵀ, the eigenvalues of Σ₁Σ₂ are those of LᵀΣ₁L. Two LAPACK routines that use the symmetry make this
    matrix at a third of the cost of two full products.
    """
    lower, failed_at = dpotrf(s2, lower=1)
    if failed_at:
        return None
    product, _ = dsygst(s1, lower, itype=2, lower=1)
    eigenvalues = _eigenvalues(product)
    # Each eigenvalue λ is known to about δ = 4 ε λ_max, and so its root to δ / 2√λ, or to √δ if λ is below δ. A
    # few tiny eigenvalues do no harm; a null space of hundreds would add up hundreds of roots of noise.
    delta = 4 * np.finfo(np.float64).eps * eigenvalues[-1]
    roots = np.sqrt(eigenvalues.clip(min=max(delta, np.finfo(np.float64).tiny)))
    uncertainty = (delta / roots).sum()
    if eigenvalues[0] < -len(s1) * delta or uncertainty > 1e-9 * (np.trace(s1) + np.trace(s2)):
        return None
    return float(np.sqrt(eigenvalues.clip(min=0)).sum())


def _root_trace_semidefinite(s1: np.ndarray, s2: np.ndarray) -> float:
    """Returns Tr (Σ₁Σ₂)^½ of any two covariances, from MMᵀ with M = L₁ᵀL₂ of the smaller rank."""
    product = _factor("sigma1", s1).T @ _factor("sigma2", s2)
    if product.shape[0] > product.shape[1]:
        product = product.T
    if product.size == 0:
        return 0.0
    return float(np.sqrt(_eigenvalues(product @ product.T).clip(min=0)).sum())


def _root_trace(s1: np.ndarray, s2: np.ndarray) -> float:
    """Returns Tr (Σ₁Σ₂)^½ by the quicker way where it is exact enough."""
    root_trace = _root_trace_definite(s1, s2)
    return _root_trace_semidefinite(s1, s2) if root_trace is None else root_trace


def _unit(sigma: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns a covariance of ordinary size and the power of two that, squared, makes it the one given.

    Products of what is far from one would overflow or vanish. Powers of two change no digit.
    """
    _, exponent = math.frexp(float(np.abs(sigma).max()))
    if abs(exponent) < ORDINARY:
        return sigma, 1.0
    power = 2.0 ** (exponent // 2)
    return sigma / power / power, power


def frechet_distance(
    mu1: Float[Tensor, " d"] | Float[np.ndarray, " d"],
    sigma1: Float[Tensor, "d d"] | Float[np.ndarray, "d d"],
    mu2: Float[Tensor, " d"] | Float[np.ndarray, " d"],
    sigma2: Float[Tensor, "d d"] | Float[np.ndarray, "d d"],
) -> float:
    """Returns the squared Fréchet distance between two Gaussians, which is what "FID" reports.

    It is also their squared 2-Wasserstein distance. Singular covariances are allowed. As a difference of traces it
    is known to about d·10⁻¹⁶ of them: two sets that share an outlier far away, whose square drowns the variance of
    all others, say little about those.

    Args:
        mu1: the first mean.
        sigma1: the first covariance.
        mu2: the second mean.
        sigma2: the second covariance.

    Returns:
        d², at least 0, in squared units of the features.

    Raises:
        TypeError: if an argument does not hold real numbers.
        ValueError: if shapes disagree, a value is NaN or infinite, a matrix is not symmetric and positive
            semi-definite, or the distance is beyond what float64 holds.
    """
    m1 = as_float64("mu1", mu1, 1, "d").cpu().numpy()
    m2 = as_float64("mu2", mu2, 1, "d").cpu().numpy()
    if m1.shape != m2.shape:
        raise ValueError(
            f"the means have {len(m1)} and {len(m2)} dimensions; they must have the same."
        )
    s1 = _covariance("sigma1", sigma1, len(m1))
    s2 = _covariance("sigma2", sigma2, len(m1))
    (unit1, root1), (unit2, root2) = _unit(s1), _unit(s2)
    with np.errstate(over="ignore", invalid="ignore"):
        cross = 2 * _root_trace(unit1, unit2) * root1 * root2
        distance = float(np.square(m1 - m2).sum() + np.trace(s1) + np.trace(s2) - cross)
    if not math.isfinite(distance):
        largest = max(float(np.abs(part).max()) for part in (m1, m2, s1, s2))
        raise too_large("the means or covariances", largest)
    return max(distance, 0.0)  # rounding may leave −1e-12 where the Gaussians are equal


class FeatureStatistics:
    """Mean and covariance of features that arrive in batches, in memory that does not grow with their number.

    It holds the count n, the mean and the scatter Σ (x − mean)(x − mean)ᵀ in float64 and merges batches, or
    whole processes, by the pairwise formula of Chan, Golub and LeVeque (1979). Unlike running sums of x and
    xxᵀ this loses no digits when the mean is large beside the spread.

    Args:
        dim: number of dimensions of the features.
        device: where the statistics are kept.

    Raises:
        ValueError: if `dim` is not positive.
    """

    def __init__(self, dim: int, device: str | torch.device = "cpu") -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}.")
        self.dim = dim
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def __repr__(self) -> str:
        return f"FeatureStatistics(dim={self.dim}, count={self.count})"

    @classmethod
    def of(cls, features: Float[Tensor, "n d"] | Float[np.ndarray, "n d"]) -> "FeatureStatistics":
        """Returns the statistics of one set of features."""
        checked = _rows("features", features)
        return cls(checked.shape[1]).update(checked)

    def _absorb(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        if count == 0:
            return
        delta = mean - self._mean
        self._mean += delta * (count / total)
        self._scatter += scatter
        self._scatter.addr_(delta, delta, alpha=self.count * count / total)
        self.count = total

    def update(
        self, features: Float[Tensor, "n d"] | Float[np.ndarray, "n d"]
    ) -> "FeatureStatistics":
        """Adds a batch of features, of any size from one.

        Returns:
            The object itself.

        Raises:
            TypeError: if the features are not floating-point numbers.
            ValueError: if they have another shape than "n dim", or hold values that are NaN, infinite or too
                large to be squared; the statistics then stay as they were.
        """
        tensor = _rows("features", features)
        if tensor.ndim != 2 or tensor.shape[1] != self.dim:
            raise ValueError(
                f"features must have the shape (n, {self.dim}), got {tuple(tensor.shape)}."
            )
        part = FeatureStatistics(self.dim, self._mean.device)
        for some in tensor.split(CHUNK):
            x = as_float64("features", some, 2, "n, d").to(self._mean.device)
            if (largest := float(x.abs().max())) > LARGEST:
                raise too_large("features", largest)
            mean = x.mean(dim=0)
            x = x - mean
            part._absorb(len(x), mean, x.T @ x)
        return self.merge(part)

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Adds the samples that another object has seen.

        Returns:
            The object itself.

        Raises:
            ValueError: if the dimensions differ.
        """
        if other.dim != self.dim:
            raise ValueError(
                f"statistics of {other.dim} dimensions cannot join those of {self.dim}."
            )
        device = self._mean.device
        # Copies, so that merging an object with itself counts every sample twice and nothing else.
        self._absorb(
            other.count, other._mean.to(device, copy=True), other._scatter.to(device, copy=True)
        )
        return self

    @property
    def mean(self) -> Float[Tensor, " d"]:
        """The mean, float64.

        Raises:
            ValueError: if no sample has been seen.
        """
        if self.count < 1:
            raise ValueError("no samples yet: call update(features) first.")
        return self._mean.clone()

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The unbiased covariance (divided by n − 1), float64.

        Raises:
            ValueError: if fewer than two samples have been seen.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two samples, got {self.count}.")
        return self._scatter / (self.count - 1)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns count, mean and scatter as tensors, which any process can save or send."""
        return {
            "count": torch.tensor(self.count, dtype=torch.int64),
            "mean": self._mean.clone(),
            "scatter": self._scatter.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> "FeatureStatistics":
        """Takes over what `state_dict` returned.

        Raises:
            ValueError: if entries are missing or no tensors, of other dimensions or types, or no statistics: a
                negative count, values that are not finite, a scatter that is not symmetric or whose diagonal is
                negative, or numbers without samples. The statistics then stay as they were.
        """
        count, mean, scatter = _checked_state(state, self.dim)
        self.count = count
        self._mean.copy_(mean)
        self._scatter.copy_(scatter)
        return self

    def save(self, path: str | Path) -> None:
        """Writes the statistics to a safetensors file, so that a reference set need be measured only once.

        The file replaces an older one only when it is complete, and carries a hash of what is in it.

        Raises:
            OSError: as the system reports it.
        """
        state = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        state["sha256"] = _digest(state)
        write_atomically(Path(path), serialise(state))

    @classmethod
    def load(cls, path: str | Path) -> "FeatureStatistics":
        """Returns the statistics that `save` wrote.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it holds no statistics, or is damaged.
        """
        path = Path(path)
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
            state = parse(path.read_bytes())
            recorded = state.pop("sha256", None)
            mean = state.get("mean")
            _checked_state(state, mean.numel() if isinstance(mean, Tensor) else 0)
            if recorded is None or not torch.equal(recorded, _digest(state)):
                raise ValueError("its content is not what its hash says")
            statistics = cls(len(state["mean"])).load_state_dict(state)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} holds no feature statistics, or is damaged: {error}. Write it anew with "
                "FeatureStatistics.of(features).save(path)."
            ) from None
        return statistics

    def all_reduce(self, group: Any = None) -> "FeatureStatistics":
        """Merges the statistics of all processes of a torch.distributed group, in every one of them.

        Two sums travel: the weighted means first, then the scatters moved to the common mean.
        Call it once, after the last update.

        Returns:
            The object itself.
        """
        import torch.distributed as dist

        count = torch.tensor([float(self.count)], dtype=torch.float64, device=self._mean.device)
        dist.all_reduce(count, group=group)
        total = float(count)
        if total == 0:
            return self
        mean = self._mean * (self.count / total)
        dist.all_reduce(mean, group=group)
        delta = self._mean - mean
        scatter = self._scatter.addr(delta, delta, alpha=self.count)
        dist.all_reduce(scatter, group=group)
        self.count, self._mean, self._scatter = round(total), mean, scatter
        return self


def _checked_state(state: dict[str, Any], dim: int) -> tuple[int, Tensor, Tensor]:
    """Returns count, mean and scatter if they can be the statistics of some samples."""
    if set(state) != {"count", "mean", "scatter"}:
        raise ValueError(f"the state must hold count, mean and scatter, got {sorted(state)}.")
    count, mean, scatter = state["count"], state["mean"], state["scatter"]
    for name, value in state.items():
        wanted = torch.int64 if name == "count" else torch.float64
        if not isinstance(value, Tensor) or value.dtype != wanted:
            found = getattr(value, "dtype", type(value).__name__)
            raise ValueError(f"the state's {name} must be a tensor of {wanted}, got {found}.")
    if mean.shape != (dim,) or scatter.shape != (dim, dim) or count.ndim:
        raise ValueError(f"the state is of {tuple(mean.shape)} dimensions, not ({dim},).")
    if (n := int(count)) < 0:
        raise ValueError(f"the state's count of samples is negative: {n}.")
    if not torch.isfinite(mean).all() or not torch.isfinite(scatter).all():
        raise ValueError("the state holds NaN or infinite values.")
    if n < 2 and (scatter.any() or (n == 0 and mean.any())):
        raise ValueError(f"the state holds numbers that {n} samples cannot have.")
    largest = float(scatter.abs().max())
    if (scatter.diagonal() < 0).any() or float((scatter - scatter.T).abs().max()) > 1e-5 * largest:
        raise ValueError("the state's scatter is not symmetric, or its diagonal is negative.")
    return n, mean, scatter


def _digest(state: dict[str, Tensor]) -> Tensor:
    digest = hashlib.sha256()
    for name in ("count", "mean", "scatter"):
        value = state[name].cpu().contiguous()
        digest.update(repr((name, tuple(value.shape))).encode())
        digest.update(value.numpy().astype(value.numpy().dtype.newbyteorder("<")).tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _rows(name: str, features: Any) -> Tensor:
    """Checks type and shape of features; their values are checked as they are read."""
    rows(name, features)
    tensor = torch.as_tensor(features)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating-point numbers, got {tensor.dtype}.")
    return tensor


def _statistics(name: str, features: Any) -> FeatureStatistics:
    known = isinstance(features, FeatureStatistics)
    statistics = features if known else FeatureStatistics.of(_rows(name, features))
    if statistics.count < 2:
        raise ValueError(
            f"{name} has {statistics.count} sample; a covariance needs at least two, and a meaningful "
            "distance thousands."
        )
    return statistics


def fid(
    features_a: Float[Tensor, "n d"] | Float[np.ndarray, "n d"] | FeatureStatistics,
    features_b: Float[Tensor, "m d"] | Float[np.ndarray, "m d"] | FeatureStatistics,
) -> float:
    """Returns the Fréchet distance between Gaussians fitted to two sets of features.

    It is symmetric, and 0 for a set and itself. It falls with the number of samples, roughly as
    FID_∞ + c/N, so compare only distances of equal N (or use `fid_infinity`); fewer samples than dimensions
    are allowed and make the bias large.

    Args:
        features_a: one row a sample, or their `FeatureStatistics`.
        features_b: likewise, of the same dimension.

    Returns:
        The distance, at least 0.

    Raises:
        TypeError: if the features are not floating-point numbers.
        ValueError: if images are given, a set has fewer than two samples, the dimensions differ, or a value is
            NaN, infinite or too large to be squared.
    """
    a, b = _statistics("features_a", features_a), _statistics("features_b", features_b)
    if a.dim != b.dim:
        raise ValueError(
            f"features_a has {a.dim} dimensions and features_b {b.dim}; extract both with the same network."
        )
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


class FIDInfinity(NamedTuple):
    """An extrapolated distance.

    Attributes:
        value: the intercept, the estimate for infinitely many samples; it may come out slightly negative.
        slope: the bias is about slope / N.
        sizes: the sample counts N that were used.
        distances: the distance at each of them.
    """

    value: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def fid_infinity(
    real: Float[Tensor, "n d"] | Float[np.ndarray, "n d"] | FeatureStatistics,
    fake: Float[Tensor, "m d"] | Float[np.ndarray, "m d"],
    generator: torch.Generator,
    sizes: Sequence[int] | None = None,
) -> FIDInfinity:
    """Extrapolates the distance to infinitely many generated samples (Chong and Forsyth, 2020).

    The distance of N generated samples is nearly linear in 1/N; a least-squares line through several N is read
    at 1/N = 0. Only the generated side is extrapolated; the bias of the real side stays.

    Args:
        real: features of the reference, or their statistics.
        fake: features of generated samples, which are drawn from without replacement.
        generator: draws the subsets, on the CPU.
        sizes: the values of N; by default 15, evenly spaced from a tenth of the samples to all.

    Returns:
        The intercept, the slope and the points.

    Raises:
        ValueError: if there are fewer than two different sizes, or one is below 2 or above the sample count.
    """
    reference = _statistics("real", real)
    samples = _rows("fake", fake)
    n = len(samples)
    if sizes is None:
        sizes = [max(2, round(s)) for s in np.linspace(n / 10, n, 15)]
    if len(set(sizes)) < 2 or min(sizes) < 2 or max(sizes) > n:
        raise ValueError(
            f"sizes must be at least two different numbers from 2 to the {n} samples, got {list(sizes)}."
        )
    distances = [
        fid(reference, samples[torch.randperm(n, generator=generator)[:size].to(samples.device)])
        for size in sizes
    ]
    slope, value = np.polyfit(1 / np.asarray(sizes, dtype=np.float64), distances, 1)
    return FIDInfinity(float(value), float(slope), tuple(sizes), tuple(distances))
