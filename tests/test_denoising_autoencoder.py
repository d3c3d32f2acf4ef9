"""Denoisers against closed forms: what is optimal, what its residual says about the density, how chains end."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.data.toy import GridOfGaussians, Moons, RingOfGaussians
from companion.denoising_autoencoder import (
    DenoisingAutoencoder,
    DenoisingAutoencoderConfig,
    MLPDenoiser,
    corrupt,
    gaussian_noise,
    langevin,
    masking_noise,
    noise_levels,
    residual_score,
    salt_and_pepper_noise,
    sample_through_levels,
)
from companion.randomness import Rows, initialisation
from companion.training import TrainingSettings, train

KINDS = [("gaussian", 0.5), ("masking", 0.3), ("salt-and-pepper", 0.3)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=3, channels=1, seed=1):
    return torch.rand(n, channels, 28, 28, generator=seeded(seed)) * 1.8 - 0.9


def small(**changes):
    with initialisation(0):
        plain = {"width": 4, "latent_dim": 8, "amount": 0.5, "amount_max": None}
        return DenoisingAutoencoder(DenoisingAutoencoderConfig(**plain | changes)).eval()


# --- corruptions -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 4), channels=st.integers(1, 3), share=st.floats(0, 1), seed=st.integers(0, 99)
)
def test_masking_hides_the_exact_number_of_whole_pixels(n, channels, share, seed):
    x = images(n, channels)
    masked = masking_noise(x, share, seeded(seed))
    changed = masked != x
    assert (changed.flatten(1).sum(dim=1) == channels * round(share * 784)).all()
    assert (changed == changed[:, :1]).all()
    assert (masked[changed] == -1).all()


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 4), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_salt_and_pepper_changes_the_exact_number(n, share, seed):
    x = images(n)
    grainy = salt_and_pepper_noise(x, share, seeded(seed))
    changed = grainy != x
    assert (changed.flatten(1).sum(dim=1) == round(share * 784)).all()
    assert (grainy[changed].abs() == 1).all()


def test_salt_is_as_frequent_as_pepper_and_every_pixel_is_hit_equally_often():
    grainy = salt_and_pepper_noise(torch.zeros(4000, 25), 0.2, seeded())
    # 20,000 fair coins: one standard error is 0.0035.
    assert abs(float((grainy > 0).sum() / (grainy != 0).sum()) - 0.5) < 5 * 0.0035
    # 4,000 choices of 5 of 25 pixels: one standard error of a pixel is 0.0063.
    assert ((grainy != 0).double().mean(dim=0) - 0.2).abs().max() < 5 * 0.0063


@settings(deadline=None, max_examples=20)
@given(sigma=st.floats(0.01, 10), seed=st.integers(0, 999))
def test_gaussian_noise_has_the_standard_deviation_asked_for(sigma, seed):
    noise = gaussian_noise(torch.zeros(100, 100), sigma, seeded(seed))
    # The sample variance of 10,000 normal numbers has a relative standard error of 1.4 %.
    assert abs(float(noise.var()) / sigma**2 - 1) < 6 * 0.0142
    assert abs(float(noise.mean())) < 6 * sigma / 100


def test_each_sample_may_have_its_own_amount():
    x = torch.zeros(3, 1000)
    noisy = gaussian_noise(x, torch.tensor([0.0, 1.0, 2.0]), seeded())
    assert noisy[0].abs().max() == 0
    torch.testing.assert_close(noisy.std(dim=1), torch.tensor([0.0, 1.0, 2.0]), atol=0.2, rtol=0)
    masked = masking_noise(x, torch.tensor([0.0, 0.25, 1.0]), seeded())
    assert (masked == -1).sum(dim=1).tolist() == [0, 250, 1000]


@pytest.mark.parametrize(("kind", "amount"), KINDS)
def test_the_noise_of_a_batch_does_not_depend_on_how_it_is_split(kind, amount):
    x = images(4)
    whole = corrupt(x, kind, amount, seeded())
    parts = [corrupt(x[s : s + 2], kind, amount, Rows(seeded(), s, s + 2, 4)) for s in (0, 2)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole, corrupt(x, kind, amount, seeded()))
    assert not torch.equal(whole, corrupt(x, kind, amount, seeded(1)))


def test_mistakes_in_corruptions_are_named():
    with pytest.raises(ValueError, match="gaussian"):
        corrupt(images(), "gausian", 0.5, seeded())
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        masking_noise(images(), 1.5, seeded())


# --- Tweedie: exact densities --------------------------------------------------------------------------------


def autograd_score(log_prob, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(log_prob(x).sum(), x)[0]


@settings(deadline=None, max_examples=30)
@given(mean=st.floats(-3, 3), std=st.floats(0.1, 3), sigma=st.floats(0.05, 3), at=st.floats(-5, 5))
def test_a_gaussian_shrinks_towards_its_mean(mean, std, sigma, at):
    """Data N(m, s²): E[x | x̃] = m + s²/(s² + σ²) (x̃ − m), and p_σ = N(m, s² + σ²)."""
    x = torch.tensor([[at]], dtype=torch.float64)
    denoised = mean + std**2 / (std**2 + sigma**2) * (x - mean)
    scale = torch.tensor(std**2 + sigma**2, dtype=torch.float64).sqrt()
    noised = torch.distributions.Normal(torch.full_like(scale, mean), scale)
    expected = autograd_score(noised.log_prob, x)
    torch.testing.assert_close(residual_score(denoised, x, sigma), expected)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("density", [RingOfGaussians(std=0.2), GridOfGaussians(side=3, std=0.1)])
def test_the_best_denoiser_of_a_mixture_obeys_tweedie(density, sigma):
    """E[x | x̃] = Σ_k r_k(x̃) (μ_k + s²/(s² + σ²) (x̃ − μ_k)), r_k the responsibilities in the noised mixture."""
    s = density.std
    wide = math.sqrt(s**2 + sigma**2)
    noised = (
        RingOfGaussians(density.modes, density.radius, wide)
        if isinstance(density, RingOfGaussians)
        else GridOfGaussians(density.side, density.spacing, wide)
    )
    x = 2 * torch.randn(200, 2, generator=seeded(), dtype=torch.float64)
    shrunk = density.means + s**2 / wide**2 * (x[:, None] - density.means)
    denoised = torch.einsum("nk,nkd->nd", noised.responsibilities(x), shrunk)
    expected = autograd_score(noised.log_prob, x)
    torch.testing.assert_close(residual_score(denoised, x, sigma), expected)


# --- a trained denoiser --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    density, sigma = Moons(std=0.1), 0.4
    with initialisation(0):
        model = MLPDenoiser(width=64, depth=2, sigma_min=sigma, sigma_max=sigma)
    points = density.sample(20_000, seeded())
    settings_ = TrainingSettings(steps=800, batch_size=512, learning_rate=3e-3)
    losses = train(model, lambda batch, source: model.loss(batch[0], source), (points,), settings_)
    return density, sigma, model, losses


def test_a_trained_denoiser_knows_the_noised_density(trained):
    density, sigma, model, losses = trained
    noised = Moons(math.hypot(density.std, sigma))  # the blurred curve, blurred once more
    x = noised.sample(4000, seeded(5))
    truth = autograd_score(noised.log_prob, x)
    with torch.no_grad():
        learned = model.score(x, sigma)
    r2 = 1 - (learned - truth).square().sum() / (truth - truth.mean(0)).square().sum()
    assert r2 > 0.95
    # No denoiser beats the conditional mean; in these units its error is 1 − σ² E|∇ log p_σ|²/2.
    best = 1 - sigma**2 * float(truth.square().mean())
    assert best - 0.03 < sum(losses[-100:]) / 100 < best + 0.05


def test_its_chain_ends_near_the_noised_density(trained):
    density, sigma, model, _ = trained
    x = langevin(
        lambda x: model.score(x, sigma),
        torch.randn(2000, 2, generator=seeded(1)),
        step=0.02,
        steps=200,
        source=seeded(2),
    )
    noised = Moons(math.hypot(density.std, sigma))  # the blurred curve, blurred once more
    entropy = -float(noised.log_prob(noised.sample(5000, seeded(3))).mean())
    assert abs(-float(noised.log_prob(x).mean()) - entropy) < 0.15


def test_the_loss_is_the_denoising_error_in_units_of_the_noise():
    with initialisation(0):
        model = MLPDenoiser(width=8, depth=1, sigma_min=0.3, sigma_max=0.3)
    x = torch.randn(50, 2, generator=seeded())
    with torch.no_grad():
        noisy = gaussian_noise(x, 0.3, seeded(4))
        expected = ((model(noisy, 0.3) - x) / 0.3).square().mean()
        torch.testing.assert_close(model.loss(x, seeded(4))["loss"], expected)
        torch.testing.assert_close(
            model.score(noisy, 0.3), (model(noisy, 0.3) - noisy) / 0.3**2, rtol=1e-4, atol=1e-4
        )


# --- chains --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.05, 0.5, 1.5])
def test_langevins_variance_on_a_gaussian_is_biased_as_derived(eta):
    """x' = (1 − η/v) x + √(2η) z is stationary at v/(1 − η/(2v)), v = 1."""
    x = langevin(
        lambda x: -x, torch.zeros(40_000, 1), step=eta, steps=math.ceil(8 / eta), source=seeded()
    )
    expected = 1 / (1 - eta / 2)
    # After 8/η steps the memory of the start is below exp(−16); a standard error is 0.7 %.
    assert abs(float(x.var()) / expected - 1) < 5 * 0.0071


