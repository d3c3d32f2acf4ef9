"""PSNR, SSIM and sharpness against scikit-image, torchmetrics, SciPy and closed forms; bad input."""

import inspect
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import (
    peak_signal_noise_ratio as torchmetrics_psnr,
)
from torchmetrics.functional.image import (
    structural_similarity_index_measure as torchmetrics_ssim,
)

from companion.data import to_float, to_uint8
from companion.metrics import psnr, sharpness, ssim

psnr_unchecked, ssim_unchecked = inspect.unwrap(psnr), inspect.unwrap(ssim)
sharpness_unchecked = inspect.unwrap(sharpness)


@pytest.fixture
def pair(generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth colour images in [−1, 1] and noisy copies, one noisier than the other."""
    coarse = 2 * torch.rand(3, 3, 6, 6, generator=generator) - 1
    x = torch.nn.functional.interpolate(coarse, size=(32, 40), mode="bilinear")
    noise = (
        torch.randn(x.shape, generator=generator)
        * torch.tensor([0.02, 0.1, 0.3])[:, None, None, None]
    )
    return x, (x + noise).clamp(-1, 1)


# ---------------------------------------------------------------- PSNR


def test_closed_form_of_a_constant_error():
    x = torch.zeros(2, 1, 4, 4)
    y = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.02)])
    torch.testing.assert_close(psnr(x, y, data_range=2), torch.tensor([20.0, 40.0]).double())


def test_one_step_of_a_byte():
    """RMSE 1 of 255 is 20·log₁₀ 255 dB."""
    x = torch.zeros(1, 3, 5, 5, dtype=torch.uint8)
    assert float(psnr(x, x + 1, 255)) == pytest.approx(20 * math.log10(255), abs=1e-12)


def test_bytes_do_not_wrap_around():
    x = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    assert float(psnr(x, x + 255, 255)) == 0


def test_identical_images_are_infinitely_close(pair):
    assert torch.isinf(psnr(pair[0], pair[0], 2)).all()


def test_psnr_equals_scikit_image_and_torchmetrics(pair):
    x, y = pair
    ours = psnr(x, y, 2)
    theirs = [
        peak_signal_noise_ratio(p, q, data_range=2)
        for p, q in zip(x.numpy(), y.numpy(), strict=True)
    ]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    per_image = torchmetrics_psnr(
        y.double(), x.double(), data_range=2.0, dim=(1, 2, 3), reduction="none"
    )
    torch.testing.assert_close(
        ours, per_image, atol=0, rtol=1e-7
    )  # theirs takes a float32 logarithm


def test_the_mean_of_decibels_is_not_the_decibels_of_the_mean(pair):
    x, y = pair
    pooled = 10 * torch.log10(4 / (x - y).double().square().mean())
    assert float(psnr(x, y, 2).mean()) > float(pooled) + 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_psnr_is_symmetric_and_scales_with_its_range(seed, scale):
    x, y = torch.rand(
        2, 2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    torch.testing.assert_close(psnr(x, y, 1), psnr(y, x, 1))
    torch.testing.assert_close(psnr(scale * x, scale * y, scale), psnr(x, y, 1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(0, 1, 1.0), (-1, 1, 2.0), (0, 255, 255.0)]))
def test_within_its_range_psnr_is_never_negative(seed, bounds):
    low, high, data_range = bounds
    x, y = (
        low
        + (high - low)
        * torch.randint(0, 2, (1, 1, 4, 4), generator=torch.Generator().manual_seed(s)).double()
        for s in (seed, seed + 1)
    )
    assert float(psnr(x, y, data_range)) >= 0


def test_arrays_and_tensors_of_one_type_mix(pair):
    x, y = pair
    assert torch.equal(psnr_unchecked(x.numpy(), y, 2), psnr(x, y, 2))


# ---------------------------------------------------------------- SSIM


def test_ssim_equals_scikit_image(pair):
    x, y = pair
    theirs = [
        structural_similarity(
            1 + p.astype(np.float64),
            1 + q.astype(np.float64),
            data_range=2,
            channel_axis=0,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        for p, q in zip(x.numpy(), y.numpy(), strict=True)
    ]
    np.testing.assert_allclose(ssim(x, y, 2), theirs, atol=1e-9)


def test_ssim_equals_torchmetrics(pair):
    x, y = (images.double() for images in pair)
    # Theirs takes the values as they are, and the luminance term wants black at 0.
    # It pads the borders by reflection and averages over them too; the inner part is common to both.
    _, full = torchmetrics_ssim(
        y + 1, x + 1, data_range=2.0, reduction="none", return_full_image=True
    )
    inner = full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    torch.testing.assert_close(ssim(x, y, 2), inner, atol=1e-6, rtol=0)


def test_ssim_of_identical_images_is_one_and_falls_with_noise(pair):
    x, y = pair
    torch.testing.assert_close(ssim(x, x, 2), torch.ones(3).double())
    values = ssim(x, y, 2)
    assert 1 > values[0] > values[1] > values[2]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 255), st.integers(0, 255))
def test_ssim_of_flat_greys_is_the_luminance_term(first, second):
    """(2ab + c) / (a² + b² + c) with c = (0.01·255)²: the same number as bytes, in [−1, 1] and in [0, 1]."""
    c = (0.01 * 255) ** 2
    expected = (2 * first * second + c) / (first**2 + second**2 + c)
    a, b = (torch.full((1, 1, 12, 12), grey, dtype=torch.uint8) for grey in (first, second))
    for x, y, data_range in [
        (a, b, 255),
        (to_float(a), to_float(b), 2),
        (a.double() / 255, b.double() / 255, 1),
        (to_float(a).numpy(), to_float(b), 2.0),
    ]:
        assert float(ssim_unchecked(x, y, data_range)) == pytest.approx(expected, abs=1e-5)


def test_the_greys_of_the_report():
    a, b = (to_float(torch.full((1, 1, 12, 12), grey, dtype=torch.uint8)) for grey in (115, 140))
    assert float(ssim(a, b, 2)) == pytest.approx(0.98096, abs=5e-6)


def test_ssim_of_bytes_and_of_floats_is_the_same(pair):
    x, y = (to_uint8(images) for images in pair)
    torch.testing.assert_close(
        ssim(to_float(x), to_float(y), 2), ssim(x, y, 255), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("low", "high", "data_range"), [(-0.5, 0.5, 1), (0.2, 1.9, 2), (-2, -0.5, 2), (-9, 0, 255)]
)
def test_ssim_refuses_what_leaves_open_where_black_is(low, high, data_range):
    x = torch.linspace(low, high, 144).view(1, 1, 12, 12)
    with pytest.raises(ValueError, match=r"must lie in .*255, floats in \[-1, 1\] with 2"):
        ssim(x, x, data_range)


# ---------------------------------------------------------------- sharpness


def test_sharpness_equals_scipy(pair):
    x = pair[1].double()
    expected = [
        np.mean([scipy.ndimage.laplace(channel)[1:-1, 1:-1].var() for channel in image])
        for image in x.numpy()
    ]
    np.testing.assert_allclose(sharpness(x), expected, atol=1e-9)


def test_sharpness_of_ramps_is_zero_and_blur_lowers_it(pair):
    ramp = torch.linspace(-1, 1, 8).expand(1, 1, 8, 8)
    assert float(sharpness(ramp)) == pytest.approx(0, abs=1e-12)
    y = pair[1]
    blurred = torch.nn.functional.avg_pool2d(y, 3, stride=1, padding=1)
    assert (sharpness(blurred) < 0.7 * sharpness(y)).all()


def test_sharpness_grows_with_the_square_of_contrast(pair):
    torch.testing.assert_close(sharpness(2 * pair[1]), 4 * sharpness(pair[1]))


# ---------------------------------------------------------------- bad input


GOOD = torch.zeros(2, 3, 12, 12)


@pytest.mark.parametrize("metric", [psnr_unchecked, ssim_unchecked])
@pytest.mark.parametrize(
    ("x", "y", "data_range", "error", "message"),
    [
        (GOOD, GOOD[:1], 2, ValueError, "same shape"),
        (GOOD[0], GOOD[0], 2, ValueError, r"x must have the shape \(n, c, h, w\)"),
        (GOOD[:0], GOOD[:0], 2, ValueError, "x is empty"),
        (GOOD, GOOD.byte(), 255, TypeError, "x is torch.float32 and y is torch.uint8"),
        (GOOD.bool(), GOOD.bool(), 1, TypeError, "real numbers"),
        (GOOD, GOOD + float("nan"), 2, ValueError, "y holds 864 NaN"),
        (GOOD, GOOD, 0, ValueError, "data_range must be positive, got 0"),
        (GOOD, GOOD, -1.0, ValueError, "data_range must be positive"),
        (GOOD, GOOD, float("inf"), ValueError, "data_range must be positive"),
        (
            torch.linspace(-1, 1, 864).view(2, 3, 12, 12),
            GOOD,
            1,
            ValueError,
            r"spans \[-1, 1\], more than",
        ),
        (GOOD.numpy().tolist(), GOOD, 1, TypeError, "got list"),
        (GOOD.numpy(), GOOD.byte().numpy(), 255, TypeError, "x is float32 and y is uint8"),
        (GOOD, GOOD.byte().numpy(), 255, TypeError, "x is torch.float32 and y is uint8"),
        (GOOD + 1, GOOD - 1, 1, ValueError, r"x and y together span \[-1, 1\], more than"),
        (
            GOOD,
            GOOD,
            (0.0, 1.0),
            ValueError,
            r"data_range must be positive, got \(0.0, 1.0\). It is one",
        ),
        (GOOD, GOOD, None, ValueError, "data_range must be positive, got None"),
        (GOOD, GOOD, True, ValueError, "data_range must be positive, got True"),
    ],
)
def test_bad_pairs(metric, x, y, data_range, error, message):
    with pytest.raises(error, match=message):
        metric(x, y, data_range)


def test_images_smaller_than_the_window():
    x = torch.zeros(1, 1, 10, 20)
    with pytest.raises(ValueError, match="window is 11×11, the images are only 10×20"):
        ssim(x, x, 1)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(4, 4), ValueError, "n, c, h, w"),
        (torch.zeros(1, 1, 2, 9), ValueError, "at least 3×3, got 2×9"),
        (torch.full((1, 1, 4, 4), torch.inf), ValueError, "NaN or infinite"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.complex64), TypeError, "real numbers"),
    ],
)
def test_bad_images_for_sharpness(images, error, message):
    with pytest.raises(error, match=message):
        sharpness_unchecked(images)
