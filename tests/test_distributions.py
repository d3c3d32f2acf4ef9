"""Densities and divergences against torch.distributions, Monte Carlo, quadrature and known units."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td

from companion.data import to_float
from companion.distributions import (
    BYTE,
    DiagonalGaussian,
    LogisticMixture,
    bernoulli_log_likelihood,
    bits_per_dimension,
    dequantise,
    discretised_logistic_log_likelihood,
    gaussian_log_density,
    kl_diagonal,
    kl_gaussian,
    log_mean_exp,
)
from companion.randomness import PerImage, Rows, normal


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 5), st.integers(1, 7))
def test_diagonal_kl_equals_torchs(seed, n, d):
    mu, log_var, mu_p, log_var_p = draw(seed, 4, n, d)
    theirs = td.kl_divergence(
        td.Normal(mu, (0.5 * log_var).exp()), td.Normal(mu_p, (0.5 * log_var_p).exp())
    )
    torch.testing.assert_close(kl_diagonal(mu, log_var, mu_p, log_var_p), theirs)
    standard = td.kl_divergence(td.Normal(mu, (0.5 * log_var).exp()), td.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_diagonal(mu, log_var), standard)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 6))
def test_kl_is_nonnegative_and_zero_for_equals(seed, d):
    mu, log_var = draw(seed, 2, d)
    assert (kl_diagonal(mu, log_var) >= -1e-12).all()
    assert kl_diagonal(mu, log_var, mu, log_var).abs().max() < 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.integers(1, 6))
def test_full_kl_equals_torchs_and_the_diagonal_one(seed, d):
    mu, mu_p = draw(seed, 2, d)
    roots = draw(seed + 1, 2, d, d)
    first, second = roots @ roots.mT + 0.1 * torch.eye(d, dtype=torch.float64)
    theirs = td.kl_divergence(td.MultivariateNormal(mu, first), td.MultivariateNormal(mu_p, second))
    torch.testing.assert_close(kl_gaussian(mu, first, mu_p, second), theirs)
    log_var = draw(seed + 2, d)
    torch.testing.assert_close(
        kl_gaussian(mu, log_var.exp().diag()), kl_diagonal(mu, log_var).sum()
    )


def test_kl_equals_monte_carlo(generator):
    mu, log_var = torch.tensor([0.7, -1.0, 0.0]), torch.tensor([-1.0, 0.4, 0.0])
    z = mu + (0.5 * log_var).exp() * torch.randn(200_000, 3, generator=generator)
    ratios = (gaussian_log_density(z, mu, log_var) - gaussian_log_density(z)).sum(dim=1)
    error = ratios.std() / math.sqrt(len(ratios))
    assert abs(ratios.mean() - kl_diagonal(mu, log_var).sum()) < 4 * error


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9999))
def test_densities_equal_torchs(seed):
    x, mu, log_var = draw(seed, 3, 4)
    theirs = td.Normal(mu, (0.5 * log_var).exp()).log_prob(x)
    torch.testing.assert_close(gaussian_log_density(x, mu, log_var), theirs)
    fixed = td.Normal(mu, math.exp(0.5 * 0.3)).log_prob(x)
    torch.testing.assert_close(gaussian_log_density(x, mu, 0.3), fixed)
    bits = (x > 0).double()
    torch.testing.assert_close(
        bernoulli_log_likelihood(5 * mu, bits), td.Bernoulli(logits=5 * mu).log_prob(bits)
    )


def test_bernoulli_probabilities_sum_to_one_and_large_logits_stay_finite():
    logits = torch.tensor([-1e4, -3.0, 0.0, 2.0, 1e4])
    one, zero = (
        bernoulli_log_likelihood(logits, torch.full_like(logits, bit)) for bit in (1.0, 0.0)
    )
    torch.testing.assert_close(one.exp() + zero.exp(), torch.ones(5))
    assert one[0] == -1e4
    assert torch.isfinite(one).all()


def test_bfloat16_arguments_are_widened():
    logits = torch.tensor([0.5], dtype=torch.bfloat16)
    assert bernoulli_log_likelihood(logits, torch.ones(1)).dtype == torch.float32
    assert kl_diagonal(logits, logits).dtype == torch.float32
    assert gaussian_log_density(logits).dtype == torch.float32


def test_log_mean_exp_neither_overflows_nor_forgets_the_count():
    x = torch.tensor([[1000.0, 1000.0], [-1000.0, -1000.0]])
    torch.testing.assert_close(log_mean_exp(x, dim=1), torch.tensor([1000.0, -1000.0]))
    y = torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(log_mean_exp(y), y.exp().mean().log())


def test_dequantised_bytes_fill_their_bins_and_round_back(generator):
    x = to_float(torch.arange(256, dtype=torch.uint8).repeat(200, 1))
    noisy = dequantise(x, generator)
    assert torch.equal(((noisy + 1) * 127.5).round().clamp(0, 255), ((x + 1) * 127.5).round())
    offsets = (noisy - x) / BYTE
    assert abs(offsets.mean()) < 0.01
    assert abs(offsets.var() - 1 / 12) < 0.005


def test_bits_per_dimension_of_known_distributions():
    # Uniform bytes cost eight bits; as a density on [−1 − 1/255, 1 + 1/255] they cost the same.
    assert bits_per_dimension(10 * math.log(256), 10) == pytest.approx(8)
    density = 1 / (256 * BYTE)
    assert bits_per_dimension(-10 * math.log(density), 10, unit=BYTE) == pytest.approx(8)
    assert bits_per_dimension(784 * math.log(2), 784) == pytest.approx(1)
    tensor = bits_per_dimension(torch.tensor([784 * math.log(2)]), 784)
    torch.testing.assert_close(tensor, torch.ones(1))


@pytest.mark.parametrize(("dimensions", "unit"), [(0, 1.0), (3, 0.0)])
def test_bits_per_dimension_refuses_nonsense(dimensions, unit):
    with pytest.raises(ValueError, match="must be positive"):
        bits_per_dimension(1.0, dimensions, unit)


def test_full_kl_needs_positive_definite_covariances():
    with pytest.raises(torch.linalg.LinAlgError):
        kl_gaussian(torch.zeros(2), torch.zeros(2, 2))


@pytest.mark.parametrize("which", ["covariance", "covariance_p"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999), d=st.integers(2, 6))
def test_full_kl_refuses_what_is_not_symmetric(which, seed, d):
    """The lower triangle alone is a fine factorisation, whatever the upper one holds."""
    good = torch.eye(d, dtype=torch.float64)
    root = draw(seed, d, d)
    skewed = root @ root.mT + good
    i, j = divmod(seed % (d * d), d)
    skewed[i, (j if j != i else (i + 1) % d)] += 0.01 * float(skewed.abs().max())
    first, second = (skewed, good) if which == "covariance" else (good, skewed)
    with pytest.raises(ValueError, match=rf"^{which} is not symmetric"):
        kl_gaussian(draw(seed, d), first, draw(seed + 1, d), second)


def test_full_kl_takes_rounding_for_symmetry():
    root = draw(0, 5, 5)
    covariance = root @ root.mT + torch.eye(5, dtype=torch.float64)
    rounded = covariance + 1e-9 * draw(1, 5, 5)
    torch.testing.assert_close(
        kl_gaussian(draw(2, 5), rounded), kl_gaussian(draw(2, 5), covariance), rtol=1e-6, atol=0
    )


# ---------------------------------------------------------------- the diagonal Gaussian


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 9999),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_a_diagonal_gaussian_is_torchs_normal(seed, shape, dtype):
    mu, log_var, mu_p, log_var_p, x = draw(seed, 5, *shape).to(dtype)
    ours, other = DiagonalGaussian(mu, log_var), DiagonalGaussian(mu_p, log_var_p)
    theirs, theirs_p = (
        td.Normal(m.double(), (0.5 * v.double()).exp())
        for m, v in ((mu, log_var), (mu_p, log_var_p))
    )
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    standard = td.Normal(torch.zeros(shape).double(), 1.0)
    for found, expected in [
        (ours.log_prob(x), theirs.log_prob(x.double())),
        (ours.kl(other), td.kl_divergence(theirs, theirs_p)),
        (ours.kl(), td.kl_divergence(theirs, standard)),
        (ours.kl(DiagonalGaussian.standard(mu)), td.kl_divergence(theirs, standard)),
        (ours.std, theirs.stddev),
        (ours.mode, theirs.mode),
    ]:
        assert found.dtype == dtype
        assert found.shape == torch.Size(shape)
        torch.testing.assert_close(
            found.double(), expected, **(close or {"rtol": 1e-9, "atol": 1e-9})
        )


def test_its_samples_have_its_moments(generator):
    gaussian = DiagonalGaussian(
        torch.tensor([1.0, -2.0]).expand(200_000, 2), torch.tensor([-1.0, 1.0])
    )
    z = gaussian.sample(generator)
    torch.testing.assert_close(z.mean(0), torch.tensor([1.0, -2.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(z.var(0).log(), torch.tensor([-1.0, 1.0]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "source",
    [
        lambda: torch.Generator().manual_seed(3),
        lambda: Rows(torch.Generator().manual_seed(3), 2, 6, 9),
        lambda: PerImage(3, 0, 4),
    ],
)
def test_its_samples_come_from_the_source(source):
    mu, log_var = draw(0, 2, 4, 3).float()
    expected = mu + (0.5 * log_var).exp() * normal((4, 3), source())
    assert torch.equal(DiagonalGaussian(mu, log_var).sample(source()), expected)


def test_gradients_go_through_a_sample(generator):
    mu = torch.zeros(5, 2, requires_grad=True)
    log_var = torch.zeros(5, 2, requires_grad=True)
    z = DiagonalGaussian(mu, log_var).sample(generator)
    z.sum().backward()
    torch.testing.assert_close(mu.grad, torch.ones(5, 2))
    torch.testing.assert_close(log_var.grad, 0.5 * z.detach())  # z = ε at σ = 1


@pytest.mark.parametrize("log_var", [-1.5, torch.tensor(-1.5), torch.full((4, 1), -1.5)])
def test_log_variances_broadcast(log_var):
    gaussian = DiagonalGaussian(torch.zeros(4, 3), log_var)
    assert torch.equal(gaussian.log_var, torch.full((4, 3), -1.5))


def test_a_diagonal_gaussian_widens_half_precision():
    half = torch.tensor([[0.5]], dtype=torch.bfloat16)
    gaussian = DiagonalGaussian(half, half)
    assert gaussian.mean.dtype == gaussian.log_var.dtype == gaussian.kl().dtype == torch.float32


@pytest.mark.parametrize("shape", [(3,), (5, 2), (1, 4, 2)])
def test_log_variances_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"does not broadcast to the mean's, \(4, 2\)"):
        DiagonalGaussian(torch.zeros(4, 2), torch.zeros(shape))


# --- Discretised logistics ---------------------------------------------------------------------------------------


def bin_masses(mu: float, scale: float, levels: int) -> torch.Tensor:
    """Differences of the logistic distribution function between the bins' edges, in float64."""
    edges = torch.arange(1, levels, dtype=torch.float64) * 2 / (levels - 1) - 1 - 1 / (levels - 1)
    inner = torch.sigmoid((edges - mu) / scale)
    return torch.cat([torch.zeros(1), inner, torch.ones(1)]).double().diff()


