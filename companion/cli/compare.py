"""`companion compare`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from companion.cli import DONE
from companion.cli.flags import (
    UsageError,
    require_at_least_one,
    require_features,
    subjects_and_options,
)
from companion.cli.output import as_json, require_free, table, write_json


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What to compare by, and where.

    Attributes:
        features: what the images are compared by: digit-cnn, inception (with --weights), or module:function of your
            own, which takes floats in [−1, 1] "n c h w" and returns "n d"; by default what goes with the real images.
        weights: the file of Inception's weights.
        n: images of each side at most, drawn at random; as many are drawn from a checkpoint. By default all of them,
            and from a checkpoint as many as the other side has.
        k: neighbours that precision and recall look at.
        image_size: rows and columns that images of your own are cut and resized to.
        channels: 1 makes images of your own grey, 3 coloured.
        skip_bad_images: leave out images that cannot be read, with a warning.
        seed: of what is drawn.
        batch_size: images at a time.
        accelerator: "auto" takes CUDA where there is a GPU.
        json: a file for the numbers; "-" prints JSON in place of the table.
        overwrite: write over a file that is there already.
        progress: show bars also where standard error is no terminal.
    """

    features: str | None = None
    weights: str | None = None
    n: int | None = None
    k: int = 3
    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    skip_bad_images: bool = False
    seed: int = 0
    batch_size: int = 100
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    json: str | None = None
    overwrite: bool = False
    progress: bool = False


ABOUT = """Compares two sets of images: FID, KID, precision, recall and Inception Score, each with an error bar.

REAL and FAKE are each a folder or zip of images, a data set's split (digits/test, mnist/train), the name of a
checkpoint that ships, the folder of a run, or a .safetensors file with its card beside it; from a checkpoint samples
are drawn.

example: companion compare digits/test gan --json numbers.json"""


def run(arguments: Sequence[str]) -> int:
    """Runs `companion compare`."""
    prog = "companion compare REAL FAKE"
    (real, fake), asked = subjects_and_options(CompareOptions(), arguments, prog, ABOUT)
    require_at_least_one(asked, "k", "batch_size")
    if asked.n is not None and asked.n < 10:
        raise UsageError(f"--n must be at least 10, got {asked.n}.")
    require_features(asked.features, asked.weights)
    require_free(asked.json, asked.overwrite)

    from companion.evaluation import Evaluator, compare_sides, side
    from companion.metrics.extractors import extractor
    from companion.recipes import load_assembled
    from companion.training import launch

    first, second = (
        side(
            text,
            size=asked.image_size,
            channels=asked.channels,
            on_error="skip" if asked.skip_bad_images else "raise",
        )
        for text in (real, fake)
    )
    evaluator = Evaluator(
        launch(1, 1, asked.accelerator, "32-true"),
        batch_size=asked.batch_size,
        seed=asked.seed,
        extractor=extractor(asked.features, weights=asked.weights) if asked.features else None,
        progress=asked.progress or None,
    )
    found = compare_sides(first, second, evaluator, most=asked.n, k=asked.k, loader=load_assembled)
    if asked.json != "-":
        print(
            f"{found.real_images:,} real images of {real}, {found.fake_images:,} fake ones of {fake}, "
            f"by {found.features}"
        )
        print(table(found.measurements))
    content = {
        "real": {"name": real, "images": found.real_images},
        "fake": {"name": fake, "images": found.fake_images},
        "features": found.features,
        "seed": asked.seed,
        "measurements": as_json(found.measurements),
    }
    write_json(content, asked.json)
    return DONE
