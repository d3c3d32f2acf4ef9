"""What every recipe has: the settings of a training, its data, a network's config, and what to measure."""

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from companion import checks
from companion.checkpoints.weights import config_class
from companion.data import DATASETS, DataError, ImageDataset, folder, load
from companion.data.digits import is_held_out
from companion.data.images import CaptionedImages
from companion.data.sources import classes_of, embedded, kind_of
from companion.errors import unknown_name
from companion.evaluation import Evaluator
from companion.measurement import Measurement
from companion.randomness import initialisation
from companion.training import Objective, TrainingSettings

Root = str | PathLike[str] | None
R = TypeVar("R", bound="Recipe")
# A recipe's network.
N = TypeVar("N", bound=nn.Module)

# What a network's config says of the data; the data say it themselves.
FROM_DATA = ("channels", "size", "classes", "merges", "known_words")
# A weight, its gradient, AdamW's two moments and the average of the weights, four bytes each.
BYTES_PER_PARAMETER = 20


def without_held_out(train: ImageDataset) -> ImageDataset:
    """Returns a set of digits without the book's 1,000 held-out ones, found by content."""
    return train[~is_held_out(train.images)]


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingSettings, ABC, Generic[N]):
    """What to train, on which data, and how; each model of the book has a subclass with its own settings.

    Attributes:
        data: a data set's name, or the path of a folder or zip with images of your own.
        test_data: images to measure on, in place of the data set's own: a name or a path as well. Images of your own
            have no test split: with neither this nor `validation` the training images are measured.
        validation: share of images of your own that is kept out of the training, drawn class by class, to measure on.
        image_size: rows and columns that images of your own are cut and resized to; None keeps their size.
        channels: 1 makes images of your own grey, 3 coloured; None leaves them as they are.
        skip_bad_images: leave out images of your own that cannot be read, with a warning, in place of an error.
        network: the config of the network; what it says of the data (channels, size, classes) is theirs to say.
    """

    data: str = "mnist"
    test_data: str | None = None
    validation: float = 0.0
    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    skip_bad_images: bool = False
    network: Any

    # The network's class.
    model: ClassVar[type[nn.Module]]

    def __post_init__(self) -> None:
        super().__post_init__()
        config = config_class(self.model)
        if not isinstance(self.network, config):
            raise TypeError(
                f"network must be a {config.__name__}, got {type(self.network).__name__}."
            )
        checks.number(0, 1, validation=self.validation)
        if self.validation and self.test_data is not None:
            raise ValueError(
                "validation and test_data both say what to measure on; give one of them."
            )
        if self.validation and not is_path(self.data):
            raise ValueError(
                f"validation is for images of your own; {self.data!r} has a test split. Leave it out."
            )
        if self.image_size is not None:
            checks.whole(1, 4096, image_size=self.image_size)

    # --- Settings ---------------------------------------------------------------------------------------------

    def replace(self: R, **settings: Any) -> R:
        """Returns the recipe with other settings, of its own or of its network's config.

        Raises:
            ValueError: for a setting that neither has, or a value that is not allowed.
        """
        network = settings.pop("network", self.network)
        own = {f.name for f in fields(self)} - {"network"}
        inner = network_settings(network)
        for name in settings:
            if name not in own and name not in inner:
                raise unknown_name("setting", name, own | inner.keys())
        mine = {name: value for name, value in settings.items() if name in own}
        others = {name: value for name, value in settings.items() if name not in own}
        if others:
            if "size" in {f.name for f in fields(network)}:
                # The data say the size; until they do, it is one that goes with all other settings.
                others["size"] = self.place_holder(inner | others)
            network = dataclasses.replace(network, **others)
        return dataclasses.replace(self, network=network, **mine)

    def settings(self) -> dict[str, Any]:
        """Returns all settings by name, those of the network beside those of the recipe."""
        mine = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "network"}
        return mine | network_settings(self.network)

    # --- The network ------------------------------------------------------------------------------------------

    def place_holder(self, settings: Mapping[str, Any]) -> int:
        """Returns a side of images for which a network of these settings can be built.

        It stands in the config until the data say theirs; then `config` checks the settings again. Recipes override
        this where the network takes some settings for some sizes only, such as patches, which have to tile the images.
        """
        return int(config_class(self.model)().size)

    def classes(self, dataset: ImageDataset) -> int:
        """Returns how many classes the network distinguishes: none, unless the recipe says so."""
        return 0

    def config(self, dataset: ImageDataset, parents: Mapping[str, nn.Module] | None = None) -> Any:
        """Returns the network's config for the images of a data set, and for the networks that it builds on.

        Raises:
            ValueError: if the network does not take such images.
        """
        _, channels, rows, columns = dataset.images.shape
        found = {"channels": channels, "size": rows, "classes": self.classes(dataset)}
        known = {f.name for f in fields(self.network)}
        if rows != columns:
            raise ValueError(
                f"the images of {dataset.name!r} are {rows}×{columns}, but the networks take square ones; "
                f"image_size={min(rows, columns)} cuts and resizes them (--image-size {min(rows, columns)})."
            )
        return dataclasses.replace(
            self.network, **{name: value for name, value in found.items() if name in known}
        )

    def parents(self) -> Mapping[str, str | Path]:
        """Returns the checkpoints that this training builds on, such as a VQ-VAE under a prior, by their roles."""
        return {}

    @abstractmethod
    def losses(self, network: N, parents: Mapping[str, nn.Module]) -> Objective:
        """Returns what to train of a network, and by which losses.

        Args:
            network: of the class `model`.
            parents: the networks that `parents` names, frozen, by their roles.
        """

    def objective(
        self,
        dataset: ImageDataset,
        parents: Mapping[str, nn.Module] | None = None,
        device: str | torch.device = "cpu",
    ) -> Objective:
        """Returns a new network with its losses; its weights are a function of the recipe's seed.

        Args:
            dataset: its images say the network's channels and size.
            parents: the networks that it builds on, by their roles.
            device: on which it will be trained, whose memory must suffice.

        Raises:
            ValueError: if the network does not take such images, or is too large for the memory.
        """
        config = self.config(dataset, parents)
        require_memory(self.model, config, torch.device(device))
        with initialisation(self.seed):
            network = self.model(config)
        # Of this class by construction; a class variable cannot name a type parameter.
        objective = self.losses(cast(N, network), parents or {})
        return dataclasses.replace(objective, parents=dict(parents or {}))

    # --- Data and measures ------------------------------------------------------------------------------------

    def check(self, splits: "Splits", evaluator: Evaluator) -> None:
        """Makes sure, before any step is taken, that what is trained can be measured afterwards.

        Raises:
            ValueError: if it cannot; the message says what to change.
            OSError: if the images to measure on cannot be read.
        """
        train, held_out = splits.train, splits.held_out
        if train.images.shape[1:] != held_out.images.shape[1:]:
            a, b = shape_of(train), shape_of(held_out)
            raise ValueError(
                f"the training images are {a}, but those to measure on ({held_out.name!r}) are {b}. For images of your "
                "own, image_size and channels make them alike (--image-size, --channels)."
            )
        if self.classes(train):
            _ = splits.labelled_tests  # raises for a class that the network does not know

    def assemble(self, network: N, parents: Mapping[str, nn.Module]) -> nn.Module:
        """Returns a trained network as it is used and measured: by itself, or with what it builds on.

        A prior over codes, say, is put together with the decoder of its parent, so that images can be drawn.

        Args:
            network: of the class `model`.
            parents: the networks that `parents` names, by their roles.
        """
        return network

    @abstractmethod
    def evaluate(self, network: Any, evaluator: Evaluator, splits: "Splits") -> list[Measurement]:
        """Measures what applies to this model, on images that it has not seen.

        Args:
            network: trained, as `assemble` returns it, on the evaluator's device, in evaluation mode.
            evaluator: has the measures, the number of samples, the seed, and the processes to share the work.
            splits: the images to measure on, and those it was trained on.
        """


