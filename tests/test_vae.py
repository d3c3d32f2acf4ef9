"""The VAE's bounds, gradients, invariances and exact cases."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion.distributions import gaussian_log_density, kl_diagonal, kl_gaussian
from companion.randomness import PerImage, Rows, initialisation, normal
from companion.training import TrainingSettings, train
from companion.vae import (
    VAE,
    LinearVAE,
    VAEConfig,
    active_units,
    aggregate_kl,
    aggregate_kl_gaussian,
    binarise,
    sample_aggregate,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(model: nn.Module, seed: int = 5, scale: float = 0.1) -> nn.Module:
    """Moves every weight, so that layers which start at zero take part, too."""
    g = seeded(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return model


def small(**options) -> VAE:
    with initialisation(0):
        model = VAE(VAEConfig(size=8, width=4, latent_dim=3, **options))
    return shaken(model).eval()


def images(n: int = 6, seed: int = 0, size: int = 8) -> torch.Tensor:
    return 2 * torch.rand(n, 1, size, size, generator=seeded(seed)) - 1


VARIANTS = [
    {},
    {"architecture": "mlp"},
    {"likelihood": "gaussian"},
    {"likelihood": "gaussian", "sigma": 0.3, "architecture": "mlp", "depth": 2},
    {"depth": 0, "beta": 4.0},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_shapes_ranges_and_gradients(options):
    model, x = small(**options), images()
    mu, log_var = model.encode(x)
    assert mu.shape == log_var.shape == (6, 3)
    assert model(x).shape == x.shape
    assert model(x).abs().max() <= 1
    sample = model.sample(5, seeded())
    assert sample.shape == (5, 1, 8, 8)
    assert sample.abs().max() <= 1
    assert not sample.requires_grad
    model.loss(x, seeded())["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("options", VARIANTS)
def test_loss_is_the_mean_of_the_bounds_summed_terms(options):
    model, x = small(**options), images()
    bound, values = model.elbo(x, seeded(3)), model.loss(x, seeded(3))
    torch.testing.assert_close(values["reconstruction"], -bound.log_likelihood.mean())
    torch.testing.assert_close(values["kl"], bound.kl.sum(1).mean())
    torch.testing.assert_close(
        values["loss"], values["reconstruction"] + model.config.beta * values["kl"]
    )
    if model.config.beta == 1:
        torch.testing.assert_close(values["loss"], -bound.elbo.mean())


def test_bernoulli_likelihood_is_a_distribution_over_bits():
    """The probabilities of all 2¹⁶ images of 4×4 bits sum to one."""
    with initialisation(0):
        model = shaken(VAE(VAEConfig(size=4, width=2, latent_dim=2)))
    codes = torch.arange(2**16)
    bits = (codes[:, None] >> torch.arange(16)) & 1
    x = (2.0 * bits - 1).reshape(-1, 1, 4, 4)
    z = torch.randn(1, 2, generator=seeded()).expand(len(x), 2)
    total = model.log_likelihood(x, z).double().exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-4)


def test_binarisation_is_dynamic_and_leaves_bits_alone():
    x = images()
    first, second = binarise(x, seeded(10)), binarise(x, seeded(11))
    assert set(first.unique().tolist()) == {-1.0, 1.0}
    assert not torch.equal(first, second)
    assert torch.equal(binarise(first, seeded(2)), first)
    mean = torch.stack([binarise(x, seeded(s)) for s in range(100, 500)]).mean(0)
    assert (mean - x).abs().max() < 0.25
    assert abs((mean - x).mean()) < 0.02


def test_analytic_kl_equals_monte_carlo():
    model, x = small(), images(2)
    mu, log_var = (t.detach() for t in model.encode(x))
    n = 100_000
    z = model.reparameterise(mu[:1].expand(n, 3), log_var[:1].expand(n, 3), seeded())
    ratio = (gaussian_log_density(z, mu[:1], log_var[:1]) - gaussian_log_density(z)).sum(1)
    error = ratio.std() / math.sqrt(n)
    assert abs(ratio.mean() - kl_diagonal(mu[0], log_var[0]).sum()) < 4 * error


@pytest.mark.parametrize("options", [{}, {"likelihood": "gaussian"}])
@torch.no_grad()
def test_iwae_one_equals_the_elbo_in_expectation_and_grows_with_k(options):
    model = small(**options)
    x = binarise(images(1), seeded(10)).expand(20_000, 1, 8, 8)
    elbo = model.elbo(x, seeded(1)).elbo
    means, errors = [elbo.mean()], [elbo.std() / math.sqrt(len(x))]
    for k in (1, 2, 8):
        bounds = model.iwae(x[: len(x) // k], k, seeded(2 + k))
        means.append(bounds.mean())
        errors.append(bounds.std() / math.sqrt(len(bounds)))
    assert abs(means[0] - means[1]) < 4 * math.hypot(errors[0], errors[1])
    assert means[1] < means[2] < means[3]


@torch.no_grad()
def test_iwae_approaches_the_evidence():
    """With two latents log p(x) is a sum over a fine grid."""
    with initialisation(0):
        model = shaken(VAE(VAEConfig(size=8, width=4, latent_dim=2)))
    x = binarise(images(1), seeded(10))
    axis = torch.linspace(-7, 7, 281)
    z = torch.cartesian_prod(axis, axis)
    log_p = model.log_likelihood(x.expand(len(z), 1, 8, 8), z) + gaussian_log_density(z).sum(1)
    evidence = torch.logsumexp(log_p.double(), 0) + 2 * math.log(14 / 280)
    assert abs(model.iwae(x, 20_000, seeded(), chunk=5000).item() - evidence.item()) < 0.05
    assert model.elbo(x.expand(4000, 1, 8, 8), seeded()).elbo.mean() < evidence


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"likelihood": "gaussian"}])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_iwae_has_the_same_draws_in_chunks_of_any_size(options, chunk):
    model, x = small(**options), images()
    whole = model.iwae(x, 20, seeded(), chunk=20)
    torch.testing.assert_close(model.iwae(x, 20, seeded(), chunk=chunk), whole)
    source = PerImage(3, 0, 6)
    alone = [model.iwae(x[i : i + 1], 20, PerImage(3, i, i + 1), chunk=chunk) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), model.iwae(x, 20, source))


@torch.no_grad()
def test_iwae_is_the_mean_of_the_weights():
    """Eq. 8 of Burda et al. by torch's own distributions, for the draws that are made."""
    model, x = small(), binarise(images(), seeded(1))
    mu, log_var = model.encode(x)
    source = seeded(2)
    model.observe(x, source)  # draws for the pixels come first
    z = mu[:, None] + (0.5 * log_var)[:, None].exp() * normal((6, 4, 3), source)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(2)
    posterior = torch.distributions.Normal(mu, (0.5 * log_var).exp())
    log_q = torch.stack([posterior.log_prob(z[:, i]).sum(1) for i in range(4)], dim=1)
    log_p = torch.stack([model.log_likelihood(x, z[:, i]) for i in range(4)], dim=1)
    expected = (log_p + prior - log_q).double().exp().mean(1).log().float()
    torch.testing.assert_close(model.iwae(x, 4, seeded(2)), expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_samples_are_the_images_of_standard_normal_codes():
    model = small()
    expected = model.decode(normal((5, 3), seeded(4)))
    assert torch.equal(model.sample(5, seeded(4)), expected)
    codes = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: codes.append(inputs[0]))
    model.sample(20_000, seeded(5))
    # A standard error of the mean is 0.007, of the standard deviation 0.005.
    torch.testing.assert_close(codes[0].mean(0), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(codes[0].std(0), torch.ones(3), atol=0.025, rtol=0)


def test_the_posterior_is_one_distribution():
    model, x = small(), images()
    mu, log_var = model.encode(x)
    posterior = model.posterior(x)
    assert torch.equal(posterior.mean, mu)
    assert torch.equal(posterior.log_var, log_var)
    assert torch.equal(posterior.sample(seeded(1)), model.reparameterise(mu, log_var, seeded(1)))


def test_k_and_chunk_must_be_positive():
    model, x = small(), images()
    with pytest.raises(ValueError, match="k must be a whole number of at least 1"):
        model.iwae(x, 0, seeded())
    with pytest.raises(ValueError, match="chunk must be a whole number of at least 1"):
        model.iwae(x, 1, seeded(), chunk=0)


def test_three_gradients_of_an_expectation_agree_and_differ_in_variance():
    """∇_μ E[z²], z ~ N(μ, σ²): 2μ in closed form; by reparameterisation 2z; by the score z²(z − μ)/σ²."""
    mu, sigma, n = 1.5, 0.7, 400_000
    z = mu + sigma * torch.randn(n, generator=seeded(), dtype=torch.float64)
    pathwise, score = 2 * z, z.square() * (z - mu) / sigma**2
    for estimate in (pathwise, score):
        assert abs(estimate.mean() - 2 * mu) < 4 * estimate.std() / math.sqrt(n)
    assert pathwise.var() < score.var() / 5
    assert pathwise.var().item() == pytest.approx(4 * sigma**2, rel=0.02)


def test_reparameterisation_carries_the_gradient():
    model = small()
    mu = torch.tensor([[0.3, -0.2, 1.0]]).repeat(50_000, 1).requires_grad_()
    log_var = torch.full((50_000, 3), -1.0, requires_grad=True)
    model.reparameterise(mu, log_var, seeded()).square().sum().backward()
    # E z² = μ² + σ²: derivatives 2μ and σ².
    torch.testing.assert_close(mu.grad.mean(0), 2 * mu.detach()[0], atol=0.03, rtol=0)
    torch.testing.assert_close(
        log_var.grad.mean(0), torch.full((3,), math.exp(-1)), atol=0.02, rtol=0
    )


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 99))
def test_images_do_not_see_their_neighbours(order, seed):
    model, x = small(), images(seed=seed)
    mu, log_var = model.encode(x)
    permuted = model.encode(x[list(order)])
    torch.testing.assert_close(permuted[0], mu[list(order)])
    torch.testing.assert_close(permuted[1], log_var[list(order)])
    assert torch.equal(model.encode(x)[0], mu)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999))