@settings(max_examples=30, deadline=None)
@given(st.floats(-1.2, 1.2), st.floats(-3.0, 1.0), st.sampled_from([3, 16, 256]))
def test_bins_of_a_logistic_are_those_of_its_distribution_function(mu, log_scale, levels):
    x = torch.arange(levels, dtype=torch.float64) * 2 / (levels - 1) - 1
    found = discretised_logistic_log_likelihood(
        x, torch.full_like(x, mu), torch.full_like(x, log_scale), levels
    )
    masses = bin_masses(mu, math.exp(log_scale), levels)
    safe = masses > 1.1e-5
    torch.testing.assert_close(found[safe].exp(), masses[safe], rtol=1e-7, atol=1e-9)
    # Below that the density stands in; all the same nothing is lost.
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-3)


def test_far_from_its_mean_a_logistic_keeps_a_slope():
    mu = torch.tensor([1.0], requires_grad=True)
    value = discretised_logistic_log_likelihood(torch.zeros(1), mu, torch.tensor([-9.0]))
    # log-scales below −7 count as −7: the density's tail is exp(−|x − μ| / s).
    assert float(value.detach()) == pytest.approx(-math.exp(7) + 7 + math.log(2 / 255), rel=1e-5)
    value.sum().backward()
    assert float(mu.grad) == pytest.approx(-math.exp(7), rel=1e-5)