class Splits:
    """The images of a recipe, each set loaded once and not before it is needed.

    Args:
        recipe: which says what they are.
        root: folder of downloaded data sets, as for `companion.data.load`.
        classes: the names of the network's classes, in order, where they are known without the training images.

    Raises:
        ValueError: if there is neither a data set nor a folder of a name; the nearest is suggested.
    """

    def __init__(
        self, recipe: Recipe, root: Root = None, *, classes: Sequence[str] | None = None
    ) -> None:
        self.recipe, self.root, self._classes = recipe, root, classes
        for name in (recipe.data, recipe.test_data):
            if name is not None and not is_path(name) and name not in DATASETS:
                remedy = "A folder or zip of images works too; write its path with a slash: ./name."
                raise unknown_name("data", name, DATASETS, remedy)

    def _load(self, data: str, split: str) -> ImageDataset:
        if not is_path(data):
            return load(data, split, root=self.root)
        try:
            found = folder(
                data,
                on_error="skip" if self.recipe.skip_bad_images else "raise",
                size=self.recipe.image_size,
                channels=self.recipe.channels,
            )
        except ValueError as error:
            if self.recipe.image_size is not None or "size=" not in str(error):
                raise
            # `folder` tells its own argument; whoever trains has another, and a flag.
            raise ValueError(f"{error} For a recipe: image_size=32 (--image-size 32).") from error
        return dataclasses.replace(found, split=split)

    @cached_property
    def _own(self) -> tuple[ImageDataset, ImageDataset | None]:
        """Images of one's own to train on, and to measure on, where a share of them is kept out."""
        everything = self._load(self.recipe.data, "train")
        if not self.recipe.validation:
            return everything, None
        return everything.split_off(self.recipe.validation, self.recipe.seed)

    @cached_property
    def train(self) -> ImageDataset:
        """The images to train on; sets of digits come without the book's 1,000 held-out ones.

        Raises:
            FileNotFoundError, DataError: as from `companion.data.load` and `companion.data.folder`.
            ValueError: if images of one's own differ in size.
        """
        data = self.recipe.data
        if is_path(data):
            return self._own[0]
        found = self._load(data, "train")
        # The embedded digits are divided already.
        return without_held_out(found) if found.kind == "digits" and not embedded(data) else found

    @cached_property
    def held_out(self) -> ImageDataset:
        """The images to measure on.

        For sets of digits these are the book's 1,000; for the other data sets their test
        split; for images of your own those of `test_data`, or the `validation` share, or else, as `split` says, the
        training images themselves.

        Raises:
            FileNotFoundError, DataError, ValueError: as from `train`.
        """
        data, other = self.recipe.data, self.recipe.test_data
        if other is not None:
            found = self._load(other, "test")
            return with_classes(found, self.classes) if same_classes(found, self.classes) else found
        if is_path(data):
            return self._own[0] if self._own[1] is None else self._own[1]
        return load("digits", "test") if kind_of(data) == "digits" else self._load(data, "test")

    @property
    def has_full_test(self) -> bool:
        """Whether the data have a test split of their own beside `held_out`, as MNIST's 10,000 test digits are."""
        data = self.recipe.data
        if is_path(data) or self.recipe.test_data is not None:
            return False
        return kind_of(data) == "digits" and not embedded(data)

    @cached_property
    def full_test(self) -> ImageDataset | None:
        """That test split, if there is one and it is on disk.

        A checkpoint that ships can so be measured offline, on the held-out digits alone: test digits that are not on
        disk are left out, and never fetched here. Whoever wants them measured says so by `test_data="mnist"`.
        """
        if not self.has_full_test:
            return None
        try:
            return load(self.recipe.data, "test", root=self.root, download=False)
        except DataError:
            return None

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of the training images, which are not loaded where their names are known."""
        data = self.recipe.data
        if self._classes is not None:
            return tuple(self._classes)
        if is_path(data):
            return self.train.classes
        return classes_of(data)

    @property
    def labelled_tests(self) -> list[ImageDataset]:
        """`tests` with labels that count in `classes`.

        Raises:
            ValueError: if one of them has a class that is not among those.
        """
        return [with_classes(test, self.classes) for test in self.tests]

    @property
    def tests(self) -> list[ImageDataset]:
        """`held_out` and, where there is one, `full_test`."""
        return [self.held_out] + ([] if self.full_test is None else [self.full_test])


# --- Parts --------------------------------------------------------------------------------------------------------


def network_settings(config: Any) -> dict[str, Any]:
    """Returns what a network's config says, without what the data say."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in FROM_DATA}


