"""The kernel distance between two sets of features, "KID" (Bińkowski et al., "Demystifying MMD GANs", 2018).

It is the unbiased estimate of the squared maximum mean discrepancy under the polynomial kernel
k(x, y) = (xᵀy / d + 1)³, which compares moments up to the third. Unlike the Fréchet distance it fits no Gaussian,
and its expectation does not depend on the number of samples.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from companion.metrics._checks import as_float64, rows, too_large
from companion.randomness import derive

# Rows of the kernel matrix that exist at a time.
CHUNK = 1024


class KID(NamedTuple):
    """The distance, which may be slightly negative, and its standard deviation over subsets, None without them."""

    mean: float
    std: float | None


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    """Returns the sum of k over all pairs."""
    return math.fsum(
        float(torch.addmm(x.new_ones(()), part, y.T, alpha=1 / x.shape[1]).pow_(3).sum())
        for part in x.split(CHUNK)
    )


def _kernel_sum_of_others(x: Tensor) -> float:
    """Returns the sum of k over all pairs of different samples."""
    own = (x.square().sum(dim=1) / x.shape[1] + 1).pow(3)
    return _kernel_sum(x, x) - float(own.sum())


def _squared_mmd(x: Tensor, y: Tensor) -> float:
    n, m = len(x), len(y)
    return (
        _kernel_sum_of_others(x) / (n * (n - 1))
        + _kernel_sum_of_others(y) / (m * (m - 1))
        - 2 * _kernel_sum(x, y) / (n * m)
    )


def _pair(real: Any, fake: Any) -> tuple[Tensor, Tensor]:
    rows("real", real, "n, d")
    rows("fake", fake, "m, d")
    x = as_float64("real", real, 2, "n, d")
    y = as_float64("fake", fake, 2, "m, d").to(x.device)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"real has {x.shape[1]} dimensions and fake {y.shape[1]}; extract both with the same network."
        )
    for name, points in (("real", x), ("fake", y)):
        if len(points) < 2:
            raise ValueError(f"{name} has {len(points)} sample; the estimate needs at least two.")
        # The cube of a square, summed: 1e45 to the sixth, times 10^16 pairs and more, is still a float64.
        if (largest := float(points.abs().max())) > 1e45:
            raise too_large(name, largest)
    return x, y


def _drawn(n: int, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randperm(n, generator=generator, device=generator.device)[:size].to(device)


def kid(
    real: Float[Tensor, "n d"] | Float[np.ndarray, "n d"],
    fake: Float[Tensor, "m d"] | Float[np.ndarray, "m d"],
    *,
    subsets: int | None = None,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
    seed: int = 0,
) -> KID:
    """Returns the kernel distance of generated features from real ones.

    It is an unbiased estimate of a number that is 0 for equal distributions, so it comes out negative about as
    often as positive where they are equal: a small negative value means "no difference seen". Papers often report
    it times 1,000.

    Args:
        real: features of real samples, a row each.
        fake: features of generated samples.
        subsets: how many pairs of random subsets to average over, which gives an error bar; the original code
            draws 100. By default all pairs of samples are used once, which is the estimate of least variance.
        subset_size: samples of each set in a subset, drawn without replacement; 1,000 in the original code.
        generator: draws the subsets; by default one that is a function of the seed.
        seed: of the subsets, where no generator is given.

    Returns:
        The distance; and the standard deviation (ddof 0) over the subsets, which is that of one subset's estimate,
        not of their mean.

    Raises:
        TypeError: if an argument does not hold real numbers.
        ValueError: if images are given, dimensions differ, a value is NaN, infinite or too large, a set has fewer
            than two samples, there are no subsets, or a set is smaller than a subset.
    """
    x, y = _pair(real, fake)
    if subsets is None:
        return KID(_squared_mmd(x, y), None)
    if subsets < 1:
        raise ValueError(
            f"subsets must be at least 1, or None for all pairs at once, got {subsets}."
        )
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(
            f"subset_size must lie in 2…{min(len(x), len(y))}, the size of the smaller set, got {subset_size}."
        )
    source = derive(seed, "KID") if generator is None else generator
    values = torch.tensor(
        [
            _squared_mmd(*(p[_drawn(len(p), subset_size, source, p.device)] for p in (x, y)))
            for _ in range(subsets)
        ],
        dtype=torch.float64,
    )
    return KID(float(values.mean()), float(values.std(correction=0)))
