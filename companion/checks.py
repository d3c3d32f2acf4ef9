"""Checks of what a user gives, each with one error that names the thing, its value and the remedy."""

import math
import numbers
from collections.abc import Iterable
from typing import TYPE_CHECKING

from companion.errors import unknown_name

if TYPE_CHECKING:
    from torch import Tensor

Number = float | int
# Far more than anybody trains, and few enough for a network to be built in a moment.
MOST_LAYERS = 1_000


def whole(least: int, most: int | None = None, /, **values: object) -> None:
    """Requires whole numbers of at least `least`, and at most `most`: `whole(1, width=width)`.

    Raises:
        ValueError: for the first that is none.
    """
    for name, value in values.items():
        found = (
            None
            if isinstance(value, bool) or not isinstance(value, numbers.Integral)
            else int(value)
        )
        if found is None or found < least or (most is not None and found > most):
            limits = f"of at least {least}" if most is None else f"from {least} to {most:,}"
            raise ValueError(f"{name} must be a whole number {limits}, got {value!r}.")


def number(
    least: Number = -math.inf,
    below: Number = math.inf,
    /,
    *,
    above: Number = -math.inf,
    **values: object,
) -> None:
    """Requires finite numbers of at least `least`, below `below` and above `above`: `number(0, beta=beta)`.

    Raises:
        ValueError: for the first that is none.
    """
    for name, value in values.items():
        found = (
            None if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
        )
        if (
            found is None
            or not math.isfinite(found)
            or not (least <= found < below and found > above)
        ):
            limits = [f"of at least {least:g}"] if least > -math.inf else []
            limits += [f"above {above:g}"] if above > -math.inf else []
            limits += [f"below {below:g}"] if below < math.inf else []
            rest = f" {' and '.join(limits)}" if limits else ""
            raise ValueError(f"{name} must be a finite number{rest}, got {value!r}.")


def flag(**values: object) -> None:
    """Requires True or False.

    Raises:
        ValueError: for the first that is neither.
    """
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}.")


def tuple_of(kind: type, /, **values: object) -> None:
    """Requires tuples of one kind of thing: `tuple_of(int, merges=merges)`.

    Raises:
        ValueError: for the first that is none.
    """
    for name, value in values.items():
        if not isinstance(value, tuple) or not all(type(item) is kind for item in value):
            raise ValueError(f"{name} must be a tuple of {kind.__name__}, got {value!r:.80}.")


def one_of(known: Iterable[str], /, **values: object) -> None:
    """Requires names that are known: `one_of(LOSSES, loss=loss)`.

    Raises:
        ValueError: for the first that is not; the message suggests the nearest that is.
    """
    names = list(known)
    for name, value in values.items():
        if value not in names:
            raise unknown_name(name, str(value), names)


def images(x: "Tensor", channels: int, size: int, network: str) -> None:
    """Requires a batch of floating-point images of one shape; every network's door has this check.

    Args:
        x: what was given.
        channels: that the network was built for.
        size: side in pixels that it was built for.
        network: what to call it, such as "VAE".

    Raises:
        TypeError: for bytes and other whole numbers, which a network would take for values of up to 255.
        ValueError: for another shape.
    """
    if not x.is_floating_point():
        raise TypeError(
            f"this {network} takes floats in [−1, 1], got {str(x.dtype).removeprefix('torch.')}: "
            "convert the images with companion.data.to_float."
        )
    wanted = (channels, size, size)
    if tuple(x.shape[1:]) != wanted or x.ndim != 4:
        raise ValueError(
            f"this {network} takes images of shape {wanted}, got {tuple(x.shape[1:])} in a batch of shape "
            f"{tuple(x.shape)}; load or resize them to {size}×{size} pixels with {channels} channel(s)."
        )


def codes(z: "Tensor", latent_dim: int, network: str) -> None:
    """Requires a batch of floating-point codes of one length.

    Raises:
        TypeError: for whole numbers.
        ValueError: for another length.
    """
    if not z.is_floating_point():
        raise TypeError(
            f"this {network} takes codes of floats, got {str(z.dtype).removeprefix('torch.')}."
        )
    if z.ndim != 2 or z.shape[1] != latent_dim:
        raise ValueError(
            f"this {network} takes codes of {latent_dim} numbers, one row for each, got the shape {tuple(z.shape)}."
        )
