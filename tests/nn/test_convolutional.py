"""The shared convolutional encoder and decoder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.nn.convolutional import ConvDecoder, ConvEncoder
from companion.randomness import initialisation


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=15, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([8, 28, 32, 64]),
    width=st.integers(1, 5),
    out=st.integers(1, 9),
    n=st.integers(1, 3),
)
def test_shapes_go_there_and_back(channels, size, width, out, n):
    encoder = ConvEncoder(channels, size, width, out)
    decoder = ConvDecoder(out, channels, size, width)
    x = draw(n, channels, size, size)
    z = encoder(x)
    assert z.shape == (n, out)
    assert decoder(z).shape == x.shape


def test_about_seven_hundred_thousand_parameters_at_width_sixteen():
    parts = ConvEncoder(out=16), ConvDecoder(16)
    assert 0.65e6 < sum(p.numel() for part in parts for p in part.parameters()) < 0.75e6


@pytest.mark.parametrize("size", [28, 32])
def test_dense_on_one_window_is_the_code(size):
    with initialisation(1):
        encoder = ConvEncoder(1, size, 4, 6)
    x = draw(3, 1, size, size)
    torch.testing.assert_close(encoder.dense(x), encoder(x)[:, :, None, None])


def test_dense_is_the_code_of_each_window_but_for_its_rim():
    """With biases at zero, black is zero in every layer, so a window whose rim is black equals the cut-out."""
    with initialisation(2):
        encoder = ConvEncoder(1, 28, 4, 6)
    with torch.no_grad():
        for layer in encoder.trunk:
            if hasattr(layer, "bias"):
                layer.bias.zero_()
    canvas = torch.zeros(1, 1, 64, 52)
    canvas[..., 20:28, 16:24] = draw(1, 1, 8, 8)
    codes = encoder.dense(canvas)
    assert codes.shape == (1, 6, 10, 7)
    for i, j in [(2, 1), (3, 2), (9, 6)]:
        window = canvas[..., 4 * i : 4 * i + 28, 4 * j : 4 * j + 28]
        torch.testing.assert_close(codes[..., i, j], encoder(window))


def test_moving_the_canvas_by_a_stride_moves_the_map_by_one():
    with initialisation(3):
        encoder = ConvEncoder(3, 32, 2, 5)
    canvas = torch.full((1, 3, 72, 72), -1.0)
    canvas[..., 28:44, 28:44] = draw(1, 3, 16, 16)
    before, after = encoder.dense(canvas), encoder.dense(canvas.roll((4, 8), (2, 3)))
    torch.testing.assert_close(after[..., 3:-2, 4:-2], before[..., 2:-3, 2:-4])


def test_the_signal_neither_fades_nor_explodes_at_the_start():
    with initialisation(6):
        encoder, decoder = ConvEncoder(1, 64, 16, 32), ConvDecoder(32, 1, 64, 16)
    x = draw(64, 1, 64, 64)
    z = encoder(x)
    assert 0.1 < float(z.detach().std(correction=0)) < 2
    assert 0.1 < float(decoder(draw(64, 32)).detach().std(correction=0)) < 2


def test_all_weights_get_a_gradient():
    with initialisation(4):
        encoder, decoder = ConvEncoder(1, 28, 2, 3), ConvDecoder(3, 1, 28, 2)
    decoder(encoder(draw(4, 1, 28, 28))).square().mean().backward()
    for part in encoder, decoder:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_channels_last_and_bfloat16_agree_with_the_plain_ones():
    with initialisation(5):
        encoder, decoder = ConvEncoder(3, 32, 8, 7), ConvDecoder(7, 3, 32, 8)
    x = draw(4, 3, 32, 32)
    z, y = encoder(x), decoder(encoder(x))
    encoder.to(memory_format=torch.channels_last)
    decoder.to(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(encoder(last), z)
    torch.testing.assert_close(decoder(z), y)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = decoder(encoder(last))
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), y, atol=0.05, rtol=0.05)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="30×30"):
        ConvEncoder(1, 30)
    with pytest.raises(ValueError, match="2×2"):
        ConvDecoder(4, 1, 2)
    with pytest.raises(ValueError, match="width must be a whole number of at least 1, got 0"):
        ConvEncoder(width=0)
    with pytest.raises(ValueError, match="latent_dim must be a whole number of at least 1, got -1"):
        ConvDecoder(-1)
    encoder = ConvEncoder(1, 28, 2, 3)
    with pytest.raises(ValueError, match=r"\(1, 28, 28\), got \(1, 32, 32\)"):
        encoder(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="multiples of 4"):
        encoder.dense(torch.zeros(1, 1, 30, 28))
    with pytest.raises(ValueError, match="at least 28"):
        encoder.dense(torch.zeros(1, 1, 24, 28))
    with pytest.raises(ValueError, match=r"codes of 3 numbers, .* got the shape \(1, 4\)"):
        ConvDecoder(3, 1, 28, 2)(torch.zeros(1, 4))
