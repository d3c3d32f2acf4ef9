"""Peak signal-to-noise ratio and structural similarity, image by image."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from companion.metrics._checks import image_pair

# Wang et al. (2004): an 11×11 Gaussian window, σ = 1.5.
SSIM_WINDOW = 11


def psnr(
    x: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"],
    y: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"],
    data_range: float | int,
) -> Float[Tensor, " n"]:
    """Returns 10·log₁₀(MAX² / MSE) of each pair of images, in decibels.

    The mean over a set is the mean of these numbers, not the PSNR of the mean error.

    Args:
        x: images.
        y: the same images, changed.
        data_range: MAX, the width of the format's range: 255 for bytes, 2 for floats in [−1, 1].

    Returns:
        One number a pair, float64; infinite where the two are identical.

    Raises:
        TypeError: if the two are of different types.
        ValueError: if they differ in shape, are not "n c h w", hold NaN or infinite values, or span more than
            `data_range`, each or both together.
    """
    a, b = image_pair(x, y, data_range)
    mse = (a - b).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(data_range**2 / mse)


def _from_zero(a: Tensor, b: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Returns both images moved so that the format's darkest value is 0, as the luminance term of SSIM wants it."""
    least, most = float(torch.minimum(a, b).min()), float(torch.maximum(a, b).max())
    slack = 1e-5 * (high - low)
    if least < low - slack or most > high + slack:
        raise ValueError(
            f"by their type and data_range = {high - low:g}, x and y must lie in [{low:g}, {high:g}], got "
            f"[{least:g}, {most:g}]. SSIM compares luminances, so it must know where black is: give bytes with "
            "255, floats in [-1, 1] with 2, or numbers in [0, data_range]."
        )
    return (a - low).clamp(min=0), (b - low).clamp(min=0)


def ssim(
    x: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"],
    y: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"],
    data_range: float | int,
) -> Float[Tensor, " n"]:
    """Returns the structural similarity of each pair of images (Wang et al., 2004), from scikit-image.

    The window is Gaussian, 11×11 with σ = 1.5, covariances are divided by n, borders are left out, and the
    channels' results are averaged. The luminance term compares means as multiples of each other, so black must
    be 0: floats of `data_range` 2 are taken for the book's [−1, 1] and moved by 1; everything else must lie in
    [0, `data_range`]. So an image has the same SSIM as bytes and as floats.

    Args:
        x: images.
        y: the same images, changed.
        data_range: the width of the format's range: 255 for bytes, 2 for floats in [−1, 1], 1 for floats in
            [0, 1].

    Returns:
        One number a pair, float64, at most 1.

    Raises:
        TypeError: if the two are of different types.
        ValueError: as `psnr`, if values lie outside the format's range, or an image is smaller than the window.
    """
    from skimage.metrics import structural_similarity

    a, b = image_pair(x, y, data_range)
    if min(a.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM's window is {SSIM_WINDOW}×{SSIM_WINDOW}, the images are only "
            f"{a.shape[-2]}×{a.shape[-1]}."
        )
    signed = torch.as_tensor(x).is_floating_point() and data_range == 2
    a, b = _from_zero(a, b, *((-1.0, 1.0) if signed else (0.0, float(data_range))))
    values = [
        structural_similarity(
            p,
            q,
            data_range=float(data_range),
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for p, q in zip(a.cpu().numpy(), b.cpu().numpy(), strict=True)
    ]
    return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(a.device)
