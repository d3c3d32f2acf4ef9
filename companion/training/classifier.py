"""What the training of an image classifier needs beside the loop: affine augmentation, and accuracy."""

import math

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from companion.data.images import to_float
from companion.randomness import Source, uniform


def random_affine(
    images: Float[Tensor, "n c h w"],
    source: Source,
    *,
    degrees: float = 10.0,
    scale: float = 0.1,
    shear: float = 0.1,
    shift: float = 2.0,
) -> Float[Tensor, "n c h w"]:
    """Turns, scales, shears and moves every image by its own random amount, bilinearly.

    Args:
        images: in [−1, 1], where −1 is the background that moves in from outside.
        source: of the random amounts.
        degrees: largest rotation either way.
        scale: largest relative change of size either way.
        shear: largest horizontal shear either way.
        shift: largest shift either way, in pixels, along each axis.

    Returns:
        The moved images, in [−1, 1].
    """
    n, _, height, width = images.shape
    u = 2 * uniform((n, 6), source).T - 1
    angle = math.radians(degrees) * u[0]
    sx, sy = 1 + scale * u[1], 1 + scale * u[2]
    k = shear * u[3]
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([sx * cos, k * cos - sy * sin, 2 * shift / width * u[4]], dim=-1),
        torch.stack([sx * sin, k * sin + sy * cos, 2 * shift / height * u[5]], dim=-1),
    ]
    theta = torch.stack(rows, dim=1).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Outside counts as zero, so the background is moved to zero and back.
    return F.grid_sample(images + 1, grid, padding_mode="zeros", align_corners=False) - 1


@torch.inference_mode()
def accuracy(
    model: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    batch_size: int = 500,
) -> float:
    """Returns the share of images whose largest logit is at their label, in evaluation mode."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        right += int((model(to_float(x).to(device)).argmax(dim=1).cpu() == y).sum())
    model.train(was_training)
    return right / len(images)
