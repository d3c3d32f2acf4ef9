"""Improved precision and recall against brute force, known cases, and bad input."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from companion.metrics import nearest_neighbours, precision_recall

unchecked = inspect.unwrap(precision_recall)


def brute_force(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    """The paper's definition, one point at a time."""

    def share(points, centres):
        radii = [np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(cdist(centres, centres))]
        return np.mean([any(row <= radii) for row in cdist(points, centres)])

    return share(fake, real), share(real, fake)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(5, 40),
    st.integers(5, 40),
    st.integers(1, 4),
    st.integers(0, 999),
)
def test_equals_brute_force(dim, n, m, k, seed):
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(n, dim)), rng.normal(0.5, 0.7, size=(m, dim))
    assert precision_recall(real, fake, k) == pytest.approx(brute_force(real, fake, k), abs=1e-12)


def test_equals_brute_force_across_chunks():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(1100, 8)), rng.normal(0.3, 0.8, size=(1050, 8))
    ours = precision_recall(real, fake)
    radii_real = np.sort(cdist(real, real))[:, 3]
    radii_fake = np.sort(cdist(fake, fake))[:, 3]
    between = cdist(fake, real)
    expected = (
        (between <= radii_real).any(axis=1).mean(),
        (between <= radii_fake[:, None]).any(axis=0).mean(),
    )
    assert ours == pytest.approx(expected, abs=1e-12)


def test_a_memorising_generator_is_perfect(generator):
    real = torch.randn(300, 10, generator=generator)
    shuffled = real[torch.randperm(300, generator=generator)]
    assert precision_recall(real, shuffled) == (1, 1)
    assert float(nearest_neighbours(shuffled, real).distances.max()) == 0


def test_copies_of_one_image_count_as_inside_however_far_from_the_origin():
    """All radii are zero here, so distances must be exactly zero."""
    point = 1e4 + torch.linspace(0, 1, 7, dtype=torch.float64)
    copies = point.repeat(10, 1)
    assert precision_recall(copies, copies) == (1, 1)


def test_a_collapsed_generator_is_precise_and_recalls_little(generator):
    real = torch.randn(1000, 2, generator=generator)
    fake = 0.02 * torch.randn(1000, 2, generator=generator)
    score = precision_recall(real, fake)
    assert score.precision > 0.95
    assert score.recall < 0.05


def test_a_scattering_generator_recalls_and_is_imprecise(generator):
    real = torch.randn(1000, 2, generator=generator)
    fake = 12 * torch.randn(1000, 2, generator=generator)
    score = precision_recall(real, fake)
    assert score.precision < 0.2
    assert score.recall > 0.8


def test_sets_apart_share_nothing(generator):
    real = torch.randn(50, 3, generator=generator)
    assert precision_recall(real, real + 100) == (0, 0)


def test_exchanging_the_sets_exchanges_the_numbers(generator):
    a, b = torch.randn(2, 80, 4, generator=generator)
    assert precision_recall(a, 0.5 * b) == precision_recall(0.5 * b, a)[::-1]


def test_nearest_neighbours_equal_brute_force():
    rng = np.random.default_rng(1)
    queries, reference = rng.normal(size=(1500, 5)), rng.normal(size=(70, 5))
    distances = cdist(queries, reference)
    found = nearest_neighbours(queries, reference)
    np.testing.assert_allclose(found.distances, distances.min(axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.indices, distances.argmin(axis=1))


GOOD = torch.eye(6)


@pytest.mark.parametrize(
    ("fake", "k", "error", "message"),
    [
        (GOOD[0], 3, ValueError, r"fake must have the shape \(m, d\)"),
        (GOOD[:, :4], 3, ValueError, "6 dimensions and fake 4"),
        (GOOD[:3], 3, ValueError, "fake has 3 samples; the 3 neighbours of each need at least 4"),
        (GOOD[:1], 1, ValueError, "fake has 1 samples"),
        (GOOD, 0, ValueError, "k must be at least 1, got 0"),
        (GOOD * float("nan"), 3, ValueError, "36 NaN or infinite"),
        (GOOD.bool(), 3, TypeError, "real numbers"),
        ("digits", 3, TypeError, "tensor or a NumPy array, got str"),
    ],
)
def test_bad_input(fake, k, error, message):
    with pytest.raises(error, match=message):
        unchecked(GOOD, fake, k)
