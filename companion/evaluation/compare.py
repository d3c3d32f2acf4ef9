"""Two sets of images beside each other, wherever they come from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from companion.checkpoints import Card, checkpoint_names, load_card, load_checkpoint
from companion.data import DATASETS, ImageDataset, folder, load, to_uint8
from companion.data.sources import kind_of, splits_of
from companion.errors import unknown_name
from companion.evaluation.evaluator import Evaluator, Sampler, seen_by
from companion.measurement import Measurement
from companion.metrics.compare import compare
from companion.metrics.extractors import Extractor
from companion.randomness import derive

Loader = Callable[[str, torch.device], nn.Module]

# As many as most papers draw for their FID.
MOST_DRAWN = 50_000


@dataclass(frozen=True)
class Side:
    """Where the images of one side come from.

    Attributes:
        text: as the user named it.
        images: if they are there already.
        checkpoint: if they have to be drawn: its name or path.
    """

    text: str
    images: ImageDataset | None = None
    checkpoint: str | None = None


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        measurements: FID, KID, precision, recall and, where the features have classes, the Inception Score.
        features: by what the images were compared.
        real_images: how many.
        fake_images: how many.
    """

    measurements: list[Measurement]
    features: str
    real_images: int
    fake_images: int


def side(
    text: str,
    *,
    size: int | None = None,
    channels: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    root: str | PathLike[str] | None = None,
) -> Side:
    """Finds out what a user means by one side of a comparison.

    Args:
        text: a data set ("mnist", of which the test split is taken, or "mnist/train"), the name of a checkpoint that
            ships, the folder of a run, a .safetensors file, or else a folder or zip of images.
        size: rows and columns of images of one's own.
        channels: 1 makes them grey, 3 coloured.
        on_error: what to do about images that cannot be read, as for `companion.data.folder`.
        root: folder of downloaded data sets.

    Raises:
        ValueError: if it is none of these; the nearest name is suggested.
        OSError: if images or data sets cannot be read.
    """
    name, _, split = text.partition("/")
    if name in DATASETS and split in ("", *splits_of(name)):
        return Side(text, images=load(name, split or "test", root=root))
    path = Path(text).expanduser()
    if name in DATASETS and not path.exists():
        raise unknown_name("split", split, splits_of(name), f"{name!r} has these.")
    if text in checkpoint_names() or path.suffix == ".safetensors" or _is_run(path):
        return Side(text, checkpoint=text)
    if not path.exists() and "/" not in text and "\\" not in text:
        remedy = "A folder or zip of images, the folder of a run, or a .safetensors file works too."
        raise unknown_name("images", text, [*DATASETS, *checkpoint_names()], remedy)
    return Side(text, images=folder(path, on_error, size=size, channels=channels))


def _is_run(path: Path) -> bool:
    """Says whether a folder is that of a run, with a checkpoint or at least a log in it."""
    return path.is_dir() and (any(path.glob("*.safetensors")) or (path / "log.csv").is_file())


def compare_sides(
    real: Side,
    fake: Side,
    evaluator: Evaluator,
    *,
    most: int | None = None,
    k: int = 3,
    loader: Loader = load_checkpoint,
) -> Comparison:
    """Measures two sides of a comparison.

    Args:
        real: what the other is measured against.
        fake: the other.
        evaluator: with the device, the seed, and the extractor if one was chosen.
        most: images of each side at most, drawn at random; as many are drawn from a checkpoint. None takes all, and
            draws as many as the other side has, but at most 50,000.
        k: neighbours that precision and recall look at.
        loader: returns the network of a checkpoint, on a device; for checkpoints that build on others it is
            `companion.recipes.load_assembled`.

    Raises:
        ValueError: if the images differ in size or colour, nothing is known to compare them by, there are too few, or a
            checkpoint cannot draw images.
    """
    there = [len(s.images) for s in (real, fake) if s.images is not None]
    count = min([most or MOST_DRAWN, *there]) if there else most or evaluator.samples
    a, b = (_images(s, evaluator, count, most, loader) for s in (real, fake))
    shapes = [tuple(d.images.shape[1:]) for d in (a, b)]
    if shapes[0] != shapes[1]:
        sizes = [
            f"{s.text!r} are {'×'.join(map(str, shape))}"
            for s, shape in zip((real, fake), shapes, strict=True)
        ]
        channels, rows, _ = shapes[0]
        raise ValueError(
            f"the images of {sizes[0]}, those of {sizes[1]} (channels, rows, columns). Folders and zips are made alike "
            f"by image_size={rows} and channels={channels} (--image-size {rows} --channels {channels})."
        )
    extractor = evaluator.extractor_for(a)
    if extractor is None:
        raise ValueError(
            f"nothing is known by which to compare the images of {real.text!r}, {'×'.join(map(str, shapes[0]))}: "
            "choose features: digit-cnn (for grey 28×28 digits), inception with a file of its weights, or "
            "module:function of your own (--features, --weights)."
        )
    real_features, real_probabilities = _features(evaluator, extractor, a, f"real: {real.text}")
    fake_features, fake_probabilities = _features(evaluator, extractor, b, f"fake: {fake.text}")
    measured = compare(
        real_features,
        fake_features,
        real_probabilities,
        fake_probabilities,
        k=k,
        seed=evaluator.seed,
    )
    found = [replace(m, data=m.data or a.name, split=m.split or a.split) for m in measured]
    return Comparison(found, extractor.name, len(a), len(b))


def _images(
    one: Side, evaluator: Evaluator, count: int, most: int | None, loader: Loader
) -> ImageDataset:
    """Returns the images of a side: all there are, or those that are drawn, but not more than asked for."""
    if one.images is not None:
        if most is None or len(one.images) <= most:
            return one.images
        return one.images.shuffled(derive(evaluator.seed, "chosen images"))[:most]
    assert one.checkpoint is not None  # a side has images or a checkpoint
    card, network = load_card(one.checkpoint), loader(one.checkpoint, evaluator.device)
    if not isinstance(network, Sampler):
        kind = type(network).__name__
        raise ValueError(
            f"{one.text!r} (a network of the class {kind}) cannot draw images to compare; choose one that can."
        )
    drawn = evaluator.draw(network.sample, count, measure=to_uint8)
    # Nobody labels what is drawn; but a network of digits draws digits, which the digit classifier can judge.
    digits = kind_of_data(card) == "digits"
    return ImageDataset(
        images=drawn,
        labels=torch.zeros(len(drawn), dtype=torch.int64),
        classes=tuple("0123456789") if digits else ("drawn",),
        name=card.name,
        split="samples",
        kind="digits" if digits else "images",
    )


def kind_of_data(card: Card) -> str:
    """Returns the kind of the images that a checkpoint was trained on; older cards tell it by the data's name only."""
    name = card.data.get("name")
    usual = kind_of(name) if name in DATASETS else "images"
    return str(card.data.get("kind", usual))


def _features(
    evaluator: Evaluator, extractor: Extractor, images: ImageDataset, what: str
) -> tuple[Tensor, Tensor | None]:
    """Returns the features of images and, where the extractor has classes, their probabilities."""
    found = evaluator.each(
        lambda batch, _: seen_by(extractor, batch.require_images()), images, what
    )
    return found["features"], found.get("probabilities")
