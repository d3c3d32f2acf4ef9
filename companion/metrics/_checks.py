"""Checks of the metrics' inputs, so that each fails at the door and says what to do."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def rows(
    name: str, values: Any, shape: str = "n, d", what: str = "features", how: str = "features"
) -> None:
    """Checks that an argument is a table with a row for each image, and not the images themselves.

    Args:
        name: what the caller calls the argument.
        values: what was given.
        shape: the dimensions it must have, in words.
        what: what the rows hold, for the message.
        how: the method of an extractor that makes them of images.

    Raises:
        TypeError: if it is no tensor or array.
        ValueError: if it is images, has another number of dimensions, or is empty.
    """
    if not isinstance(values, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(values).__name__}.")
    given = tuple(values.shape)
    if values.ndim == 4 or (values.ndim == 3 and str(values.dtype).endswith("uint8")):
        raise ValueError(
            f"{name} of the shape {given} are images; this metric takes their {what}, one row an image "
            f"({shape}). Extract them first: companion.metrics.features.digit_{how}(images) for grey 28×28 "
            f"digits, companion.metrics.extractors.extractor(…).{how}(images) for others."
        )
    if values.ndim != 2:
        raise ValueError(f"{name} must have the shape ({shape}), got {given}.")
    if 0 in given:
        raise ValueError(f"{name} is empty: its shape is {given}.")


def too_large(name: str, largest: float) -> ValueError:
    """Builds the error for numbers whose powers float64 cannot hold."""
    return ValueError(
        f"{name} holds values up to {largest:g}, too large to compute with: their squares and products "
        "overflow. Look for what produced them (a diverged model?), or divide all sets by the same number."
    )


def as_float64(name: str, values: Any, ndim: int, shape: str) -> Tensor:
    """Returns finite real numbers as a float64 tensor on their own device.

    Args:
        name: what the caller calls the argument.
        values: a tensor or an array.
        ndim: the number of dimensions it must have.
        shape: those dimensions in words, for the message.

    Raises:
        TypeError: if it is no tensor or array, or holds no real numbers.
        ValueError: if it has another number of dimensions, is empty, or holds NaN or infinite values.
    """
    if not isinstance(values, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(values).__name__}.")
    tensor = torch.as_tensor(values).detach()
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {tensor.dtype}.")
    if tensor.ndim != ndim:
        raise ValueError(f"{name} must have the shape ({shape}), got {tuple(tensor.shape)}.")
    if tensor.numel() == 0:
        raise ValueError(f"{name} is empty: its shape is {tuple(tensor.shape)}.")
    tensor = tensor.to(torch.float64)
    # A finite sum proves that all is finite, and is quicker to get than a mask.
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(
            f"{name} holds {bad:,} NaN or infinite values of {tensor.numel():,}; find out where they come "
            "from (a diverged model?) rather than dropping them, which would bias the score."
        )
    return tensor


def image_pair(x: Any, y: Any, data_range: Any) -> tuple[Tensor, Tensor]:
    """Checks two batches of images for a full-reference metric and returns them in float64.

    Raises:
        TypeError: if they are not tensors of the same type.
        ValueError: if they are not both "n c h w" of the same shape, not finite, or wider than `data_range`.
    """
    if not _is_number(data_range) or not data_range > 0 or not np.isfinite(data_range):
        raise ValueError(
            f"data_range must be positive, got {data_range!r}. It is one number, the width of the range: 255 "
            "for bytes, 2 for floats in [-1, 1], 1 for floats in [0, 1]."
        )
    types = [getattr(images, "dtype", None) for images in (x, y)]
    # Tensors and arrays mix, their types do not: bytes beside floats are on another scale.
    if None not in types and len({str(t).removeprefix("torch.") for t in types}) > 1:
        raise TypeError(
            f"x is {types[0]} and y is {types[1]}; convert one, so that both are on the same scale."
        )
    a = as_float64("x", x, 4, "n, c, h, w")
    b = as_float64("y", y, 4, "n, c, h, w")
    if a.shape != b.shape:
        raise ValueError(
            f"x and y must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    spans = [(float(images.min()), float(images.max())) for images in (a, b)]
    joint = (min(low for low, _ in spans), max(high for _, high in spans))
    for name, (low, high) in (("x", spans[0]), ("y", spans[1]), ("x and y together", joint)):
        # The slack lets float32 rounding pass, and nothing that matters.
        if high - low > data_range * (1 + 1e-5):
            verb = "span" if "together" in name else "spans"
            raise ValueError(
                f"{name} {verb} [{low:g}, {high:g}], more than data_range = {data_range:g}. State the range "
                "that the format allows (255 for bytes, 2 for [-1, 1]), or clamp the images to it first."
            )
    return a, b


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