def probe(
    encode: Callable[[Tensor], Tensor], evaluator: Evaluator, splits: Splits
) -> list[Measurement]:
    """Measures codes by `Evaluator.linear_probe`; nothing where the images to measure on have classes of their own."""
    train, test = splits.train, splits.held_out
    if not same_classes(test, train.classes):
        return []
    return evaluator.linear_probe(encode, train, with_classes(test, train.classes))


def is_path(data: str) -> bool:
    """Says whether data are a folder or zip of images rather than a data set of a name."""
    return data not in DATASETS and (
        "/" in data or "\\" in data or Path(data).expanduser().exists()
    )


def with_classes(dataset: ImageDataset, classes: Sequence[str]) -> ImageDataset:
    """Returns a data set whose labels count in the given classes, which are found by their names.

    Raises:
        ValueError: if the data set has a class that is not among them.
    """
    strange = [name for name in dataset.classes if name not in classes]
    if strange:
        raise ValueError(
            f"{dataset.name!r} has the class {strange[0]!r}, but the network knows {listed(classes)}. Name the folders "
            "of its classes like those."
        )
    places = torch.tensor([classes.index(name) for name in dataset.classes])
    return dataclasses.replace(dataset, labels=places[dataset.labels.cpu()], classes=tuple(classes))


