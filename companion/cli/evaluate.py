"""`companion evaluate`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from companion.cli import DONE
from companion.cli.flags import (
    UsageError,
    require_at_least_one,
    require_features,
    subjects_and_options,
)
from companion.cli.output import as_json, require_free, table, write_json

if TYPE_CHECKING:
    from companion.checkpoints import Card
    from companion.recipes.base import Recipe, Splits


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure on, and where.

    Attributes:
        json: a file for the numbers; "-" prints JSON in place of the table.
        data: images to measure on in place of the checkpoint's own: a data set's name, of which the test split is
            taken, or a folder or zip of images.
        image_size: rows and columns that images of your own are cut and resized to.
        channels: 1 makes images of your own grey, 3 coloured.
        skip_bad_images: leave out images of your own that cannot be read, with a warning.
        features: what FID and its like look at: digit-cnn, inception, or module:function of your own; by default what
            goes with the data, which for other images than digits is nothing.
        weights: the file of Inception's weights, for --features inception.
        samples: images drawn from a network that can sample; FID and its like depend on their number.
        seed: of the samples.
        batch_size: images at a time; it does not change the numbers, except for rounding.
        devices: processes that share the work; they do not change the numbers either.
        accelerator: "auto" takes CUDA where there is a GPU.
        overwrite: write over a file that is there already.
        progress: show bars also where standard error is no terminal.
    """

    json: str | None = None
    data: str | None = None
    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    skip_bad_images: bool = False
    features: str | None = None
    weights: str | None = None
    samples: int = 1000
    seed: int = 0
    batch_size: int = 100
    devices: int = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    overwrite: bool = False
    progress: bool = False


ABOUT = """Measures a checkpoint by all that applies to it.

CHECKPOINT is the name of one that ships (companion list lists them), the folder of a run, or the path of a .safetensors
file with its card beside it.

It is measured on images that it has not seen: the test split of its data set. Images of your own have none, unless the
training had --test-data or --validation: then each number says that it is of the training images (…/train).

example: companion evaluate digit-cnn --json numbers.json"""


def run(arguments: Sequence[str]) -> int:
    """Runs `companion evaluate`."""
    prog = "companion evaluate CHECKPOINT"
    (name,), asked = subjects_and_options(EvaluateOptions(), arguments, prog, ABOUT)
    require_at_least_one(asked, "devices", "batch_size")
    require_features(asked.features, asked.weights)
    require_free(asked.json, asked.overwrite)

    from companion.checkpoints import load_card

    return _measure(name, load_card(name), asked)


def _measure(name: str, card: "Card", asked: EvaluateOptions) -> int:
    from companion.evaluation import Evaluator
    from companion.metrics.extractors import extractor
    from companion.recipes.base import Splits
    from companion.recipes.making import load_assembled, recipe_of, settings_of
    from companion.training import launch

    recipe = _on(recipe_of(card), asked)
    splits = Splits(recipe, classes=card.data.get("classes"))
    fabric = launch(asked.devices, 1, asked.accelerator, "32-true")
    chosen = extractor(asked.features, weights=asked.weights) if asked.features else None
    evaluator = Evaluator(
        fabric,
        samples=asked.samples,
        batch_size=asked.batch_size,
        seed=asked.seed,
        extractor=chosen,
        progress=asked.progress or None,
    )
    _require_fitting(card, splits)
    measurements = recipe.evaluate(load_assembled(name, fabric.device), evaluator, splits)
    if fabric.global_rank != 0:
        return DONE
    content: dict[str, Any] = {
        "checkpoint": card.name,
        "model": card.model,
        "parameters": card.parameters,
        "sha256": card.sha256,
        "data": asked.data or recipe.data,
        "evaluation": settings_of(evaluator),
        "device": str(fabric.device),
        "measurements": as_json(measurements),
    }
    if asked.json != "-":
        data = card.data["name"]
        print(f"{card.name}: {card.parameters:,} parameters, {card.steps:,} steps on {data}")
        print(table(measurements))
    for line in _remarks(recipe, splits):
        # To the error stream, as what is printed may be JSON for a program.
        print(line, file=sys.stderr)
    write_json(content, asked.json)
    return DONE


def _on(recipe: "Recipe", asked: EvaluateOptions) -> "Recipe":
    """Returns a recipe whose images to measure on are those that were asked for."""
    given = {k: getattr(asked, k) for k in ("image_size", "channels") if getattr(asked, k)}
    if asked.skip_bad_images:
        given["skip_bad_images"] = True
    if asked.data is not None:
        given |= {"test_data": asked.data, "validation": 0.0}
    elif given:
        flag = "--" + next(iter(given)).replace("_", "-")
        raise UsageError(f"{flag} is about the images of --data; give both, or neither.")
    return recipe.replace(**given)


def _require_fitting(card: "Card", splits: "Splits") -> None:
    """Raises `UsageError` if a network takes other images than those to measure on."""
    held_out = splits.held_out
    channels, side = card.config.get("channels", 1), card.config.get("size", 28)
    if tuple(held_out.images.shape[1:]) != (channels, side, side):
        found = "×".join(str(n) for n in held_out.images.shape[1:])
        raise UsageError(
            f"the images of {held_out.name!r} are {found}, but this network takes {channels}×{side}×{side} (channels, "
            f"rows, columns). For images of your own: --image-size {side} --channels {channels}."
        )


def _remarks(recipe: "Recipe", splits: "Splits") -> list[str]:
    """Says what the numbers do not: that some are missing, or are of images that the network has seen."""
    remarks = []
    if splits.has_full_test and splits.full_test is None:
        data = recipe.data
        remarks.append(
            f"the test split of {data!r} is left out; get it with: companion fetch {data}"
        )
    if splits.held_out.split == "train":
        remarks.append(
            "measured on the training images, as no others are known; for others give --data, or train with "
            "--validation or --test-data"
        )
    return remarks
