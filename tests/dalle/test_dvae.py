"""The discrete VAE: its likelihood, its codes, its tokens."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import integrate, stats
from torch.nn import functional as F

from companion.dalle.dvae import (
    DVAE,
    DVAEConfig,
    gumbel,
    gumbel_softmax,
    kl_to_uniform,
    logit_laplace_log_density,
    map_pixels,
    unmap_pixels,
)
from companion.randomness import PerImage, initialisation

SMALL = DVAEConfig(channels=3, size=16, width=8, blocks=1, codes=11)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def network():
    with initialisation(0):
        return DVAE(SMALL)


def images(n=3):
    return torch.rand(n, 3, 16, 16, generator=seeded(1)) * 2 - 1


# --- The likelihood ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mu", "log_b"), [(0.0, 0.0), (1.3, -2.0), (-2.1, 0.5), (0.4, -3.0)])
def test_the_density_integrates_to_one(mu, log_b):
    def density(x):
        numbers = (torch.tensor(v, dtype=torch.float64) for v in (x, mu, log_b))
        return float(logit_laplace_log_density(*numbers).exp())

    peak = 1 / (1 + math.exp(-mu))
    total = sum(integrate.quad(density, a, b, limit=200)[0] for a, b in pairwise((0.0, peak, 1.0)))
    assert total == pytest.approx(1, abs=1e-6)


def test_the_density_is_that_of_a_transformed_laplace():
    """Change of variables, with scipy's Laplace."""
    x = torch.linspace(0.11, 0.89, 13, dtype=torch.float64)
    mu, log_b = torch.full_like(x, 0.3), torch.full_like(x, -0.7)
    expected = (
        stats.laplace(0.3, math.exp(-0.7)).logpdf(torch.logit(x)) - torch.log(x * (1 - x)).numpy()
    )
    found = logit_laplace_log_density(x, mu, log_b)
    torch.testing.assert_close(found, torch.from_numpy(expected))


def test_pixels_are_mapped_into_what_has_a_logit_and_back():
    ends = map_pixels(torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([0.1, 0.5, 0.9]))
    x = torch.linspace(-1, 1, 256)
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x, rtol=0, atol=1e-6)
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [-1.0, 1.0]


# --- The codes --------------------------------------------------------------------------------------------------------


def test_the_kl_to_the_uniform_distribution():
    logits = torch.randn(4, 5, 7, generator=seeded(), dtype=torch.float64) * 2
    q = logits.softmax(dim=-1)
    expected = sum(q[..., k] * (q[..., k] * 7).log() for k in range(7))
    torch.testing.assert_close(kl_to_uniform(logits), expected)
    assert kl_to_uniform(torch.zeros(2, 7)).abs().max() < 1e-6
    certain = torch.tensor([[0.0, 500.0, 0.0]])
    assert float(kl_to_uniform(certain)) == pytest.approx(math.log(3), abs=1e-6)


def test_cold_codes_are_the_likeliest_after_noise_and_as_frequent_as_they_should_be():
    n, logits = 20_000, torch.tensor([1.0, 0.0, -1.0, 0.5])
    many = logits.expand(n, 4)
    g = gumbel((n, 4), seeded(3), torch.device("cpu"))
    cold = gumbel_softmax(many, 1e-4, seeded(3))
    assert torch.equal(cold.argmax(dim=1), (many + g).argmax(dim=1))
    assert float((cold.amax(dim=1) > 0.999).float().mean()) > 0.99
    counts = torch.bincount(cold.argmax(dim=1), minlength=4).numpy()
    expected = logits.softmax(dim=0).double().numpy() * n
    assert stats.chisquare(counts, expected / expected.sum() * n).pvalue > 0.001


def test_gumbel_noise_has_its_distribution():
    g = gumbel((20_000,), seeded(4), torch.device("cpu"))
    assert g.isfinite().all()
    assert stats.kstest(g.numpy(), stats.gumbel_r.cdf).pvalue > 0.001


# --- The model --------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_bound(network):
    x = images()
    found = network.loss(x, seeded(5), 0.7, 0.3)
    logits = network.encode(x)
    z = gumbel_softmax(logits, 0.7, seeded(5))
    mu, log_b = network.decode(z)
    y = 0.8 * (x + 1) / 2 + 0.1
    laplace = torch.distributions.Laplace(mu, log_b.exp()).log_prob(y.log() - (1 - y).log())
    reconstruction = -(laplace - (y * (1 - y)).log()).sum() / len(x)
    kl = kl_to_uniform(logits).sum() / len(x)
    torch.testing.assert_close(found["reconstruction"], reconstruction)
    torch.testing.assert_close(found["kl"], kl)
    torch.testing.assert_close(found["loss"], (reconstruction + 0.3 * kl) / (3 * 16 * 16))
    assert log_b.min() >= SMALL.least_log_scale


def test_the_gradient_reaches_every_weight_through_the_codes(network):
    network.loss(images(), seeded(), 1.0, 0.0)["loss"].backward()
    for part in (network.encoder[1], network.encoder[-1], network.decoder[-2]):
        assert part.weight.grad.abs().max() > 0
    assert network.embedding.grad.abs().max() > 0


def test_images_are_counted_in_training_only(network):
    network.loss(images(3), seeded())
    network.eval().loss(images(3), seeded())
    network.train().loss(images(2), seeded())
    assert int(network.images_seen) == 5
    assert int(network.state_dict()["images_seen"]) == 5


def test_tokens(network):
    network.eval()
    x = images()
    tokens = network.tokenize(x)
    assert tokens.shape == (3, *network.grid) == (3, 4, 4)
    assert torch.equal(tokens, network.encode(x).argmax(dim=-1))
    mu, _ = network.decode(F.one_hot(tokens, SMALL.codes).float())
    expected = (2 * (mu.sigmoid() - 0.1) / 0.8 - 1).clamp(-1, 1)
    torch.testing.assert_close(network.detokenize(tokens), expected)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.full((1, 4, 4), 11), r"tokens must be in 0…10, the codes of this DVAE, got 11…11"),
        (torch.full((1, 4, 4), -1), r"got -1…-1"),
        (torch.zeros(1, 4, 5, dtype=torch.int64), r"a grid of 4×4 .* got the shape \(1, 4, 5\)"),
    ],
)
def test_tokens_that_cannot_be(network, tokens, message):
    with pytest.raises(ValueError, match=message):
        network.detokenize(tokens)


def test_samples_come_from_uniform_codes(network):
    network.eval()
    drawn = network.sample(3, seed=2)
    generators = PerImage(2, 0, 3).generators
    tokens = torch.stack([torch.randint(11, (4, 4), generator=g) for g in generators])
    torch.testing.assert_close(drawn, network.detokenize(tokens))


def test_a_factor_that_does_not_tile():
    with pytest.raises(ValueError, match="size 28 is not a multiple of factor 5"):
        DVAEConfig(factor=5)
