"""Named, typed configurations: every checkpoint that ships comes from one of these.

A recipe says what network, which data and how to train; `RECIPES` holds one under each name. On the command line
`companion train NAME` runs it, and from Python

    from companion.recipes import RECIPES, make_checkpoint

    card = make_checkpoint(RECIPES["digit-cnn"], "digit-cnn", "runs/digit-cnn")
    print(card.metrics)

Settings are changed with `dataclasses.replace(RECIPES["digit-cnn"], steps=100)`. On one machine a recipe gives
the same weights every time; between machines the last digits differ, since the order of floating-point sums does.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from companion.data import DATASETS, ImageDataset, folder, load, to_float
from companion.data.digits import is_held_out
from companion.errors import unknown_name
from companion.evaluation import Evaluator
from companion.metrics.digit_cnn import DigitCNN
from companion.randomness import Source, initialisation
from companion.training import Batch, Objective, TrainingSettings, minimise, random_affine

Root = str | PathLike[str] | None


def without_held_out(train: ImageDataset) -> ImageDataset:
    """Returns a set of digits without the book's 1,000 held-out ones, found by content."""
    return train[~is_held_out(train.images)]


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingSettings, ABC):
    """What to train, on which data, and how; each model of the book has a subclass with its own settings.

    Attributes:
        data: a data set's name, or the path of a folder or zip with images of your own.
        image_size: rows and columns that images of your own are cut and resized to; data sets keep theirs.
        channels: 1 makes images of your own grey, 3 coloured.
    """

    data: str = "mnist"
    image_size: int = 28
    channels: Literal[1, 3] = 1

    @abstractmethod
    def build(self, dataset: ImageDataset) -> Objective:
        """Returns the network, initialised at random, with its losses.

        `objective` calls this where torch's global generator is seeded, so constructors need no seed.
        """

    @abstractmethod
    def evaluate(
        self, network: nn.Module, evaluator: Evaluator, root: Root = None
    ) -> dict[str, float]:
        """Measures what applies to this model, on images that it has not seen.

        Args:
            network: trained, on the evaluator's device, in evaluation mode.
            evaluator: has the measures, the number of samples, the seed, and the processes to share the work.
            root: folder of downloaded data sets, as for `companion.data.load`.

        Returns:
            Numbers by name. Names start with the data set and split where there could be a doubt.
        """

    def objective(self, dataset: ImageDataset) -> Objective:
        """Returns what `build` does, with weights that are a function of the recipe's seed."""
        with initialisation(self.seed):
            return self.build(dataset)

    @property
    def own_images(self) -> bool:
        """Whether `data` is the path of a folder or zip rather than a data set's name."""
        return self.data not in DATASETS and (
            "/" in self.data or "\\" in self.data or Path(self.data).expanduser().exists()
        )

    def training_data(self, root: Root = None) -> ImageDataset:
        """Returns the images to train on; MNIST comes without the book's 1,000 held-out digits.

        Raises:
            ValueError: if there is neither a data set nor a folder of that name; the nearest is suggested.
            FileNotFoundError, DataError: as from `companion.data.load` and `companion.data.folder`.
        """
        if self.own_images:
            return folder(self.data, size=self.image_size, channels=self.channels)
        if self.data not in DATASETS:
            remedy = "A folder or zip of images works too; write its path with a slash: ./name."
            raise unknown_name("data", self.data, DATASETS, remedy)
        found = load(self.data, "train", root=root)
        return without_held_out(found) if self.data == "mnist" else found

    def held_out(self, root: Root = None) -> ImageDataset:
        """Returns the images to measure on.

        For digits, whether `digits` or `mnist`, these are the book's 1,000; for the other data sets their test
        split; for images of your own, which have no split, those same images.
        """
        if self.own_images:
            return self.training_data(root)
        if self.data in ("digits", "mnist"):
            return load("digits", "test")
        return load(self.data, "test", root=root)


def with_settings(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """Returns a recipe with the settings of a card or a run, as JSON holds them; lists become tuples."""
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return replace(recipe, **{k: v for k, v in changes.items() if k != "name"})


# --- The recipes of the models, each with its class ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DigitCNNRecipe(Recipe):
    """The digit classifier behind every FID on digits: eight passes over MNIST, augmented by small affine maps.

    Attributes:
        width: channels of the first layers.
        degrees: largest rotation of the augmentation.
        scale: its largest relative change of size.
        shear: its largest shear.
        shift: its largest shift in pixels.
    """

    steps: int = 3680
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    warmup: float = 0.1
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    channels_last: bool = True
    width: int = 32
    degrees: float = 10.0
    scale: float = 0.1
    shear: float = 0.1
    shift: float = 2.0

    def build(self, dataset: ImageDataset) -> Objective:
        network = DigitCNN(width=self.width, classes=len(dataset.classes))

        def loss(batch: Batch, source: Source) -> dict[str, Tensor]:
            images, labels = batch
            x = random_affine(
                to_float(images),
                source,
                degrees=self.degrees,
                scale=self.scale,
                shear=self.shear,
                shift=self.shift,
            )
            return {"loss": F.cross_entropy(network(x).float(), labels)}

        return minimise(network, loss)

    def evaluate(
        self, network: nn.Module, evaluator: Evaluator, root: Root = None
    ) -> dict[str, float]:
        metrics = evaluator.accuracy(network, self.held_out(root))
        if self.data == "mnist":
            metrics |= evaluator.accuracy(network, load("mnist", "test", root=root))
        return metrics


RECIPES: dict[str, Recipe] = {
    "digit-cnn": DigitCNNRecipe(),
}
