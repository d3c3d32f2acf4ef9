"""What a loss is given: the samples of one step, each kind under its name."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one step; what a data set does not have is None.

    Attributes:
        images: in [−1, 1].
        labels: the class of each.
        captions: the text of each.
        tokens: whole numbers, of a caption or of an image, a row for each sample.

    Raises:
        ValueError: if there is nothing in it, or the parts differ in length.
    """

    images: Float[Tensor, "n c h w"] | None = None
    labels: Int64[Tensor, " n"] | None = None
    captions: tuple[str, ...] | None = None
    tokens: Int64[Tensor, "n t"] | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(part) for name, part in vars(self).items() if part is not None}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the parts of a batch must be equally many, got {lengths or 'none'}.")

    def __len__(self) -> int:
        return next(len(part) for part in vars(self).values() if part is not None)

    def to(self, device: str | torch.device) -> "Batch":
        """Returns the same batch with its tensors on another device."""

        def moved(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(device, non_blocking=True)

        return replace(
            self, images=moved(self.images), labels=moved(self.labels), tokens=moved(self.tokens)
        )

    def require_images(self) -> Float[Tensor, "n c h w"]:
        """Returns the images, in [−1, 1].

        Raises:
            ValueError: if the data have none.
        """
        if self.images is None:
            raise ValueError(self._lacks("images"))
        return self.images

    def labels_for(self, classes: int) -> Int64[Tensor, " n"] | None:
        """Returns what a network of so many classes is told: the labels, and nothing where it knows no classes.

        Raises:
            ValueError: if it knows classes and the data have no labels.
        """
        return self.require_labels() if classes else None

    def require_labels(self) -> Int64[Tensor, " n"]:
        """Returns the class of each sample.

        Raises:
            ValueError: if the data have no labels.
        """
        if self.labels is None:
            raise ValueError(self._lacks("labels"))
        return self.labels

    def require_captions(self) -> tuple[str, ...]:
        """Returns the text of each sample.

        Raises:
            ValueError: if the data have no captions.
        """
        if self.captions is None:
            raise ValueError(self._lacks("captions"))
        return self.captions

    def _lacks(self, part: str) -> str:
        there = ", ".join(name for name, found in vars(self).items() if found is not None)
        return f"the loss needs {part}, but a batch of these data has only {there}: train on data with {part}."