def same_classes(dataset: ImageDataset, classes: Sequence[str]) -> bool:
    """Says whether all classes of a data set are among the given ones."""
    return set(dataset.classes) <= set(classes)


def captions_of(dataset: ImageDataset) -> tuple[str, ...]:
    """Returns the captions of a data set.

    Raises:
        ValueError: if it has none; the message says what would.
    """
    captions = dataset.captions if isinstance(dataset, CaptionedImages) else ()
    if not captions:
        raise ValueError(
            f"the images of {dataset.name!r} have no captions, which this model needs: take scenes (--data scenes), or "
            "a folder of images of your own with a file captions.jsonl."
        )
    return captions


def listed(names: Sequence[str], most: int = 10) -> str:
    """Returns names for a message, not too many of them."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def shape_of(dataset: ImageDataset) -> str:
    """Says how large images are, in words."""
    _, channels, rows, columns = dataset.images.shape
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    return f"{kind} {rows}×{columns}"


def memory_of(device: torch.device) -> int:
    """Returns the bytes of memory that a device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**63  # Windows does not tell


def require_memory(model: type[nn.Module], config: Any, device: torch.device) -> None:
    """Raises `ValueError` if a network cannot be trained in a device's memory; nothing is allocated to find out."""
    try:
        with torch.device("meta"):
            parameters = sum(p.numel() for p in model(config).parameters())
    except (RuntimeError, OverflowError) as error:
        raise ValueError(
            f"the network of {config} cannot be built: its layers have more numbers than a tensor can hold. Lower its "
            "widths."
        ) from error
    needed, there = parameters * BYTES_PER_PARAMETER, memory_of(device)
    if needed > there:
        raise ValueError(
            f"the network has {parameters:,} parameters, whose training needs at least {needed / 2**30:,.1f} GiB, but "
            f"{device} has {there / 2**30:,.1f} GiB. Lower its widths."
        )
