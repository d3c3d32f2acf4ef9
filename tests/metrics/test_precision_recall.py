"""Improved precision and recall against brute force, known cases, and bad input."""

import inspect
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from companion.metrics import nearest_neighbours, precision_recall

unchecked = inspect.unwrap(precision_recall)
nearest_unchecked = inspect.unwrap(nearest_neighbours)


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


# ---------------------------------------------------------------- exactly, where rounding would decide


def by_differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.square(a[:, None] - b[None]).sum(axis=-1)


def decided_by_differences(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    def share(points, centres):
        radii = np.sort(by_differences(centres, centres), axis=1)[:, k]
        return (by_differences(points, centres) <= radii).any(axis=1).mean()

    return share(fake, real), share(real, fake)


def whole_numbers(rng, n, d):
    return rng.integers(-3, 4, size=(n, d)).astype(float)


def binary(rng, n, d):
    return rng.integers(0, 2, size=(n, d)).astype(float)


def far_clusters(rng, n, d):
    """Whole numbers around centres far apart, so that the distances within a cluster are exact too."""
    return whole_numbers(rng, n, d) + rng.choice([-(2.0**40), 0.0, 2.0**33], size=(n, 1))


def with_an_outlier(rng, n, d):
    x = whole_numbers(rng, n, d)
    x[rng.integers(n)] = 1e10
    return x


def few_points_many_times(rng, n, d):
    return whole_numbers(rng, 3, d)[rng.integers(0, 3, size=n)] + 1e6


KINDS = [whole_numbers, binary, far_clusters, with_an_outlier, few_points_many_times]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(
    d=st.integers(1, 20),
    n=st.integers(5, 60),
    m=st.integers(5, 60),
    k=st.integers(1, 4),
    seed=st.integers(0, 9999),
)
def test_ties_and_far_points_are_decided_by_differences(kind, d, n, m, k, seed):
    rng = np.random.default_rng(seed)
    real, fake = kind(rng, n, d), kind(rng, m, d)
    assert precision_recall(real, fake, k) == decided_by_differences(real, fake, k)
    squared = by_differences(real, fake)
    found = nearest_neighbours(real, fake)
    # No tolerance for zero; elsewhere the two libraries' roots may differ in the last digit.
    np.testing.assert_allclose(found.distances, np.sqrt(squared.min(axis=1)), rtol=3e-16, atol=0)
    np.testing.assert_array_equal(squared[np.arange(n), found.indices], squared.min(axis=1))


@settings(max_examples=20, deadline=None)
@given(
    d=st.integers(1, 20),
    distance=st.floats(1, 1e12),
    spread=st.floats(1e-3, 10),
    seed=st.integers(0, 9999),
)
def test_distances_in_far_clusters_are_right_to_rounding(d, distance, spread, seed):
    rng = np.random.default_rng(seed)
    far = rng.choice([-distance, distance], size=(30, 1))
    reference = far + spread * rng.normal(size=(30, d))
    queries = reference[::-1] + spread * rng.normal(size=(30, d))
    expected = np.sqrt(by_differences(queries, reference).min(axis=1))
    np.testing.assert_allclose(nearest_neighbours(queries, reference).distances, expected, 1e-13)


def test_binary_features_across_chunks():
    rng = np.random.default_rng(0)
    real, fake = binary(rng, 1100, 9), binary(rng, 1050, 9)
    fake[:500, :4] = 0
    assert precision_recall(real, fake) == decided_by_differences(real, fake, 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(-1000, 990), st.integers(0, 9999))
def test_a_power_of_two_changes_nothing(exponent, seed):
    """Its digits are the same; at 1e200 squares overflow, at 1e-200 they vanish."""
    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(40, 5)), rng.normal(0.3, 0.8, size=(40, 5))
    scale = 2.0**exponent
    assert precision_recall(scale * real, scale * fake) == precision_recall(real, fake)
    found, plain = nearest_neighbours(scale * fake, scale * real), nearest_neighbours(fake, real)
    assert torch.equal(found.indices, plain.indices)
    if exponent > -950:  # below, the distances themselves have fewer digits
        assert torch.equal(found.distances, scale * plain.distances)


@pytest.mark.parametrize("largest", [1e160, 1e200, 1e300])
def test_an_outlier_beside_which_all_else_vanishes_is_an_error(generator, largest):
    real, fake = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    real[7] = largest
    for measure in (precision_recall, nearest_neighbours):
        with pytest.raises(ValueError, match="too many orders of magnitude"):
            measure(real, torch.cat([fake, real[7:8]]))


def test_equal_points_need_no_second_look(generator, monkeypatch):
    """Their bounds all overlap, yet a collapsed generator must not cost the whole matrix of differences."""
    module = sys.modules[precision_recall.__module__]
    looked_at = []
    exact = module._Pairs.exact
    monkeypatch.setattr(
        module._Pairs, "exact", lambda self, i, j: looked_at.append(i.numel()) or exact(self, i, j)
    )
    fake = torch.full((1500, 8), 0.1)
    assert precision_recall(fake, fake) == (1, 1)
    assert float(nearest_neighbours(fake, fake).distances.max()) == 0
    assert sum(looked_at) < 30 * 1500


GOOD = torch.eye(6)


@pytest.mark.parametrize(
    "images", [torch.zeros(8, 1, 28, 28), torch.zeros(8, 3, 9, 9, dtype=torch.uint8)]
)
@pytest.mark.parametrize("function", [unchecked, nearest_unchecked])
def test_images_instead_of_features(function, images):
    message = r"are images; this metric takes their features.*digit_features\(images\)"
    with pytest.raises(ValueError, match=f"(real|queries).*{message}"):
        function(images, GOOD)
    with pytest.raises(ValueError, match=f"(fake|reference).*{message}"):
        function(GOOD, images)


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
