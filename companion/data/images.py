"""Labelled images: bytes in storage, floats in [-1, 1] in models.

Images are kept as they were published, one byte a pixel and channel, in the order *image, channel, row,
column* ("NCHW"). Networks see `to_float` of them: float32 in [-1, 1], where -1 is byte 0 and 1 is byte 255.
The two types cannot be confused, because one is `UInt8` and the other `Float32`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.utils.data
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from companion.data.batch import Batch

D = TypeVar("D", bound="ImageDataset")
C = TypeVar("C", bound="CaptionedImages")

# What chooses images: a number, a slice, numbers, or a mask.
Selection = int | slice | Sequence[int] | np.ndarray | Tensor
# A sampler may overshoot [-1, 1] a little and is then clamped. Values beyond this cannot be an overshoot: they
# are bytes in [0, 255], standardised pixels, or a sampler that has diverged.
FAR_OUT_OF_RANGE = 3.0
# Channels, rows and columns of a handwritten digit.
DIGIT = (1, 28, 28)


def to_float(images: UInt8[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Maps bytes 0…255 to float32 in [-1, 1], linearly: x / 127.5 - 1.

    Raises:
        TypeError: the images are not bytes.
    """
    if images.dtype != torch.uint8:
        raise TypeError(
            f"to_float needs uint8 images, got {images.dtype}. Floats in [-1, 1] are already what a model "
            "takes; turn other floats into bytes first."
        )
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Maps floats in [-1, 1] to the nearest bytes; what overshoots slightly is clamped.

    It inverts `to_float` exactly.

    Raises:
        TypeError: the images are not floats.
        ValueError: a value is NaN or infinite, or lies beyond ±3, which no overshoot explains.
    """
    if not images.is_floating_point():
        raise TypeError(f"to_uint8 needs floats in [-1, 1], got {images.dtype}.")
    values = images.detach().to(torch.float32)
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(
            f"to_uint8 got {bad} NaN or infinite values among {values.numel()}. "
            "Look for the step that produced them; no byte stands for them."
        )
    if values.numel() and values.abs().amax() > FAR_OUT_OF_RANGE:
        raise ValueError(
            f"to_uint8 needs floats in [-1, 1], got values in [{values.min():g}, {values.max():g}]. "
            "If they are pixels in [0, 255], map them with x / 127.5 - 1; if a sampler diverged and you want "
            "to see it all the same, call clamp(-1, 1) first."
        )
    return values.add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Images with their labels, small enough for memory.

    Attributes:
        images: bytes in 0…255, in the order image, channel, row, column.
        labels: the class of each image, an index into `classes`.
        classes: the classes' names.
        name: the dataset's name, such as "digits".
        split: which part of it this is, such as "train".
        kind: "digits" if these are the handwritten digits 0…9, grey and 28×28, so that the digit classifier
            can judge them and generated ones like them; "images" for all others. Whoever makes the data set
            knows it; its name and shape do not tell (Fashion-MNIST has the same).

    Raises:
        TypeError: images are not uint8, or labels not int64, tensors.
        ValueError: a wrong number of dimensions, as many labels as images are not given, a label has no class,
            or the kind is unknown or cannot be.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    name: str
    split: str
    kind: Literal["digits", "images"] = "images"

    def __post_init__(self) -> None:
        where = f"{self.name}/{self.split}"
        if not isinstance(self.images, Tensor) or self.images.dtype != torch.uint8:
            kind = getattr(self.images, "dtype", type(self.images).__name__)
            raise TypeError(
                f"{where}: images must be a uint8 tensor, got {kind}. Floats: see to_uint8."
            )
        if not isinstance(self.labels, Tensor) or self.labels.dtype != torch.int64:
            kind = getattr(self.labels, "dtype", type(self.labels).__name__)
            raise TypeError(f"{where}: labels must be an int64 tensor, got {kind}.")
        if self.images.ndim != 4:
            raise ValueError(
                f"{where}: images must have 4 dimensions (image, channel, row, column), "
                f"got shape {tuple(self.images.shape)}."
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"{where}: {len(self.images)} images need labels of shape ({len(self.images)},), "
                f"got {tuple(self.labels.shape)}."
            )
        if len(self.labels):
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= len(self.classes):
                raise ValueError(
                    f"{where}: labels lie in {low}…{high}, but there are {len(self.classes)} classes; "
                    f"they must lie in 0…{len(self.classes) - 1}."
                )
        if self.kind not in ("digits", "images"):
            raise ValueError(f'{where}: kind must be "digits" or "images", got {self.kind!r}.')
        shape = tuple(self.images.shape[1:])
        if self.kind == "digits" and (shape != DIGIT or self.classes != tuple("0123456789")):
            raise ValueError(
                f'{where}: the kind "digits" has images of shape {DIGIT} and the classes 0…9, got {shape} and '
                f'{len(self.classes)} classes. Other images have the kind "images".'
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        n, c, h, w = self.images.shape
        return f"ImageDataset({self.name}/{self.split}: {n} images {c}×{h}×{w}, {len(self.classes)} classes)"

    def __getitem__(self, key: Selection) -> "ImageDataset":
        """Selects images by a number, a slice, a list or tensor of numbers, or a boolean mask.

        Raises:
            IndexError: a number is out of range, or a mask has another length than the dataset.
        """
        return self._take(self._positions(key))

    def _positions(self, key: Selection) -> Int64[Tensor, " m"]:
        n = len(self)
        if isinstance(key, slice):
            return torch.arange(n)[key] if (key.step or 1) > 0 else torch.tensor(range(n)[key])
        chosen = torch.as_tensor(key).reshape(-1).cpu()
        if chosen.dtype == torch.bool:
            if len(chosen) != n:
                raise IndexError(f"a mask of {len(chosen)} cannot select from {n} images.")
            return torch.nonzero(chosen)[:, 0]
        if chosen.numel() == 0:
            return chosen.to(torch.int64)
        if chosen.is_floating_point() or chosen.is_complex():
            raise IndexError(
                f"images are chosen by whole numbers or a mask, not by {chosen.dtype}."
            )
        chosen = chosen.to(torch.int64)
        if int(chosen.min()) < -n or int(chosen.max()) >= n:
            raise IndexError(
                f"image {int(chosen.max()) if chosen.max() >= n else int(chosen.min())} was asked for, "
                f"but {self.name}/{self.split} has {n} images."
            )
        return chosen % n

    def _take(self: D, positions: Int64[Tensor, " m"]) -> D:
        return replace(self, images=self.images[positions], labels=self.labels[positions])

    def floats(self) -> Float32[Tensor, "n c h w"]:
        """Returns all images as models take them: float32 in [-1, 1]."""
        return to_float(self.images)

    def shuffled(self, generator: torch.Generator) -> "ImageDataset":
        """Returns the same images and labels in a random order drawn from the generator."""
        return self._take(
            torch.randperm(len(self), generator=generator, device=generator.device).cpu()
        )

    def batch(self, indices: Selection, device: str | torch.device | None = None) -> Batch:
        """Returns what a loss is given: the chosen images as float32 in [-1, 1], and their labels.

        Args:
            indices: which images, as `dataset[indices]` takes them.
            device: where the batch shall be; where the images are if not given.

        Raises:
            IndexError: a number is out of range, or a mask has another length than the dataset.
        """
        return self.batch_at(self._positions(indices), device)

    def batch_at(
        self, positions: Int64[Tensor, " m"], device: str | torch.device | None = None
    ) -> Batch:
        """Returns what `batch` does, of positions that are known to be right: a training calls it at every step.

        A data set with more than images and labels adds its own parts here, and they reach the loss.

        Args:
            positions: of the images, 0 … n − 1.
            device: as for `batch`.
        """
        # Moved as bytes, a quarter of the floats; `part[positions]` does the same, eight times slower.
        images, labels = (
            _moved(part.index_select(0, positions.to(part.device)), device)
            for part in (self.images, self.labels)
        )
        return Batch(images=to_float(images), labels=labels)

    def as_torch(self) -> "TorchImages":
        """Returns the same images as a `torch.utils.data.Dataset` for a `DataLoader`.

        An item is an image, float32 "c h w" in [-1, 1], and its label, so that

            for images, labels in DataLoader(dataset.as_torch(), batch_size=64, shuffle=True): ...

        yields float32 "64 c h w" and int64 "64".
        """
        return TorchImages(self)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Float32[Tensor, "c h w"], int]]:
        """What a `DataLoader` asks for: `DataLoader(dataset, batch_size=64)` does what it does `as_torch`."""
        return self.as_torch().__getitems__(indices)

    def split_off(
        self, share: float, seed: int | np.integer
    ) -> tuple["ImageDataset", "ImageDataset"]:
        """Divides the images into those to train on and those to validate on, class by class.

        The validation part has round(share · n) images; of each class it has its share of that, rounded up or
        down, and it takes the last image of a class only if there is no other way. Both parts keep the order
        of the images. They depend on the labels, the share and the seed alone.

        Args:
            share: of the images to be split off, between 0 and 1.
            seed: which ones.

        Returns:
            Those to train on (split "train") and those split off (split "validation").

        Raises:
            ValueError: the share is not between 0 and 1, or so small or large that a part would be empty.
        """
        wanted = round(share * len(self)) if 0 < share < 1 else 0
        if not 0 < wanted < len(self):
            raise ValueError(
                f"share must be between 0 and 1 and leave both parts at least one image, got {share} of the "
                f"{len(self)} images of {self.name}/{self.split}."
            )
        chosen = _stratified(self.labels.cpu(), wanted, int(seed))
        parts = (~chosen, "train"), (chosen, "validation")
        train, validation = (
            replace(self._take(torch.nonzero(mask)[:, 0]), split=split) for mask, split in parts
        )
        return train, validation

    @cached_property
    def sha256(self) -> str:
        """The hash of the content: shape, then pixels, then labels as little-endian int64, in this order."""
        digest = hashlib.sha256()
        for part in self._content():
            digest.update(part)
        return digest.hexdigest()

    def _content(self) -> Iterator[bytes]:
        """What the hash is of; a data set with more than images and labels adds its own parts here."""
        yield repr(tuple(self.images.shape)).encode()
        yield self.images.contiguous().cpu().numpy().tobytes()
        yield self.labels.contiguous().cpu().numpy().astype("<i8").tobytes()


@dataclass(frozen=True, eq=False, repr=False)
class CaptionedImages(ImageDataset):
    """Images with a text each, which reaches the loss as `Batch.captions`.

    The hash of the content covers the captions as well, where there are any.

    Attributes:
        captions: the text of each image, or empty if there are none.

    Raises:
        TypeError, ValueError: as for `ImageDataset`, or if images and captions are not equally many.
    """

    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.captions and len(self.captions) != len(self):
            raise ValueError(
                f"{self.name}/{self.split}: {len(self)} images need as many captions, got {len(self.captions)}."
            )

    def _take(self: C, positions: Int64[Tensor, " m"]) -> C:
        captions = tuple(self.captions[i] for i in positions.tolist()) if self.captions else ()
        return replace(
            self,
            images=self.images[positions],
            labels=self.labels[positions],
            captions=captions,
        )

    def batch_at(
        self, positions: Int64[Tensor, " m"], device: str | torch.device | None = None
    ) -> Batch:
        """Returns the chosen images as `ImageDataset.batch_at` does, with their captions if there are any."""
        captions = tuple(self.captions[i] for i in positions.tolist()) if self.captions else None
        return replace(super().batch_at(positions, device), captions=captions)

    def _content(self) -> Iterator[bytes]:
        yield from super()._content()
        for caption in self.captions:
            text = caption.encode()
            # With its length, so that no two lists of captions read the same.
            yield len(text).to_bytes(8, "little") + text


class TorchImages(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The images of an `ImageDataset` one by one, as a `DataLoader` wants them (`ImageDataset.as_torch`)."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Float32[Tensor, "c h w"], int]:
        """Returns an image in [-1, 1] and its label.

        Raises:
            IndexError: there is no image of this number.
        """
        ((image, label),) = self.__getitems__([index])
        return image, label

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Float32[Tensor, "c h w"], int]]:
        """Returns many at once; a `DataLoader` asks so, and it is faster than one by one."""
        batch = self.dataset.batch(indices)
        return list(zip(batch.require_images(), batch.require_labels().tolist(), strict=True))


def _moved(rows: Tensor, device: str | torch.device | None) -> Tensor:
    """Returns rows on a device; on their way to a GPU nobody waits for them."""
    if device is not None and torch.device(device).type == "cuda" and rows.device.type == "cpu":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)


def _stratified(labels: Int64[Tensor, " n"], wanted: int, seed: int) -> Bool[Tensor, " n"]:
    """Chooses this many at random, of each class in proportion (the largest remainders are rounded up)."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    of_class = {int(k): order[labels[order] == k] for k in labels.unique()}
    # Whole numbers and remainders, so that equal remainders are equal.
    quotas = {k: divmod(wanted * len(members), len(labels)) for k, members in of_class.items()}
    taken = {k: quota for k, (quota, _) in quotas.items()}
    # The classes in random order, so that of equal remainders none is preferred. What has no remainder is not
    # rounded; there are always enough of the others.
    classes = [k for k in dict.fromkeys(labels[order].tolist()) if quotas[k][1]]
    classes.sort(key=lambda k: (taken[k] + 1 >= len(of_class[k]), -quotas[k][1]))
    for k in classes[: wanted - sum(taken.values())]:
        taken[k] += 1
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for k, members in of_class.items():
        chosen[members[: taken[k]]] = True
    return chosen
