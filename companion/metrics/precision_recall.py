"""Improved precision and recall (Kynkäänniemi et al., 2019), and nearest neighbours.

Each set's manifold is the union of balls around its samples, each reaching to the sample's k-th nearest
neighbour in its own set. Precision is the share of generated samples in the real manifold, recall the share of
real samples in the generated one.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from companion.metrics._checks import as_float64

# Rows of the distance matrix that exist at a time.
CHUNK = 1024


class PrecisionRecall(NamedTuple):
    """Shares between 0 and 1."""

    precision: float
    recall: float


class NearestNeighbours(NamedTuple):
    """For each query the Euclidean distance to its nearest reference point, and that point's index."""

    distances: Float[Tensor, " n"]
    indices: Int64[Tensor, " n"]


def _squared_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Yields the rows of ‖aᵢ − bⱼ‖² in chunks of "rows m", exactly zero where the points are equal."""
    # Distances do not change when both sets move, and a mean near zero loses fewer digits below.
    centre = b.mean(dim=0)
    a, b = a - centre, b - centre
    norm_a, norm_b = a.square().sum(dim=1), b.square().sum(dim=1)
    for rows, norm in zip(a.split(CHUNK), norm_a.split(CHUNK), strict=True):
        scale = norm[:, None] + norm_b
        squared = torch.addmm(scale, rows, b.T, alpha=-2)
        # ‖a‖² + ‖b‖² − 2ab cancels for near points; below the rounding error of the sum, it is zero.
        yield torch.where(squared <= 1e-13 * scale, 0.0, squared)


def _pair(first: str, a: Any, second: str, b: Any) -> tuple[Tensor, Tensor]:
    x = as_float64(first, a, 2, "n, d")
    y = as_float64(second, b, 2, "m, d").to(x.device)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{first} has {x.shape[1]} dimensions and {second} {y.shape[1]}; extract both with the same network."
        )
    return x, y


def _squared_radii(points: Tensor, k: int) -> Tensor:
    # The smallest distance is the point's own, zero; the k-th neighbour is therefore entry k + 1.
    rows = _squared_distances(points, points)
    return torch.cat([row.kthvalue(k + 1, dim=1).values for row in rows])


def _share_inside(points: Tensor, centres: Tensor, squared_radii: Tensor) -> float:
    inside = sum(
        int((squared <= squared_radii).any(dim=1).sum())
        for squared in _squared_distances(points, centres)
    )
    return inside / len(points)


def precision_recall(
    real: Float[Tensor, "n d"] | Float[np.ndarray, "n d"],
    fake: Float[Tensor, "m d"] | Float[np.ndarray, "m d"],
    k: int = 3,
) -> PrecisionRecall:
    """Returns improved precision and recall of generated features.

    Memory is a chunk of the distance matrix, time is quadratic in the number of samples. Both numbers depend
    on the sample counts and on k, so compare only with equal ones.

    Args:
        real: features of real samples.
        fake: features of generated samples.
        k: the neighbour that sets a ball's radius; the paper uses 3.

    Returns:
        Precision (fidelity) and recall (coverage).

    Raises:
        TypeError: if an argument does not hold real numbers.
        ValueError: if dimensions differ, a value is NaN or infinite, k is below 1, or a set has no more than k
            samples.
    """
    x, y = _pair("real", real, "fake", fake)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    for name, points in (("real", x), ("fake", y)):
        if len(points) <= k:
            raise ValueError(
                f"{name} has {len(points)} samples; the {k} neighbours of each need at least {k + 1}."
            )
    return PrecisionRecall(
        precision=_share_inside(y, x, _squared_radii(x, k)),
        recall=_share_inside(x, y, _squared_radii(y, k)),
    )


def nearest_neighbours(
    queries: Float[Tensor, "n d"] | Float[np.ndarray, "n d"],
    reference: Float[Tensor, "m d"] | Float[np.ndarray, "m d"],
) -> NearestNeighbours:
    """Returns for each query the nearest reference point: a generator that memorises has distance 0.

    Args:
        queries: features, or flattened pixels.
        reference: such as those of the training set.

    Raises:
        TypeError: if an argument does not hold real numbers.
        ValueError: if dimensions differ, or a value is NaN or infinite.
    """
    x, y = _pair("queries", queries, "reference", reference)
    nearest = [squared.min(dim=1) for squared in _squared_distances(x, y)]
    return NearestNeighbours(
        torch.cat([n.values for n in nearest]).sqrt(), torch.cat([n.indices for n in nearest])
    )