def test_langevin_diverges_beyond_the_stable_step():
    x = langevin(lambda x: -x, torch.ones(100, 1), step=2.5, steps=100, source=seeded())
    assert x.abs().median() > 1e10


def test_the_callback_sees_every_state():
    seen = []
    last = langevin(
        lambda x: -x,
        torch.zeros(3, 2),
        step=0.1,
        steps=4,
        source=seeded(),
        callback=lambda k, x: seen.append((k, x)),
    )
    assert [k for k, _ in seen] == [1, 2, 3, 4]
    assert torch.equal(seen[-1][1], last)
    with pytest.raises(ValueError, match="positive step"):
        langevin(lambda x: -x, torch.zeros(3, 2), step=0, steps=4, source=seeded())


@pytest.mark.parametrize("mean", [0.0, 2.0])
def test_walking_through_the_levels_samples_a_gaussian(mean):
    """With the exact denoiser of N(m, 1) and many levels the last denoised samples have the right law."""

    def denoise(x, sigma):
        return mean + (x - mean) / (1 + sigma**2)

    sigmas = noise_levels(20, 0.01, 200)
    assert abs(float(sigmas[0]) - 20) < 1e-3
    assert abs(float(sigmas[-1]) - 0.01) < 1e-6
    assert (sigmas[1:] / sigmas[:-1] - sigmas[1] / sigmas[0]).abs().max() < 1e-5
    start = 20 * torch.randn(20_000, 1, generator=seeded(1))
    x = sample_through_levels(denoise, start, sigmas, seeded())
    assert abs(float(x.mean()) - mean) < 0.05
    # 200 levels leave a bias of a few per cent in the variance.
    assert abs(float(x.var()) - 1) < 0.08


