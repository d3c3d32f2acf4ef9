"""The kernel distance against torchmetrics, the definition pair by pair, closed forms, and bad input."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.kid import KernelInceptionDistance, poly_mmd

from companion.metrics import kid
from companion.randomness import derive

unchecked = inspect.unwrap(kid)


def draw(seed: int, n: int, d: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def pair_by_pair(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, Eq. (4) of the paper, one pair at a time, summed without rounding."""

    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    same_x = math.fsum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j)
    same_y = math.fsum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    between = math.fsum(k(a, b) for a in x for b in y)
    return same_x / (n * (n - 1)) + same_y / (m * (m - 1)) - 2 * between / (n * m)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 15),
    st.integers(2, 15),
    st.integers(1, 9),
    st.integers(0, 9999),
    st.floats(0, 3),
)
def test_equals_the_definition(n, m, d, seed, shift):
    x, y = draw(seed, n, d), draw(seed + 1, m, d, shift)
    found = kid(x, y)
    assert found.mean == pytest.approx(pair_by_pair(x.numpy(), y.numpy()), rel=1e-9, abs=1e-9)
    assert found.std is None


def test_equals_torchmetrics_for_equal_sizes_across_chunks():
    x, y = draw(0, 1500, 16), draw(1, 1500, 16, shift=0.2)
    assert kid(x, y).mean == pytest.approx(float(poly_mmd(x, y)), abs=1e-6)


class Identity(torch.nn.Module):
    """A feature extractor that hands its input through."""

    num_features = 12

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore")  # torchmetrics probes the module with random images
def test_subsets_equal_torchmetrics_on_the_same_draws():
    x, y = draw(2, 90, 12), draw(3, 70, 12, shift=0.3)
    reference = KernelInceptionDistance(feature=Identity(), subsets=8, subset_size=50)
    reference.set_dtype(torch.float64)
    reference.update(x, real=True)
    reference.update(y, real=False)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        mean, std = reference.compute()
    ours = kid(x, y, subsets=8, subset_size=50, generator=torch.Generator().manual_seed(4))
    assert ours == pytest.approx((float(mean), float(std)), abs=1e-6)


def test_one_dimension_by_hand():
    """k(0, ·) = 1, k(1, 1) = 8: real {0, 0}, fake {1, 1} give 1 + 8 − 2."""
    assert kid(torch.zeros(2, 1), torch.ones(2, 1)) == (7.0, None)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999))
def test_is_symmetric_and_blind_to_order(seed):
    x, y = draw(seed, 40, 5), draw(seed + 1, 50, 5, 0.5)
    value = kid(x, y).mean
    assert kid(y, x).mean == pytest.approx(value, abs=1e-12)
    assert kid(x.flip(0), y).mean == pytest.approx(value, abs=1e-12)


def test_is_unbiased_and_negative_half_of_the_time():
    """Equal distributions: the mean over repetitions is zero within its error, at 20 samples as at 200."""
    for n in (20, 200):
        values = torch.tensor([kid(draw(s, n, 4), draw(s + 5000, n, 4)).mean for s in range(300)])
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(300)
        assert 0.3 < (values < 0).double().mean() < 0.8


def test_sees_a_shift_and_a_third_moment(generator):
    x = draw(0, 2000, 2)
    assert kid(x, draw(1, 2000, 2, shift=0.3)).mean > 0.1
    skewed = -torch.rand(2000, 2, generator=generator, dtype=torch.float64).log() - 1
    assert kid(x, skewed).mean > 0.1  # equal means and covariances


def test_the_seed_decides_the_subsets():
    x, y = draw(0, 60, 3), draw(1, 60, 3)
    one = kid(x, y, subsets=5, subset_size=20)
    assert one == kid(x, y, subsets=5, subset_size=20, seed=0)
    assert one == kid(x, y, subsets=5, subset_size=20, generator=derive(0, "KID"))
    assert one != kid(x, y, subsets=5, subset_size=20, seed=1)


def test_a_subset_of_everything_is_the_whole():
    x, y = draw(0, 30, 3), draw(1, 30, 3)
    found = kid(x, y, subsets=3, subset_size=30)
    assert found == pytest.approx((kid(x, y).mean, 0), abs=1e-12)


def test_half_precision_and_arrays_are_taken():
    x, y = draw(0, 50, 4), draw(1, 50, 4, 0.5)
    assert kid(x.half(), y.half()).mean == pytest.approx(kid(x, y).mean, abs=0.01)
    assert kid(x.numpy(), y.numpy()) == kid(x, y)


GOOD = torch.eye(6)


@pytest.mark.parametrize(
    ("fake", "options", "error", "message"),
    [
        (GOOD[0], {}, ValueError, r"fake must have the shape \(m, d\)"),
        (GOOD[:, :4], {}, ValueError, "6 dimensions and fake 4"),
        (GOOD[:1], {}, ValueError, "fake has 1 sample; the estimate needs at least two"),
        (GOOD * float("nan"), {}, ValueError, "36 NaN or infinite"),
        (GOOD.double() * 1e60, {}, ValueError, r"fake holds values up to 1e\+60, too large"),
        (GOOD.bool(), {}, TypeError, "real numbers"),
        ("digits", {}, TypeError, "tensor or a NumPy array, got str"),
        (torch.zeros(8, 1, 28, 28), {}, ValueError, r"fake .*are images.*digit_features"),
        (GOOD, {"subsets": 0}, ValueError, "subsets must be at least 1, or None"),
        (GOOD, {"subsets": 2}, ValueError, r"subset_size must lie in 2…6.*got 1000"),
        (GOOD, {"subsets": 2, "subset_size": 1}, ValueError, "subset_size must lie in 2…6"),
    ],
)
def test_bad_input(fake, options, error, message):
    with pytest.raises(error, match=message):
        unchecked(GOOD, fake, **options)
