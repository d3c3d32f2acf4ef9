"""The training of an image classifier: affine augmentation, AdamW, warm-up and cosine decay."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from companion.data.images import to_float

Augment = Callable[[Tensor, torch.Generator], Tensor]


class Progress(NamedTuple):
    """One optimisation step: its number from 1, the total number, the loss in nats, the learning rate."""

    step: int
    total: int
    loss: float
    learning_rate: float


def random_affine(
    images: Float[Tensor, "n c h w"],
    generator: torch.Generator,
    *,
    degrees: float = 10.0,
    scale: float = 0.1,
    shear: float = 0.1,
    shift: float = 2.0,
) -> Float[Tensor, "n c h w"]:
    """Turns, scales, shears and moves every image by its own random amount, bilinearly.

    Args:
        images: in [−1, 1], where −1 is the background that moves in from outside.
        generator: the source of randomness, on the CPU.
        degrees: largest rotation either way.
        scale: largest relative change of size either way.
        shear: largest horizontal shear either way.
        shift: largest shift either way, in pixels, along each axis.

    Returns:
        The moved images, in [−1, 1].
    """
    n, _, height, width = images.shape
    u = 2 * torch.rand(6, n, generator=generator) - 1
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


def warmup_cosine(step: int, total: int, warmup: float = 0.1) -> float:
    """Returns the learning rate's factor: up linearly over a share of the steps, then down a half cosine."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def fit_classifier(
    model: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    generator: torch.Generator,
    augment: Augment | None = None,
    bf16: bool = False,
    device: str | torch.device = "cpu",
) -> Iterator[Progress]:
    """Trains a classifier by cross-entropy, yielding after every step.

    Args:
        model: the network; trained in place.
        images: bytes.
        labels: class numbers.
        epochs: passes over the data.
        batch_size: images a step; the last, incomplete batch of an epoch is left out.
        learning_rate: the peak of the schedule.
        weight_decay: of AdamW.
        generator: order of the images and augmentation, on the CPU.
        augment: applied to each batch in [−1, 1].
        bf16: run the network under bfloat16 autocast, the loss in float32.
        device: where to train.

    Yields:
        One `Progress` a step.

    Raises:
        ValueError: if there are fewer images than a batch holds.
        FloatingPointError: if the loss is not finite.
    """
    if len(images) < batch_size:
        raise ValueError(f"batch_size is {batch_size}, but there are only {len(images)} images.")
    device = torch.device(device)
    model.to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
    per_epoch = len(images) // batch_size
    total, step = epochs * per_epoch, 0
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for indices in order[: per_epoch * batch_size].split(batch_size):
            x = to_float(images[indices])
            x = augment(x, generator) if augment else x
            x = x.to(device, memory_format=torch.channels_last)
            rate = learning_rate * warmup_cosine(step, total)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), labels[indices].to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            step += 1
            value = loss.detach().item()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss is {value} at step {step}; lower the learning rate."
                )
            yield Progress(step, total, value, rate)


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
