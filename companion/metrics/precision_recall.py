"""Improved precision and recall (Kynkäänniemi et al., 2019), and nearest neighbours.

Each set's manifold is the union of balls around its samples, each reaching to the sample's k-th nearest
neighbour in its own set. Precision is the share of generated samples in the real manifold, recall the share of
real samples in the generated one.

Who is inside, and who is nearest, is decided by distances that are sums of squared differences in float64: copies
are at distance zero and whole numbers tie exactly. ‖a‖² + ‖b‖² − 2ab is many times quicker and cancels for near
points far from the centre, so it serves to pass over the pairs that cannot matter: with its rounding error taken off
it is a lower bound.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion.metrics._checks import as_float64, rows

# Rows of the distance matrix that exist at a time.
CHUNK = 1024
# Numbers that are gathered at a time to take differences of.
GATHERED = 1 << 22
# How many neighbours are looked at beyond those that are wanted.
MORE = 4
# Squares below have lost digits to underflow.
TINY = 2.0**-960


class PrecisionRecall(NamedTuple):
    """Shares between 0 and 1."""

    precision: float
    recall: float


class NearestNeighbours(NamedTuple):
    """For each query the Euclidean distance to its nearest reference point, and that point's index."""

    distances: Float[Tensor, " n"]
    indices: Int64[Tensor, " n"]


