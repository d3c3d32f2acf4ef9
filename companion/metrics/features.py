"""Feature extractors as plain callables: images in, one row of numbers an image out.

The digit network ships with the package. Canonical Inception-v3, whose numbers papers report, needs a local file of
its weights. The two are never comparable. `companion.metrics.extractors` offers both under one interface, and
extractors of your own.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from companion.checkpoints import load_checkpoint
from companion.data.images import to_float, to_uint8
from companion.metrics.digit_cnn import DigitCNN
from companion.metrics.inception import WANTED, InceptionV3, load_inception

__all__ = [
    "WANTED",
    "check_images",
    "check_inception",
    "digit_features",
    "digit_features_and_probabilities",
    "digit_probabilities",
    "inception_features",
    "inception_features_and_probabilities",
    "inception_probabilities",
]


@cache
def _digit_cnn(device: torch.device) -> DigitCNN:
    model = load_checkpoint("digit-cnn", device).requires_grad_(False)
    assert isinstance(model, DigitCNN)  # the package's own checkpoint
    # A third faster on a CPU. Torch documents this form of `to`, but its overloads leave it out.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _in_batches(
    function: Callable[[Tensor], Tensor],
    images: Tensor,
    batch_size: int,
    convert: Callable[[Tensor], Tensor],
) -> Tensor:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    with torch.no_grad():
        return torch.cat([function(convert(part)) for part in images.split(batch_size)])


def check_images(
    images: Tensor, channels: int | None = None, size: tuple[int, int] | None = None
) -> None:
    """Checks that images are "n c h w", bytes or finite floats in [−1, 1], of so many channels and that size if given.

    Raises:
        TypeError: if they are neither floats nor bytes.
        ValueError: if the shape or the range is wrong, a value is NaN, or there are no images.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}.")
    wanted = f"(n, {channels or 'c'}, {f'{size[0]}, {size[1]}' if size else 'h, w'})"
    if (
        images.ndim != 4
        or (channels and images.shape[1] != channels)
        or (size and tuple(images.shape[2:]) != size)
    ):
        raise ValueError(f"images must have the shape {wanted}, got {tuple(images.shape)}.")
    if len(images) == 0:
        raise ValueError("there are no images: the first dimension is 0.")
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise TypeError(f"images must be floats in [-1, 1] or uint8, got {images.dtype}.")
    images = images.detach()
    if not torch.isfinite(images).all():
        raise ValueError("images hold NaN or infinite values; did the model diverge?")
    low, high = images.min().item(), images.max().item()
    if low < -1.001 or high > 1.001:
        raise ValueError(
            f"float images must lie in [-1, 1], got [{low:g}, {high:g}]. Map bytes with "
            "companion.data.to_float; clamp(-1, 1) what a sampler overshot."
        )


def _digits_to_float(images: Tensor) -> Tensor:
    values = to_float(images) if images.dtype == torch.uint8 else images.float()
    return values.contiguous(memory_format=torch.channels_last)


def digit_features(
    images: Float[Tensor, "n 1 28 28"] | UInt8[Tensor, "n 1 28 28"], batch_size: int = 64
) -> Float32[Tensor, "n d"]:
    """Returns the 64 features of the frozen digit classifier, for Fréchet distance, precision and recall.

    Args:
        images: grey digits, floats in [−1, 1] or bytes.
        batch_size: images at a time; it does not change the result.

    Returns:
        Non-negative features on the images' device.

    Raises:
        TypeError: if they are neither floats nor bytes.
        ValueError: if the shape or the range is wrong, a value is NaN, or there are no images.
    """
    check_images(images, 1, (28, 28))
    model = _digit_cnn(images.device)
    return _in_batches(model.features, images, batch_size, _digits_to_float)