def test_one_level_is_one_denoising():
    x = torch.ones(2, 1)
    sampled = sample_through_levels(lambda x, s: x / 2, x, torch.tensor([1.0]), seeded())
    torch.testing.assert_close(sampled, x / 2)


# --- the convolutional model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "amount"), KINDS)
def test_the_loss_compares_with_the_clean_images(kind, amount):
    model, x = small(corruption=kind, amount=amount), images()
    with torch.no_grad():
        expected = (model(corrupt(x, kind, amount, seeded(3))) - x).square().mean()
        torch.testing.assert_close(model.loss(x, seeded(3))["loss"], expected)


def test_without_noise_it_is_an_autoencoder():
    model, x = small(amount=0), images()
    with torch.no_grad():
        torch.testing.assert_close(model.loss(x, seeded())["loss"], (model(x) - x).square().mean())


def test_a_range_of_noise_is_uniform_in_its_logarithm():
    model = small(amount=0.1, amount_max=10)
    noise = model.corrupt(torch.zeros(4000, 1, 28, 28), seeded())
    logarithm = noise.std(dim=(1, 2, 3)).log10()
    assert -1.05 < logarithm.min() < -0.98
    assert 0.98 < logarithm.max() < 1.05
    # Uniform on [−1, 1]: mean 0, standard deviation 0.577; a standard error of the mean is 0.009.
    assert abs(float(logarithm.mean())) < 0.05
    assert abs(float(logarithm.std()) - 0.577) < 0.03


def test_samples_lie_in_the_range_and_repeat():
    model = small(amount=0.1, amount_max=2)
    first, second = (model.sample(3, seeded(7), levels=5) for _ in range(2))
    assert first.shape == (3, 1, 28, 28)
    assert first.abs().max() <= 1
    assert torch.equal(first, second)
    assert not first.requires_grad
    parts = [model.sample(1, Rows(seeded(7), i, i + 1, 3), levels=5) for i in range(3)]
    torch.testing.assert_close(torch.cat(parts), first, rtol=1e-4, atol=1e-4)


def test_one_level_cannot_be_walked():
    with pytest.raises(ValueError, match="a range, from amount up to amount_max"):
        small().sample(1, seeded())


def test_only_gaussian_noise_gives_a_score():
    x = images()
    with torch.no_grad():
        model = small()
        torch.testing.assert_close(model.score(x, 0.5), (model(x) - x) / 0.25)
    with pytest.raises(ValueError, match="masking noise gives no score"):
        small(corruption="masking").score(x, 0.5)


def test_mixed_precision_and_channels_last_work():
    model, x = small(), images().contiguous(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, seeded())["loss"]
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="share of the pixels, at most 1"):
        small(corruption="masking", amount=2)
    with pytest.raises(ValueError, match="starts above 0"):
        small(amount=0, amount_max=1)
    with pytest.raises(ValueError, match="positive and rising"):
        MLPDenoiser(sigma_min=0.5, sigma_max=0.1)
