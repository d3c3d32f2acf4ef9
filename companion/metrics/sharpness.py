"""Sharpness as the variance of the Laplacian (Pech-Pacheco et al., 2000)."""

from jaxtyping import Float, UInt8
from torch import Tensor

from companion.metrics._checks import as_float64


def sharpness(
    images: Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"],
) -> Float[Tensor, " n"]:
    """Returns the variance of the discrete Laplacian of each image; blurred images score low.

    Compare it only between images of the same kind and range, as a ratio to real data: noise and contrast
    raise it too.

    Args:
        images: in any range; twice the contrast gives four times the value.

    Returns:
        One number an image, float64: the variance over inner pixels, averaged over channels.

    Raises:
        TypeError: if they do not hold real numbers.
        ValueError: if the shape is not "n c h w", a side is below 3, or a value is NaN or infinite.
    """
    x = as_float64("images", images, 4, "n, c, h, w")
    if min(x.shape[-2:]) < 3:
        raise ValueError(
            f"the Laplacian needs images of at least 3×3, got {x.shape[-2]}×{x.shape[-1]}."
        )
    centre = x[..., 1:-1, 1:-1]
    neighbours = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    laplacian = neighbours - 4 * centre
    return laplacian.var(dim=(-2, -1), correction=0).mean(dim=1)
