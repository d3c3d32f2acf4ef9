"""Scales, perceptrons, sampling layers and residual blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from companion.nn.layers import (
    Downsample,
    ResidualBlock,
    Upsample,
    he_initialise,
    perceptron,
    scales,
    shuffle_up,
)
from companion.randomness import initialisation


def test_sizes_are_halved_down_to_eight_or_less_or_as_often_as_asked():
    assert scales(28) == [28, 14, 7]
    assert scales(32) == [32, 16, 8]
    assert scales(64) == [64, 32, 16, 8]
    assert scales(8) == [8]
    assert scales(64, halvings=1) == [64, 32]
    assert scales(64, smallest=4) == [64, 32, 16, 8, 4]
    assert scales(7, halvings=0) == [7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 30}, "30×30 pixels cannot be halved to 8 or less"),
        ({"size": 28, "halvings": 3}, "28×28 pixels cannot be halved 3 times"),
        ({"size": 3}, "at least 4×4 pixels, got 3×3"),
    ],
)
def test_sizes_that_leave_a_rest_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        scales(**arguments)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_a_perceptron_is_the_product_it_says(sizes, seed):
    with initialisation(seed):
        network = perceptron(*sizes)
    x = torch.randn(3, sizes[0], generator=torch.Generator().manual_seed(seed))
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    expected = x
    for i, layer in enumerate(linear):
        expected = expected @ layer.weight.T
        if i + 1 < len(linear):
            expected = expected * expected.sigmoid()
    torch.testing.assert_close(network(x), expected)
    assert [layer.out_features for layer in linear] == sizes[1:]


def test_a_perceptron_takes_other_activations_and_torch_s_own_start():
    with initialisation(0):
        found = perceptron(3, 4, 2, activation=nn.ReLU, he=False)
    with initialisation(0):
        expected = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert str(found) == str(expected)
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    for sizes in [(), (3,), (3, 0)]:
        with pytest.raises(ValueError, match="input and an output size"):
            perceptron(*sizes)


def test_he_s_start_keeps_the_scale_of_every_kind_of_layer():
    torch.manual_seed(0)
    for layer, x in (
        (nn.Linear(400, 300), torch.randn(50, 400)),
        (nn.Conv2d(40, 30, 3, padding=1), torch.randn(5, 40, 16, 16)),
        (Downsample(40, 30), torch.randn(5, 40, 16, 16)),
        (Upsample(40, 30), torch.randn(5, 40, 16, 16)),
    ):
        he_initialise(layer)
        y = layer(x.relu())
        inside = y[..., 2:-2, 2:-2] if y.ndim == 4 else y
        # A rectified normal number has the mean square ½, which the factor 2 makes up for.
        assert float(inside.detach().square().mean()) == pytest.approx(1, rel=0.1)


def test_sides_are_halved_and_doubled():
    x = torch.randn(2, 3, 14, 14)
    assert Downsample(3, 5)(x).shape == (2, 5, 7, 7)
    assert Upsample(3, 5)(x).shape == (2, 5, 28, 28)
    assert Upsample(3, 5, bias=False).bias is None
    assert nn.Sequential(*shuffle_up(3, 5))(x).shape == (2, 5, 28, 28)


# --- The residual block --------------------------------------------------------------------------------------------


def shaken(block):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return block.eval()


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"embedding": 5, "groups": 4}])
def test_a_block_begins_as_the_identity(options):
    x = torch.randn(2, 4, 6, 6)
    told = (torch.randn(2, 5),) if "embedding" in options else ()
    assert torch.equal(ResidualBlock(4, **options)(x, *told), x)


def test_a_plain_block_has_no_more_than_two_convolutions():
    assert {name.partition(".")[0] for name, _ in ResidualBlock(4).named_parameters()} == {
        "first",
        "second",
    }


def test_a_block_is_what_it_says():
    block = shaken(ResidualBlock(4, 6, embedding=5, groups=2))
    x, e = torch.randn(3, 4, 8, 8), torch.randn(3, 5)
    hidden = block.first(
        nn.functional.silu(nn.functional.group_norm(x, 2, *block.norm_1.parameters()))
    )
    hidden = hidden + block.embed(nn.functional.silu(e))[..., None, None]
    hidden = nn.functional.group_norm(hidden, 2, *block.norm_2.parameters())
    expected = block.shortcut(x) + block.second(nn.functional.silu(hidden))
    torch.testing.assert_close(block(x, e), expected)
    assert not torch.allclose(block(x, e), block(x, e + 1))


def test_a_block_drops_in_training_only():
    block, x = shaken(ResidualBlock(4, dropout=0.5)), torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), block(x))
    block.train()
    assert not torch.equal(block(x), block(x))


def test_mistakes_with_blocks_are_named():
    with pytest.raises(ValueError, match="4 and 6 channels cannot be cut into 4 groups"):
        ResidualBlock(4, 6, groups=4)
    with pytest.raises(ValueError, match="needs an embedding"):
        ResidualBlock(4, embedding=5)(torch.zeros(1, 4, 6, 6))
    with pytest.raises(ValueError, match="takes no embedding"):
        ResidualBlock(4)(torch.zeros(1, 4, 6, 6), torch.zeros(1, 5))
