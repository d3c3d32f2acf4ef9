"""The digit classifier behind every measure on digits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from companion.data import ImageDataset
from companion.data.batch import Batch
from companion.evaluation import Evaluator
from companion.measurement import Measurement
from companion.metrics.digit_cnn import DigitCNN, DigitCNNConfig
from companion.randomness import Source
from companion.recipes.base import Recipe, Splits, shape_of
from companion.training import Objective, random_affine, single_objective


@dataclass(frozen=True, kw_only=True)
class DigitCNNRecipe(Recipe[DigitCNN]):
    """The digit classifier behind every FID on digits: eight passes over MNIST, augmented by small affine maps.

    Attributes:
        degrees: largest rotation of the augmentation.
        scale: its largest relative change of size.
        shear: its largest shear.
        shift: its largest shift in pixels.
    """

    model: ClassVar[type[nn.Module]] = DigitCNN

    steps: int = 3680
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    warmup: float = 0.1
    channels_last: bool = True
    degrees: float = 10.0
    scale: float = 0.1
    shear: float = 0.1
    shift: float = 2.0
    network: DigitCNNConfig = field(default_factory=DigitCNNConfig)

    def classes(self, dataset: ImageDataset) -> int:
        """Returns the number of the data's classes."""
        return len(dataset.classes)

    def config(
        self, dataset: ImageDataset, parents: Mapping[str, nn.Module] | None = None
    ) -> DigitCNNConfig:
        """Returns the config for a data set of grey 28×28 images in at least two classes."""
        if tuple(dataset.images.shape[1:]) != (1, 28, 28):
            raise ValueError(
                f"the digit classifier takes grey 28×28 images, but those of {dataset.name!r} are {shape_of(dataset)}. "
                "Images of your own become so with image_size=28 and channels=1 (--image-size 28 --channels 1)."
            )
        if len(dataset.classes) < 2:
            raise ValueError(
                f"a classifier needs at least two classes, but {dataset.name!r} has only {dataset.classes[0]!r}. Give "
                "each class a folder of its own."
            )
        return super().config(dataset, parents)

    def losses(self, network: DigitCNN, parents: Mapping[str, nn.Module]) -> Objective:
        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            x = random_affine(
                batch.require_images(),
                source,
                degrees=self.degrees,
                scale=self.scale,
                shear=self.shear,
                shift=self.shift,
            )
            return {"loss": F.cross_entropy(network(x).float(), batch.require_labels())}

        return single_objective(network, loss)

    def evaluate(
        self, network: DigitCNN, evaluator: Evaluator, splits: Splits
    ) -> list[Measurement]:
        tests = splits.labelled_tests
        return [m for test in tests for m in evaluator.accuracy(network, test)]