class _Pairs:
    """The squared distances of points a to points b, by lower bounds first and exactly where it matters.

    Args:
        a: points, float64.
        b: points of the same dimension.
    """

    def __init__(self, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> None:
        self.a, self.b = a, b
        # Distances do not change when both sets move. A median near zero loses few digits below, and unlike a
        # mean it is not led astray by an outlier.
        centre = b[:: max(1, len(b) // 1000)].median(dim=0).values
        self._a, self._b = a - centre, b - centre
        # The relative error of ‖a‖² + ‖b‖² − 2ab, of the sums of d terms in it, of the centring, and of the sum
        # of squared differences that it is compared with, in the worst case (Higham, 2002, chapter 3).
        self.slack = (2 * a.shape[1] + 32) * torch.finfo(torch.float64).eps
        self._norm_a = self._a.square().sum(dim=1) * (1 - self.slack)
        self._norm_b = self._b.square().sum(dim=1) * (1 - self.slack)

    def bounds(self, less: Float[Tensor, " m"] | float = 0.0) -> Iterator[tuple[int, Tensor]]:
        """Yields the first row's number and rows of lower bounds on ‖aᵢ − bⱼ‖² − lessⱼ, in chunks of "rows m"."""
        columns = self._norm_b - (1 + self.slack) * less
        for start in range(0, len(self.a), CHUNK):
            rows = slice(start, start + CHUNK)
            yield (
                start,
                torch.addmm(self._norm_a[rows, None] + columns, self._a[rows], self._b.T, alpha=-2),
            )

    def exact(self, i: Int64[Tensor, "*s"], j: Int64[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        """Returns ‖aᵢ − bⱼ‖² as sums of squared differences.

        Raises:
            ValueError: if points that differ are so near, beside the largest value, that their distance vanishes.
        """
        flat_i, flat_j = i.flatten(), j.flatten()
        size = max(1, GATHERED // self.a.shape[1])
        parts = [
            self._differences(p, q).square_().sum(dim=1)
            for p, q in zip(flat_i.split(size), flat_j.split(size), strict=True)
        ]
        squared = torch.cat(parts) if parts else self.a.new_zeros(0)
        tiny = (squared < TINY).nonzero().flatten()
        for part in tiny.split(size):
            if (self._differences(flat_i[part], flat_j[part]) != 0).any():
                raise ValueError(
                    "the features span too many orders of magnitude: beside the largest values some distances "
                    "vanish when they are squared. Look for an outlier, or for values far too large."
                )
        return squared.view(i.shape)

    def _differences(self, i: Tensor, j: Tensor) -> Tensor:
        return self.a[i] - self.b[j]

    def smallest(self, k: int) -> tuple[Float[Tensor, " n"], Int64[Tensor, " n"]]:
        """Returns for each point of a the k-th smallest squared distance to b, and whose it is."""
        values, indices = [], []
        t = min(len(self.b), k + MORE)
        for start, bounds in self.bounds():
            low, near = bounds.topk(t, dim=1, largest=False)
            i = torch.arange(start, start + len(bounds), device=self.a.device)
            found, place = self.exact(i[:, None].expand_as(near), near).kthvalue(k, dim=1)
            index = near.gather(1, place[:, None])[:, 0]
            # Nobody else can be nearer if the largest of the bounds looked at, and so every other one, is not
            # below what was found, or if that is zero.
            unsure = ((low.amax(dim=1) < found) & (found > 0)).nonzero().flatten()
            if t < len(self.b) and len(unsure):
                found[unsure], index[unsure] = self._among_all(
                    i[unsure], bounds[unsure], found[unsure], k
                )
            values.append(found)
            indices.append(index)
        return torch.cat(values), torch.cat(indices)

    def _among_all(self, i: Tensor, bounds: Tensor, limit: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As `smallest`, for some points, by the exact distances to all that may be within the limits."""
        row, j = (bounds <= limit[:, None]).nonzero(as_tuple=True)
        squared = torch.full_like(bounds, torch.inf)
        squared[row, j] = self.exact(i[row], j)
        return squared.kthvalue(k, dim=1)

    def count_inside(self, squared_radii: Float[Tensor, " m"]) -> int:
        """Returns how many points of a lie in a ball around a point of b."""
        inside = 0
        for start, bounds in self.bounds(squared_radii):
            low, j = bounds.min(dim=1)
            row = (low <= 0).nonzero().flatten()  # the others are outside of every ball
            j = j[row]
            within = self.exact(start + row, j) <= squared_radii[j]
            inside += int(within.sum())
            rest = row[~within]
            other, j = (bounds[rest] <= 0).nonzero(as_tuple=True)
            within = self.exact(start + rest[other], j) <= squared_radii[j]
            inside += len(other[within].unique())
        return inside


def _pair(first: str, a: Any, second: str, b: Any) -> tuple[Tensor, Tensor, int]:
    """Returns both sets in float64 and the exponent of the power of two that they were divided by."""
    rows(first, a, "n, d")
    rows(second, b, "m, d")
    x = as_float64(first, a, 2, "n, d")
    y = as_float64(second, b, 2, "m, d").to(x.device)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{first} has {x.shape[1]} dimensions and {second} {y.shape[1]}; extract both with the same network."
        )
    _, exponent = math.frexp(max(float(x.abs().max()), float(y.abs().max())))
    if abs(exponent) < 400:
        return x, y, 0
    # Squares of such numbers overflow, or vanish. Whole powers of two change no digit.
    return _times_power(x, -exponent), _times_power(y, -exponent), exponent


def _times_power(x: Tensor, exponent: int) -> Tensor:
    """Returns x · 2^exponent, also where the power alone is too large for a float."""
    half = exponent // 2
    return x * 2.0**half * 2.0 ** (exponent - half)


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    # The smallest distance is the point's own, zero; the k-th neighbour is therefore entry k + 1.
    squared_radii, _ = _Pairs(centres, centres).smallest(k + 1)
    return _Pairs(points, centres).count_inside(squared_radii) / len(points)


def precision_recall(
    real: Float[Tensor, "n d"] | Float[np.ndarray, "n d"],
    fake: Float[Tensor, "m d"] | Float[np.ndarray, "m d"],
    k: int = 3,
) -> PrecisionRecall:
    """Returns improved precision and recall of generated features.

    Memory is a chunk of the distance matrix, time is quadratic in the number of samples. Both numbers depend
    on the sample counts and on k, so compare only with equal ones. A sample on the rim of a ball is inside.

    Args:
        real: features of real samples.
        fake: features of generated samples.
        k: the neighbour that sets a ball's radius; the paper uses 3.

    Returns:
        Precision (fidelity) and recall (coverage).

    Raises:
        TypeError: if an argument does not hold real numbers.
        ValueError: if images are given, dimensions differ, a value is NaN or infinite, k is below 1, a set has no
            more than k samples, or its values span too many orders of magnitude.
    """
    x, y, _ = _pair("real", real, "fake", fake)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    for name, points in (("real", x), ("fake", y)):
        if len(points) <= k:
            raise ValueError(
                f"{name} has {len(points)} samples; the {k} neighbours of each need at least {k + 1}."
            )
    return PrecisionRecall(
        precision=_share_inside(y, x, k),
        recall=_share_inside(x, y, k),
    )


def nearest_neighbours(
    queries: Float[Tensor, "n d"] | Float[np.ndarray, "n d"],
    reference: Float[Tensor, "m d"] | Float[np.ndarray, "m d"],
) -> NearestNeighbours:
    """Returns for each query the nearest reference point: a generator that memorises has distance 0.

    Distances are right to rounding, and 0 for equal points alone. Where several are equally near, one of them is
    returned.

    Args:
        queries: features, or flattened pixels.
        reference: such as those of the training set.

    Raises:
        TypeError: if an argument does not hold real numbers.
        ValueError: if images are given, dimensions differ, a value is NaN or infinite, or the values span too
            many orders of magnitude.
    """
    x, y, exponent = _pair("queries", queries, "reference", reference)
    squared, indices = _Pairs(x, y).smallest(1)
    return NearestNeighbours(_times_power(squared.sqrt(), exponent), indices)
