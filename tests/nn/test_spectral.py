"""Spectral normalisation against singular values and PyTorch's own."""

import copy

import pytest
import torch
from torch import nn

from companion.nn.spectral import FIRST_STEPS, SpectralNorm, as_matrix, spectral_norm


def seeded(layer, **arguments):
    torch.manual_seed(0)
    return layer(**arguments).double()


LAYERS = [
    lambda: seeded(nn.Linear, in_features=7, out_features=5),
    lambda: seeded(nn.Conv2d, in_channels=3, out_channels=6, kernel_size=4),
]


def largest(weight):
    return torch.linalg.matrix_norm(as_matrix(weight.detach()), ord=2)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_largest_singular_value_becomes_one(layer):
    layer = layer()
    raw = layer.weight.detach().clone()
    layer = spectral_norm(layer)
    for _ in range(300):
        weight = layer.weight
    assert largest(weight) == pytest.approx(1.0, abs=1e-9)
    torch.testing.assert_close(weight.detach() * largest(raw), raw)


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_equal_those_of_pytorch(layer):
    """Given the same vectors, and the same next step of the iteration."""
    ours, theirs = spectral_norm(layer()), nn.utils.parametrizations.spectral_norm(layer())
    peer = theirs.parametrizations.weight[0]
    with torch.no_grad():
        mine = ours.parametrizations.weight[0]
        peer._u.copy_(mine.u)
        peer._v.copy_(mine.v)
    probe = torch.randn_like(ours.parametrizations.weight.original)
    for module in (ours, theirs):
        (module.weight * probe).sum().backward()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        ours.parametrizations.weight.original.grad,
        theirs.parametrizations.weight.original.grad,
        rtol=1e-5,
        atol=1e-7,
    )


def test_the_iteration_runs_in_training_only():
    layer = spectral_norm(seeded(nn.Linear, in_features=9, out_features=9))
    with torch.no_grad():  # so that the vectors are out of date
        layer.parametrizations.weight.original.add_(torch.randn(9, 9))
    before = copy.deepcopy(layer.state_dict())
    layer.eval()
    first = layer.weight.detach()
    assert torch.equal(layer.weight, first)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    layer.train()
    assert not torch.equal(layer.weight, first)


def test_two_uses_in_one_step_have_their_gradients():
    layer = spectral_norm(seeded(nn.Linear, in_features=4, out_features=3))
    x = torch.randn(2, 4, dtype=torch.float64)
    (layer(x).sum() - layer(x + 1).sum()).backward()
    assert torch.isfinite(layer.parametrizations.weight.original.grad).all()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_weight_of_zeros_stays_zero_and_can_be_trained(layer):
    layer = layer()
    nn.init.zeros_(layer.weight)
    spectral_norm(layer)
    for _ in range(3):
        assert torch.equal(layer.weight, torch.zeros_like(layer.weight))
    layer.weight.sum().backward()
    gradient = layer.parametrizations.weight.original.grad
    assert torch.equal(gradient, torch.ones_like(gradient))
    with torch.no_grad():
        layer.parametrizations.weight.original.sub_(torch.randn_like(gradient))
    for _ in range(300):
        weight = layer.weight
    assert largest(weight) == pytest.approx(1.0, abs=1e-9)


def test_a_copy_is_independent():
    layer = spectral_norm(seeded(nn.Linear, in_features=4, out_features=3))
    twin = copy.deepcopy(layer).eval()
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(2).add_(1)
    assert not torch.allclose(layer.weight, twin.weight)
    assert [*twin.state_dict()] == [*layer.state_dict()]


def test_a_layer_without_numbers_is_not_iterated_on(monkeypatch):
    """A network that is only measured for size must cost no power iteration; one with numbers must have its first."""
    turns = []
    monkeypatch.setattr(SpectralNorm, "_iterate", lambda self, matrix: turns.append(matrix.device))
    with torch.device("meta"):
        empty = spectral_norm(nn.Linear(4, 3))
    assert empty.parametrizations.weight[0].v.shape == (4,)
    assert not turns
    spectral_norm(nn.Linear(4, 3))
    assert len(turns) == FIRST_STEPS
