"""The autoencoder against principal components, closed forms and scikit-learn."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from companion import data
from companion.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    LatentMixture,
    LinearAutoencoder,
    fit_gaussian,
    fit_mixture,
    principal_components,
    sample,
)
from companion.randomness import Rows, initialisation
from companion.training import TrainingSettings, train


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(latent_dim, *, seed=0, **settings):
    with initialisation(seed):
        return Autoencoder(AutoencoderConfig(latent_dim=latent_dim, **settings))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", "train").floats()[::4]


# --- The linear case ------------------------------------------------------------------------------------------------


def largest_angle(a, b):
    """The largest principal angle between the spans of orthonormal rows; exact for small angles too."""
    off = b - (b @ a.T) @ a
    return math.asin(min(1.0, float(torch.linalg.matrix_norm(off, 2))))


@pytest.mark.parametrize(("n", "k"), [(1000, 1), (1000, 32), (1000, 100), (200, 32)])
def test_principal_components_span_what_sklearn_finds(digits, n, k):
    x = digits[:n].double()
    ours = principal_components(x, k)
    theirs = PCA(k, svd_solver="full").fit(x.flatten(1).numpy())
    assert largest_angle(ours.axes, torch.from_numpy(theirs.components_)) < 1e-6
    torch.testing.assert_close(ours.mean, torch.from_numpy(theirs.mean_))
    torch.testing.assert_close(ours.variances, torch.from_numpy(theirs.explained_variance_))
    torch.testing.assert_close(ours.axes @ ours.axes.T, torch.eye(k, dtype=torch.float64))


@pytest.mark.parametrize(("n", "k"), [(10, 10), (1000, 785), (5, 0)])
def test_principal_components_that_do_not_exist_are_refused(digits, n, k):
    with pytest.raises(ValueError, match="principal components, asked for"):
        principal_components(digits[:n], k)


def test_fitted_linear_autoencoder_reconstructs_as_pca_does(digits):
    model = LinearAutoencoder(20).fit(digits)
    pca = PCA(20, svd_solver="full").fit(digits.flatten(1).double().numpy())
    flat = digits.flatten(1).double().numpy()
    theirs = pca.inverse_transform(pca.transform(flat))
    torch.testing.assert_close(
        model(digits).flatten(1).double(), torch.from_numpy(theirs), atol=2e-5, rtol=0
    )
    # The error is the variance along the axes that were left out.
    left_out = principal_components(digits, 784).variances[20:].sum() * (len(flat) - 1) / len(flat)
    found = float(model.loss(digits)["loss"].detach())
    assert found == pytest.approx(float(left_out) / 784, rel=1e-5)


def test_no_linear_autoencoder_beats_the_fitted_one(digits):
    best = LinearAutoencoder(5).fit(digits)
    least = float(best.loss(digits)["loss"].detach())
    for seed in range(5):
        other = LinearAutoencoder(5).fit(digits)
        with torch.no_grad():
            for p in other.parameters():
                p += 0.003 * torch.randn(p.shape, generator=seeded(seed))
        assert float(other.loss(digits)["loss"].detach()) > least


def test_gradient_descent_finds_the_error_of_pca_and_its_subspace():
    """Points with variances 9, 4, 1, ¼ …: the linear autoencoder learns the first two axes from gradients alone."""
    scales = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    rotation = torch.linalg.qr(torch.randn(9, 9, generator=seeded(1))).Q
    points = (torch.randn(500, 9, generator=seeded(2)) * scales) @ rotation.T + 1.0
    x = points.reshape(500, 1, 3, 3)
    with initialisation(0):
        model = LinearAutoencoder(2, 1, 3)
    settings = TrainingSettings(steps=800, batch_size=500, learning_rate=0.03)
    train(model, lambda batch, source: model.loss(batch[0], source), (x,), settings)
    optimum = LinearAutoencoder(2, 1, 3).fit(x)
    least = float(optimum.loss(x)["loss"].detach())
    found = float(model.loss(x)["loss"].detach())
    assert least * (1 - 1e-5) <= found < least * 1.001
    learnt = torch.linalg.qr(model.up.weight.detach()).Q.T
    assert largest_angle(optimum.up.weight.detach().T, learnt) < 0.02


def test_linear_overcomplete_autoencoder_is_the_identity():
    x = torch.rand(40, 1, 3, 3, generator=seeded(3)) * 2 - 1
    model = LinearAutoencoder(9, 1, 3).fit(x)
    noise = torch.randn(7, 1, 3, 3, generator=seeded(4))
    torch.testing.assert_close(model(noise), noise, atol=1e-5, rtol=0)


# --- Deep autoencoders ----------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    latent_dim=st.integers(1, 40),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([28, 32, 64]),
    width=st.integers(1, 3),
    architecture=st.sampled_from(["convolutional", "mlp"]),
    n=st.integers(1, 3),
)
def test_shapes(latent_dim, channels, size, width, architecture, n):
    model = build(latent_dim, channels=channels, size=size, width=width, architecture=architecture)
    x = torch.rand(n, channels, size, size) * 2 - 1
    z = model.encode(x)
    assert z.shape == (n, latent_dim)
    assert model.decode(z).shape == x.shape
    torch.testing.assert_close(model(x), model.decode(z))


@pytest.mark.parametrize("architecture", ["convolutional", "mlp"])
def test_the_loss_is_the_mean_squared_error(digits, architecture):
    model = build(8, width=2, architecture=architecture)
    x = digits[:6]
    values = model.loss(x, seeded())
    by_hand = np.mean((model(x).detach().numpy() - x.numpy()) ** 2)
    assert float(values["loss"].detach()) == pytest.approx(float(by_hand), rel=1e-5)
    assert torch.equal(model.loss(x, Rows(seeded(1), 0, 6, 12))["loss"], values["loss"])
    values["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("architecture", ["convolutional", "mlp"])
def test_the_loss_is_single_precision_under_autocast_and_in_channels_last(digits, architecture):
    model = build(8, width=4, architecture=architecture)
    x = digits[:6]
    exact = model.loss(x)["loss"].detach()
    model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = model.loss(x.contiguous(memory_format=torch.channels_last))["loss"]
    assert coarse.dtype == torch.float32
    assert float(coarse.detach()) == pytest.approx(float(exact), rel=0.02)


@pytest.mark.parametrize(("architecture", "steps"), [("convolutional", 150), ("mlp", 250)])
def test_training_beats_principal_components_on_what_it_saw(digits, architecture, steps):
    x = digits[:32]
    model = build(4, width=4, architecture=architecture)
    settings = TrainingSettings(steps=steps, batch_size=32, learning_rate=5e-3, clip=1.0)
    train(model, lambda batch, source: model.loss(batch[0], source), (x,), settings)
    with torch.no_grad():
        pca = float(LinearAutoencoder(4).fit(x).loss(x)["loss"])
        assert float(model.loss(x)["loss"]) < 0.6 * pca


def test_windows_of_a_canvas(digits):
    model = build(8, width=2)
    canvas = torch.full((2, 1, 84, 56), -1.0)
    canvas[:, :, 28:56, 28:56] = digits[:2]
    codes = model.encode_windows(canvas)
    assert codes.shape == (2, 8, 15, 8)
    torch.testing.assert_close(
        model.encode_windows(digits[:2])[..., 0, 0], model.encode(digits[:2])
    )
    with pytest.raises(TypeError, match="only the convolutional"):
        build(8, architecture="mlp", width=2).encode_windows(canvas)


def test_mistakes_are_named(digits):
    with pytest.raises(ValueError, match="latent_dim must be a whole number of at least 1, got 0"):
        AutoencoderConfig(latent_dim=0)
    with pytest.raises(ValueError, match="latent_dim must be a whole number of at least 1, got 0"):
        LinearAutoencoder(0)
    with pytest.raises(ValueError, match="30×30"):
        AutoencoderConfig(size=30)
    for model in (build(3, width=1), LinearAutoencoder(3)):
        with pytest.raises(ValueError, match=r"\(1, 28, 28\), got \(1, 27, 28\)"):
            model.encode(digits[:2, :, 1:])
        with pytest.raises(ValueError, match=r"codes of 3 numbers, .* got the shape \(1, 4\)"):
            model.decode(torch.zeros(1, 4))


# --- Densities of codes ---------------------------------------------------------------------------------------------


def clusters(n=600, seed=0):
    """Three elongated clouds in the plane."""
    g = seeded(seed)
    which = torch.randint(3, (n,), generator=g)
    centres = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    stretch = torch.tensor(
        [[[1.0, 0.0], [0.8, 0.4]], [[0.5, 0.0], [0.0, 1.0]], [[1.0, 0.0], [-0.5, 0.5]]]
    )
    noise = torch.randn(n, 2, generator=g)
    return centres[which] + torch.einsum("nij,nj->ni", stretch[which], noise)


def test_gaussian_has_the_moments_of_the_codes():
    z = clusters()
    found = fit_gaussian(z)
    torch.testing.assert_close(found.means[0], z.double().mean(0))
    torch.testing.assert_close(
        found.covariances[0], z.double().T.cov(correction=0), rtol=1e-5, atol=1e-5
    )
    reference = torch.distributions.MultivariateNormal(found.means[0], found.covariances[0])
    torch.testing.assert_close(found.log_prob(z), reference.log_prob(z.double()))


def test_mixture_reaches_the_likelihood_of_sklearn_and_the_true_parts():
    z = clusters()
    found = fit_mixture(z, 3, seeded(), tolerance=1e-9, iterations=500)
    theirs = GaussianMixture(3, tol=1e-9, max_iter=500, n_init=5, random_state=0).fit(
        z.double().numpy()
    )
    assert float(found.log_prob(z).mean()) == pytest.approx(
        theirs.score(z.double().numpy()), abs=1e-4
    )
    order, reference = found.means[:, 0].argsort(), theirs.means_[:, 0].argsort()
    np.testing.assert_allclose(
        found.means[order].sum(1), theirs.means_[reference].sum(1), atol=0.02
    )


def test_mixture_density_is_that_of_sklearn():
    g = seeded(5)
    roots = torch.randn(4, 3, 3, generator=g, dtype=torch.float64)
    mixture = LatentMixture(
        torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64),
        torch.randn(4, 3, generator=g, dtype=torch.float64),
        roots @ roots.mT + 0.1 * torch.eye(3, dtype=torch.float64),
    )
    z = torch.randn(50, 3, generator=g)
    theirs = GaussianMixture(4)
    theirs.weights_, theirs.means_ = mixture.weights.numpy(), mixture.means.numpy()
    theirs.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(mixture.covariances.numpy()))
    points = z.double().numpy()
    np.testing.assert_allclose(mixture.log_prob(z), theirs.score_samples(points))
    np.testing.assert_allclose(
        mixture.responsibilities(z), theirs.predict_proba(points), atol=1e-12
    )


def test_each_iteration_gains_likelihood():
    z = clusters(seed=3)
    scores = [
        float(fit_mixture(z, 5, seeded(1), iterations=i, tolerance=0).log_prob(z).mean())
        for i in range(1, 25)
    ]
    assert all(after >= before - 1e-9 for before, after in pairwise(scores))
    assert scores[-1] > scores[0] + 0.01


def test_samples_have_the_moments_of_the_mixture():
    mixture = fit_mixture(clusters(), 3, seeded())
    drawn = mixture.sample(40_000, seeded(7))
    assert drawn.dtype == torch.float32
    mean = mixture.weights @ mixture.means
    spread = mixture.covariances + torch.einsum(
        "ki,kj->kij", mixture.means - mean, mixture.means - mean
    )
    covariance = torch.einsum("k,kij->ij", mixture.weights, spread)
    torch.testing.assert_close(drawn.double().mean(0), mean, atol=0.07, rtol=0)
    torch.testing.assert_close(drawn.double().T.cov(), covariance, atol=0.25, rtol=0)


def test_samples_of_processes_are_rows_of_the_whole():
    mixture = fit_mixture(clusters(), 3, seeded())
    whole = mixture.sample(10, seeded(8))
    part = mixture.sample(4, Rows(seeded(8), 3, 7, 10))
    assert torch.equal(whole[3:7], part)


def test_codes_that_do_not_fill_the_space_still_have_a_density():
    """Three dimensions, one of them dead."""
    z = torch.cat([clusters(), torch.zeros(600, 1)], 1)
    found = fit_mixture(z, 3, seeded())
    assert torch.isfinite(found.log_prob(z)).all()
    assert found.sample(100, seeded())[:, 2].abs().amax() < 0.1


def test_impossible_mixtures_are_refused():
    with pytest.raises(ValueError, match="3 parts needs"):
        fit_mixture(torch.zeros(3, 2), 3, seeded())
    with pytest.raises(ValueError, match=r"give a torch\.Generator"):
        fit_mixture(clusters(), 3)
    with pytest.raises(ValueError, match="fewer than 3 different points"):
        fit_mixture(torch.zeros(9, 2), 3, seeded())


@pytest.mark.parametrize("dimensions", [1, 3])
def test_codes_of_a_dead_encoder_are_named(dimensions):
    same = torch.ones(50, dimensions)
    for fit in (fit_gaussian, lambda z: fit_mixture(z, 1), lambda z: fit_mixture(z, 2, seeded())):
        with pytest.raises(ValueError, match="fewer than 2 different points"):
            fit(same)
    # Two different ones are enough for one Gaussian, and for two.
    same[0] += 1
    assert torch.isfinite(fit_gaussian(same).log_prob(same)).all()
    assert torch.isfinite(fit_mixture(same, 2, seeded()).log_prob(same)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_codes_that_are_not_finite_are_named(value):
    z = clusters()
    z[3, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_mixture(z, 2, seeded())


def test_the_start_is_a_function_of_the_generator_and_few_iterations_warn_nobody():
    z = clusters(seed=3)
    first, again, other = (
        fit_mixture(z, 8, seeded(s), iterations=1, tolerance=0) for s in (0, 0, 1)
    )
    assert torch.equal(first.means, again.means)
    assert not torch.equal(first.means, other.means)
    source = seeded(0)
    fit_mixture(z, 8, source, iterations=1)
    later = fit_mixture(z, 8, source, iterations=1, tolerance=0)
    assert not torch.equal(first.means, later.means)


def test_a_part_without_spread_is_named():
    flat = torch.cat([clusters(), torch.zeros(600, 1)], 1)
    with pytest.raises(ValueError, match=r"floor 0: a part has no spread .* Give a larger floor"):
        fit_mixture(flat, 3, seeded(), floor=0)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_the_floor_is_a_share_of_the_mean_variance(floor):
    z = clusters()
    found = fit_gaussian(z, floor=floor).covariances[0]
    ridge = floor * float(z.double().var(0, correction=0).mean())
    expected = z.double().T.cov(correction=0) + ridge * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_sampled_images_are_decoded_codes_within_range():
    model = build(2, width=2)
    density = fit_gaussian(clusters() * 100)
    images = sample(model, density, 5, seeded(9))
    assert images.shape == (5, 1, 28, 28)
    assert not images.requires_grad
    torch.testing.assert_close(images, model.decode(density.sample(5, seeded(9))).detach())
    assert images.abs().amax() <= 1
