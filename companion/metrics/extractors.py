"""Feature extractors under one interface: the digit CNN, Inception from a local file, or a function of your own.

Which one suits is decided by the kind of the data (`default_extractor`), or by name (`extractor`).
"""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from companion.data.images import ImageDataset, to_float
from companion.errors import unknown_name
from companion.metrics import features as known

Images = Float[Tensor, "n c h w"] | UInt8[Tensor, "n c h w"]
NAMES = ("digit-cnn", "inception")


@dataclass(frozen=True)
class Extractor:
    """Turns images into rows of numbers that metrics compare.

    Attributes:
        name: as it was chosen, such as "digit-cnn".
        accepts: the images it takes, in words.
        features: images "n c h w", floats in [−1, 1] or bytes, to features "n d"; the batch size does not matter.
        probabilities: images to class probabilities "n classes", for the Inception Score; None if it has no classes.
        both: images to features and probabilities (or None) at the price of one.
    """

    name: str
    accepts: str
    features: Callable[[Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor] | None
    both: Callable[[Tensor], tuple[Tensor, Tensor | None]]


def extractor(name: str, *, weights: str | Path | None = None, batch_size: int = 64) -> Extractor:
    """Returns an extractor by its name.

    Args:
        name: "digit-cnn", the classifier that ships with the package, for grey 28×28 digits; "inception", the
            network of the FIDs in papers, for images of any size (grey ones are taken as equal red, green and blue);
            or "module:function" of your own. Such a module is looked for where you are as well; the function takes
            floats in [−1, 1], "n c h w", and returns "n d".
        weights: the file of Inception's weights, which `companion.metrics.inception.load_inception` describes.
        batch_size: images at a time.

    Raises:
        FileNotFoundError: if there is no such file of weights.
        ValueError: if the name is unknown, weights are missing or given where none are wanted, their file holds
            another network, or the function does not exist or cannot be called.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if weights is not None and name != "inception":
        raise ValueError(f"weights are for the extractor 'inception' alone, not for {name!r}.")
    if name == "digit-cnn":
        return _digit_cnn(batch_size)
    if name == "inception":
        return _inception(weights, batch_size)
    if ":" in name:
        return _own(name, _function(name), batch_size)
    raise unknown_name("feature extractor", name, NAMES, "Or give module:function of your own.")


def default_extractor(dataset: ImageDataset) -> Extractor | None:
    """Returns the extractor that suits a data set's kind: the digit CNN for grey 28×28 digits, else None.

    For other images there is none that would ship: choose Inception with a file of its weights, or your own.
    """
    return extractor("digit-cnn") if dataset.kind == "digits" else None


def _digit_cnn(batch_size: int) -> Extractor:
    return Extractor(
        name="digit-cnn",
        accepts="grey 28×28 digits",
        features=functools.partial(known.digit_features, batch_size=batch_size),
        probabilities=functools.partial(known.digit_probabilities, batch_size=batch_size),
        both=functools.partial(known.digit_features_and_probabilities, batch_size=batch_size),
    )


def _inception(weights: str | Path | None, batch_size: int) -> Extractor:
    if weights is None:
        raise ValueError(
            f"the extractor 'inception' needs a local file of its weights (weights=…). {known.WANTED}"
        )
    known.check_inception(weights)

    def of(function: Callable[..., Any]) -> Callable[[Tensor], Any]:
        return lambda images: function(_coloured(images), batch_size, weights=weights)

    return Extractor(
        name="inception",
        accepts="grey or RGB images of any size",
        features=of(known.inception_features),
        probabilities=of(known.inception_probabilities),
        both=of(known.inception_features_and_probabilities),
    )


def _coloured(images: Tensor) -> Tensor:
    if isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    return images


# ---------------------------------------------------------------- functions of the user's own


@contextlib.contextmanager
def _working_folder_first() -> Iterator[None]:
    """Lets modules be imported from the working folder, as `python -m` does and an installed command does not."""
    before, here = list(sys.path), str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def _function(name: str) -> Callable[[Tensor], Tensor]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or ":" in attribute:
        raise ValueError(
            f"the extractor {name!r} must be written module:function, such as mine:features."
        )
    with _working_folder_first():
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # What the module itself imports may be missing as well; then the name is another.
            raise ValueError(
                f"the extractor {name!r}: there is no module {error.name!r}, neither installed nor in {Path.cwd()}."
            ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"the extractor {name!r}: {module_name} has no {attribute!r}.")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(
            f"the extractor {name!r} is {type(found).__name__}, which cannot be called; it must take images "
            "and return features."
        )
    return found


def _own(name: str, function: Callable[[Tensor], Tensor], batch_size: int) -> Extractor:
    def features(images: Tensor) -> Tensor:
        known.check_images(images)
        with torch.no_grad():
            parts = [
                _checked(name, function(_floats(part)), len(part))
                for part in images.split(batch_size)
            ]
        widths = sorted({part.shape[1] for part in parts})
        if len(widths) > 1:
            raise ValueError(
                f"{name} returned {widths[0]} features for some images and {widths[-1]} for others; "
                "every image must have as many."
            )
        return torch.cat(parts)

    return Extractor(
        name=name,
        accepts="what the function takes",
        features=features,
        probabilities=None,
        both=lambda images: (features(images), None),
    )


def _floats(images: Tensor) -> Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images.float()


def _checked(name: str, found: Any, n: int) -> Tensor:
    """Checks what a function of the user's own returned for n images."""
    wanted = f"it must return a tensor of floats with a row for each of the {n} images, (n, d)"
    if not isinstance(found, Tensor):
        raise ValueError(f"{name} returned {type(found).__name__}; {wanted}.")
    if not found.is_floating_point():
        raise ValueError(f"{name} returned {found.dtype}; {wanted}.")
    if found.ndim != 2 or len(found) != n or found.shape[1] == 0:
        raise ValueError(f"{name} returned the shape {tuple(found.shape)}; {wanted}.")
    found = found.detach().float()
    if not torch.isfinite(found).all():
        raise ValueError(f"{name} returned NaN or infinite features; metrics of them mean nothing.")
    return found