def test_the_prior_does_not_know_directions(seed):
    """Rotating codes and covariances together leaves the divergence from N(0, I) as it is."""
    g = seeded(seed)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64)).Q
    mu = torch.randn(4, generator=g, dtype=torch.float64)
    covariance = torch.rand(4, generator=g, dtype=torch.float64).add(0.1).diag()
    turned = kl_gaussian(rotation @ mu, rotation @ covariance @ rotation.T)
    torch.testing.assert_close(turned, kl_gaussian(mu, covariance))


def test_rows_of_a_global_batch_give_the_same_bounds():
    model, x = small(), images(8)
    whole = model.elbo(x, Rows(seeded(4), 0, 8, 8)).elbo
    parts = [model.elbo(x[i : i + 2], Rows(seeded(4), i, i + 2, 8)).elbo for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_bfloat16_and_channels_last_stay_close():
    model, x = small(), images()
    exact = model.loss(x, seeded())["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(x, seeded())["loss"]
    assert rough.dtype == torch.float32
    assert abs(rough - exact) < 0.02 * exact
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model.loss(x, seeded())["loss"], exact)


def test_free_nats_stop_the_push_below_them():
    free, plain = small(free_nats=1e6), small()
    x = images()
    values = free.loss(x, seeded())
    assert values["loss"] > plain.loss(x, seeded())["loss"]
    bound = free.elbo(x, seeded())
    torch.testing.assert_close(values["loss"], -bound.log_likelihood.mean() + 1e6)


def test_labels_condition_and_are_demanded():
    model = small(classes=3)
    x, labels = images(), torch.tensor([0, 1, 2, 0, 1, 2])
    a, b = model.encode(x, labels)[0], model.encode(x, labels.roll(1))[0]
    assert (a - b).abs().max() > 1e-4
    z = torch.zeros(6, 3)
    rows = model.decode(z, labels)
    assert torch.equal(rows[0], rows[3])
    assert not torch.equal(rows[0], rows[1])
    assert model.sample(4, seeded()).shape == (4, 1, 8, 8)
    assert model.iwae(x, 3, seeded(), labels).shape == (6,)
    assert model.traverse(z[0], 1, [-1.0, 0.0, 1.0], label=2).shape == (3, 1, 8, 8)
    model.loss(x, seeded(), labels)["loss"].backward()
    with pytest.raises(ValueError, match="3 classes: give each"):
        model.encode(x)
    with pytest.raises(ValueError, match="without classes: leave"):
        small().decode(z, labels)


def test_traversal_changes_one_coordinate():
    model, z = small(), torch.tensor([0.5, -1.0, 2.0])
    rows = model.traverse(z, 2, [2.0, -2.0])
    torch.testing.assert_close(rows[:1], model.decode(z[None]))
    assert (rows[0] - rows[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="coordinate"):
        model.traverse(z, 3, [0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta must be a finite number of at least 0"),
        ({"sigma": 0.1}, "gaussian likelihood"),
        ({"likelihood": "gaussian", "sigma": 0.0}, "sigma must be a finite number above 0"),
        ({"size": 30}, "multiple of 4"),
        ({"depth": -1}, "depth"),
        ({"latent_dim": 0}, "latent_dim must be a whole number of at least 1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VAEConfig(**options)


# -- The aggregate posterior ------------------------------------------------------------------------------


def test_aggregate_kl_of_one_gaussian_is_the_closed_form():
    mu, log_var = torch.tensor([[1.0, -0.5]]), torch.tensor([[-1.0, 0.3]])
    draws = aggregate_kl(mu, log_var, 50_000, seeded())
    exact = kl_diagonal(mu, log_var).sum()
    assert abs(draws.mean() - exact) < 4 * draws.std() / math.sqrt(len(draws))
    torch.testing.assert_close(aggregate_kl_gaussian(mu, log_var).float(), exact)


def test_aggregate_kl_of_a_mixture_equals_quadrature_and_bounds_its_gaussian_part():
    mu, log_var = torch.tensor([[-2.0], [2.0], [2.5]]), torch.tensor([[-1.0], [-2.0], [0.0]])
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    parts = gaussian_log_density(grid[:, None], mu.double().T, log_var.double().T)
    log_q = torch.logsumexp(parts, 1) - math.log(3)
    exact = torch.trapezoid(log_q.exp() * (log_q - gaussian_log_density(grid)), grid)
    draws = aggregate_kl(mu, log_var, 100_000, seeded())
    assert abs(draws.mean() - exact) < 4 * draws.std() / math.sqrt(len(draws))
    # Pythagoras: the moment-matched Gaussian accounts for a part, KL(q ‖ its Gaussian) for the rest.
    gaussian = aggregate_kl_gaussian(mu, log_var)
    mean = mu.double().mean()
    variance = mu.double().var(correction=0) + log_var.double().exp().mean()
    fitted = gaussian_log_density(grid, float(mean), float(variance.log()))
    rest = torch.trapezoid(log_q.exp() * (log_q - fitted), grid)
    assert (gaussian + rest).item() == pytest.approx(exact.item(), rel=1e-6)


def test_sample_aggregate_has_its_moments():
    mu, log_var = torch.tensor([[-1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, -2.0]])
    z = sample_aggregate(mu, log_var, 100_000, seeded())
    torch.testing.assert_close(z.mean(0), mu.mean(0), atol=0.03, rtol=0)
    expected = mu.var(0, correction=0) + log_var.exp().mean(0)
    torch.testing.assert_close(z.var(0), expected, atol=0.05, rtol=0)


def test_active_units_counts_coordinates_that_vary():
    mu = torch.randn(500, 5, generator=seeded()) * torch.tensor([1.0, 0.5, 0.01, 0.0, 0.2])
    assert active_units(mu) == 3


# -- The linear VAE -----------------------------------------------------------------------------------------


def plane(n: int = 2000) -> torch.Tensor:
    g = seeded(1)
    z = torch.randn(n, 2, generator=g, dtype=torch.float64)
    weight = torch.randn(2, 5, generator=g, dtype=torch.float64)
    return z @ weight + 0.3 * torch.randn(n, 5, generator=g, dtype=torch.float64) + 1.0


def linear(seed: int = 0) -> LinearVAE:
    with initialisation(seed):
        return LinearVAE(5, 2).double()


def test_linear_elbo_equals_the_evidence_at_the_optimum_and_is_below_elsewhere():
    x = plane()
    model = linear().solve(x)
    torch.testing.assert_close(model.elbo(x), model.log_evidence(x))
    other = linear(3)
    assert (other.elbo(x) < other.log_evidence(x)).all()


def test_linear_solution_is_sklearns_and_a_maximum():
    from sklearn.decomposition import PCA

    x = plane()
    model = linear().solve(x)
    best = model.log_evidence(x).mean()
    # sklearn divides by n − 1, the maximum of the likelihood has n.
    assert best.item() == pytest.approx(PCA(2).fit(x.numpy()).score(x.numpy()), abs=1e-3)
    for seed in range(5):
        moved = shaken(linear().solve(x), seed, scale=0.02)
        assert moved.log_evidence(x).mean() < best
    gradients = torch.autograd.grad(model.elbo(x).mean(), list(model.parameters()))
    assert max(g.abs().max() for g in gradients) < 1e-9


def test_linear_elbo_equals_monte_carlo():
    model, x = linear(2), plane(3)
    mu, log_var = model.encode(x)
    z = mu + (0.5 * log_var).exp() * torch.randn(
        50_000, 3, 2, generator=seeded(), dtype=torch.float64
    )
    log_p = gaussian_log_density(
        x.expand(50_000, 3, 5), z @ model.weight.T + model.mean, model.log_var_x
    ).sum(-1)
    elbo = log_p - kl_diagonal(mu, log_var).sum(1)
    error = elbo.std(0) / math.sqrt(50_000)
    assert ((elbo.mean(0) - model.elbo(x)).abs() < 4.5 * error).all()


def test_linear_training_finds_the_optimum():
    x = plane()
    best = linear().solve(x).log_evidence(x).mean()
    model = linear(1)
    losses = train(
        model,
        lambda batch, source: {"loss": -model.elbo(batch[0]).mean()},
        (x,),
        TrainingSettings(steps=800, batch_size=2000, learning_rate=0.03),
    )
    assert losses[0] > losses[-1]
    assert -losses[-1] == pytest.approx(best.item(), abs=0.01)


def test_linear_refuses_degenerate_data():
    with pytest.raises(ValueError, match="latent subspace"):
        LinearVAE(5, 2).solve(torch.randn(100, 1, generator=seeded()) * torch.ones(5))
    with pytest.raises(ValueError, match="latent_dim must be a whole number from 1 to 2, got 3"):
        LinearVAE(3, 3)


# -- Training -----------------------------------------------------------------------------------------------


def test_training_lowers_the_bound_and_binarises_anew():
    from companion.data import load

    digits = load("digits", "train")[:512]
    with initialisation(0):
        model = VAE(VAEConfig(width=4, latent_dim=4))
    losses = train(
        model,
        lambda batch, source: model.loss(batch.require_images(), source),
        digits,
        TrainingSettings(steps=60, batch_size=32, learning_rate=3e-3),
    )
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]


@torch.no_grad()
def test_checkpoint_keeps_the_bounds_of_its_card():
    from companion import load_checkpoint
    from companion.checkpoints import load_card
    from companion.data import load, to_float

    model, card = load_checkpoint("vae"), load_card("vae")
    x = to_float(load("digits", "test").images)
    elbo = -model.elbo(x, seeded()).elbo
    stated = card.value("−ELBO", data="digits")
    assert abs(elbo.mean() - stated) < 0.7
    assert card.value("−ELBO", data="mnist") <= 90
    assert card.value("−IWAE-50", data="mnist") <= 87
    assert card.parameters <= 3_000_000