def test_a_mixture_of_colours_sums_to_one_and_draws_what_it_says():
    k = 2 * (1 + 6 + 3)
    parameters = draw(3, 1, k, 1, 1)
    mixture = LogisticMixture.from_parameters(parameters, 3, 4)
    levels = torch.linspace(-1, 1, 4, dtype=torch.float64)
    x = torch.cartesian_prod(levels, levels, levels)[:, :, None, None]
    many = LogisticMixture.from_parameters(parameters.expand(64, k, 1, 1), 3, 4)
    p = many.log_prob(x).exp().flatten()
    assert float(p.sum()) == pytest.approx(1, abs=1e-4)
    # By hand, from the definition.
    weights = mixture.logits.softmax(1).flatten()
    total = torch.zeros(64, dtype=torch.float64)
    for m in range(2):
        mu, a = mixture.means[0, m, :, 0, 0], mixture.coefficients[0, m, :, 0, 0]
        s = mixture.log_scales[0, m, :, 0, 0].exp()
        for index, (r, g, b) in enumerate(x[:, :, 0, 0]):
            means = (mu[0], mu[1] + a[0] * r, mu[2] + a[1] * r + a[2] * g)
            each = [
                bin_masses(float(mean), float(scale), 4)[int(((v + 1) * 1.5).round())]
                for mean, scale, v in zip(means, s, (r, g, b), strict=True)
            ]
            total[index] += weights[m] * each[0] * each[1] * each[2]
    torch.testing.assert_close(p, total, rtol=1e-5, atol=1e-7)
    n = 20_000
    u = torch.rand(n, 4, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn, _ = LogisticMixture.from_parameters(parameters.expand(n, k, 1, 1), 3, 4).sample(u)
    index = (((drawn[:, :, 0, 0] + 1) * 1.5).round().long() * torch.tensor([16, 4, 1])).sum(1)
    count, often = index.bincount(minlength=64), n * p > 5
    chi2 = float(((count - n * p).square() / (n * p))[often].sum())
    assert chi2 < 110  # 63 degrees of freedom at most, 1 in 1,000 at 104


def test_parameters_that_do_not_fit_a_mixture_are_refused():
    with pytest.raises(ValueError, match="10 parameters"):
        LogisticMixture.from_parameters(torch.zeros(1, 11, 2, 2), 3)
    with pytest.raises(ValueError, match="levels"):
        discretised_logistic_log_likelihood(torch.zeros(1), torch.zeros(1), torch.zeros(1), 1)