def digit_probabilities(
    images: Float[Tensor, "n 1 28 28"] | UInt8[Tensor, "n 1 28 28"], batch_size: int = 64
) -> Float32[Tensor, "n 10"]:
    """Returns the class probabilities of the frozen digit classifier, for the Inception Score.

    Args:
        images: grey digits, floats in [−1, 1] or bytes.
        batch_size: images at a time; it does not change the result.

    Returns:
        p(y|x), each row summing to one, on the images' device.

    Raises:
        TypeError: if they are neither floats nor bytes.
        ValueError: if the shape or the range is wrong, a value is NaN, or there are no images.
    """
    check_images(images, 1, (28, 28))
    model = _digit_cnn(images.device)
    return _in_batches(lambda x: model(x).softmax(dim=1), images, batch_size, _digits_to_float)


def digit_features_and_probabilities(
    images: Float[Tensor, "n 1 28 28"] | UInt8[Tensor, "n 1 28 28"], batch_size: int = 64
) -> tuple[Float32[Tensor, "n d"], Float32[Tensor, "n 10"]]:
    """Returns what `digit_features` and `digit_probabilities` return, in half their time."""
    check_images(images, 1, (28, 28))
    model = _digit_cnn(images.device)
    features = _in_batches(model.features, images, batch_size, _digits_to_float)
    with torch.no_grad():
        return features, model.head(features).softmax(dim=1)


def _inception(weights: str | Path, device: torch.device) -> InceptionV3:
    path = Path(weights).expanduser().resolve()
    # A file that was replaced is another one; one that is missing is an error of the loader's.
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return _loaded_inception(path, stamp, device)


@lru_cache(maxsize=2)
def _loaded_inception(path: Path, stamp: int, device: torch.device) -> InceptionV3:
    return load_inception(path, device)


def check_inception(weights: str | Path) -> None:
    """Loads the network from its file, so that what is wrong with it is said before images are made or read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no weights of this network.
    """
    _inception(weights, torch.device("cpu"))


def _bytes(images: Tensor) -> Tensor:
    return images if images.dtype == torch.uint8 else to_uint8(images)


def inception_features(
    images: UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"],
    batch_size: int = 50,
    *,
    weights: str | Path,
) -> Float32[Tensor, "n 2048"]:
    """Returns the 2048 `pool3` features of the canonical Inception-v3, graph of 2015-12-05.

    Preprocessing, which changes FID by whole points when done differently: RGB bytes go in (floats in
    [−1, 1] are rounded to bytes first, as a saved PNG would be); the network resizes them to 299×299 by the
    bilinear rule of TensorFlow 1 (corners not aligned, no antialiasing) and maps v to (v − 128) / 128.

    Args:
        images: RGB images of any size, bytes or floats in [−1, 1].
        batch_size: images at a time.
        weights: the file that `companion.metrics.inception.load_inception` describes.

    Returns:
        Features on the images' device.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if they are neither floats nor bytes.
        ValueError: if the shape or the range is wrong, a value is NaN, there are no images, or the file holds
            no weights of this network.
    """
    check_images(images, 3, None)
    model = _inception(weights, images.device)
    return _in_batches(model.features, images, batch_size, _bytes)


def inception_features_and_probabilities(
    images: UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"],
    batch_size: int = 50,
    *,
    weights: str | Path,
) -> tuple[Float32[Tensor, "n 2048"], Float32[Tensor, "n 1008"]]:
    """Returns what `inception_features` and `inception_probabilities` return, in half their time."""
    features = inception_features(images, batch_size, weights=weights)
    with torch.no_grad():
        logits = _inception(weights, images.device).unbiased_logits(features)
    return features, logits.softmax(dim=1)


def inception_probabilities(
    images: UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"],
    batch_size: int = 50,
    *,
    weights: str | Path,
) -> Float32[Tensor, "n 1008"]:
    """Returns the class probabilities of the canonical Inception-v3, for the Inception Score of papers.

    As in the original code, the last layer's bias is left out and all 1,008 outputs of the graph take part in
    the softmax. Arguments, preprocessing and errors as in `inception_features`.

    Returns:
        p(y|x) on the images' device.
    """
    return inception_features_and_probabilities(images, batch_size, weights=weights)[1]
