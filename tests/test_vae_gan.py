"""The VAE-GAN: which network gets which loss, and what the discriminator is shown."""

import math

import pytest
import torch

from companion.data import load
from companion.distributions import kl_diagonal
from companion.gan import LOSSES
from companion.randomness import normal
from companion.vae_gan import VAEGAN, VAEGANConfig


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(**options):
    torch.manual_seed(0)
    plain = {
        "latent_dim": 3,
        "encoder_width": 4,
        "decoder_width": 4,
        "discriminator_width": 4,
        "layer": -1,
        "observation_precision": 1.0,
        "gamma": 1.0,
        "loss": "non-saturating",
    }
    return VAEGAN(VAEGANConfig(**plain | options))


@pytest.fixture(scope="module")
def digits():
    return load("digits", "train")[:8].floats()


def touched(network, loss):
    """The parts to which a loss sends a gradient."""
    network.zero_grad()
    loss.backward()
    return {
        name
        for name, part in network.named_children()
        if any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    }


def test_the_discriminator_sees_reconstructions_and_prior_samples(digits):
    """Both are fakes, half a vote each (Larsen et al., Algorithm 1)."""
    network = small().eval()
    shown = []
    network.discriminator.register_forward_hook(
        lambda m, inputs, output: shown.append((inputs[0], output))
    )
    values = network.discriminator_loss(digits, seeded(1))
    source = seeded(1)
    mu, log_var = network.encode(digits)
    again = network.decode(mu + (0.5 * log_var).exp() * normal((8, 3), source))
    drawn = network.decode(normal((8, 3), source))
    for (image, _), expected in zip(shown, (digits, again, drawn), strict=True):
        torch.testing.assert_close(image, expected)
    real, a, b = (logits for _, logits in shown)
    torch.testing.assert_close(
        values["loss"], LOSSES["non-saturating"].discriminator(real, torch.cat([a, b]))
    )


def test_the_discriminator_s_fakes_carry_no_gradient(digits):
    network = small()
    loss = network.discriminator_loss(digits, seeded())["loss"]
    assert touched(network, loss) == {"discriminator"}


def test_the_encoder_is_not_asked_to_fool(digits):
    network = small(adversarial=5.0).eval()
    values = network.encoder_loss(digits, seeded(1))
    mu, log_var = network.encode(digits)
    again = network.decode(mu + (0.5 * log_var).exp() * normal((8, 3), seeded(1)))
    expected = (
        kl_diagonal(mu, log_var).sum(1).mean() + network.reconstruction_loss(digits, again).mean()
    )
    torch.testing.assert_close(values["loss"], expected)


def test_the_decoder_s_sum(digits):
    network = small(gamma=0.3, adversarial=2.0).eval()
    source = seeded(1)
    mu, log_var = network.encode(digits)
    again = network.decode(mu + (0.5 * log_var).exp() * normal((8, 3), source))
    drawn = network.decode(normal((8, 3), source))
    logits = network.discriminator(torch.cat([again, drawn]))
    expected = 0.3 * network.reconstruction_loss(digits, again).mean() + 2 * LOSSES[
        "non-saturating"
    ].generator(logits)
    torch.testing.assert_close(network.decoder_loss(digits, seeded(1))["loss"], expected)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_the_reconstruction_loss_is_half_the_squared_distance_of_features(layer, digits):
    network = small(layer=layer, observation_precision=3.0).eval()
    other = digits.flip(0)
    a, b = (network.discriminator.features(x)[layer] for x in (digits, other))
    torch.testing.assert_close(
        network.reconstruction_loss(digits, other), 1.5 * (a - b).square().sum(dim=(1, 2, 3))
    )
    assert float(network.reconstruction_loss(digits, digits).detach().abs().max()) == 0


def test_features_of_the_truth_are_a_fixed_target(digits):
    network = small()
    fixed = digits.clone().requires_grad_()
    network.reconstruction_loss(fixed, digits.flip(0)).sum().backward()
    assert fixed.grad is None or float(fixed.grad.abs().max()) == 0


def test_with_pixels_and_no_judge_it_is_a_vae(digits):
    """The sum of encoder and decoder losses' parts is the Gaussian ELBO up to its constant."""
    network = small(features=False, adversarial=0, observation_precision=4.0).eval()
    values = network.encoder_loss(digits, seeded(1))
    mu, log_var = network.encode(digits)
    again = network.decode(mu + (0.5 * log_var).exp() * normal((8, 3), seeded(1)))
    sigma = 0.5
    density = torch.distributions.Normal(again, sigma).log_prob(digits).sum(dim=(1, 2, 3))
    constant = 784 * (math.log(sigma) + 0.5 * math.log(2 * math.pi))
    bound = density + constant - kl_diagonal(mu, log_var).sum(1)
    torch.testing.assert_close(values["loss"], -bound.mean())
    assert touched(network, network.decoder_loss(digits, seeded())["loss"]) == {
        "encoder",
        "decoder",
    }


def test_codes_and_samples(digits):
    network = small().eval()
    assert network.reconstruct(digits).shape == digits.shape
    drawn = network.sample(5, seeded())
    torch.testing.assert_close(drawn, network.decode(normal((5, 3), seeded())))
    assert drawn.abs().max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "layer must be a whole number from -3 to 2, got 3"),
        ({"gamma": -1}, "gamma must be a finite number of at least 0, got -1"),
    ],
)
def test_what_cannot_work_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
