"""Named, typed configurations: every checkpoint that ships comes from one of these.

    python -m companion.recipes digit-cnn --data ~/data --output /tmp/mine

trains the digit classifier again. The numbers differ in the last digits between machines, since the
order of floating-point sums does.
"""

import platform
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from companion.checkpoints import (
    SHIPPED,
    Card,
    CheckpointError,
    half_precision,
    save_checkpoint,
)
from companion.data import DataError, ImageDataset, load
from companion.data.digits import is_held_out
from companion.metrics.digit_cnn import DigitCNN
from companion.training import accuracy, fit_classifier, random_affine


@dataclass(frozen=True)
class DigitCNNRecipe:
    """The digit classifier, trained on MNIST without the book's 1,000 held-out digits.

    Attributes:
        width: channels of the first layers.
        epochs: passes over the 59,000 images.
        batch_size: images a step.
        learning_rate: the peak of the schedule.
        weight_decay: of AdamW.
        degrees: largest rotation of the augmentation.
        scale: its largest relative change of size.
        shear: its largest shear.
        shift: its largest shift in pixels.
        bf16: train under bfloat16 autocast.
        seed: of initialisation, order and augmentation.
    """

    width: int = 32
    epochs: int = 8
    batch_size: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    degrees: float = 10.0
    scale: float = 0.1
    shear: float = 0.1
    shift: float = 2.0
    bf16: bool = True
    seed: int = 0


def without_held_out(train: ImageDataset) -> ImageDataset:
    """Returns a set of digits without the book's 1,000 held-out ones, found by content."""
    return train[~is_held_out(train.images)]


def train_digit_cnn(
    recipe: DigitCNNRecipe,
    train: ImageDataset,
    held_out: ImageDataset,
    test: ImageDataset,
    *,
    device: str = "cpu",
    name: str = "digit-cnn",
) -> tuple[DigitCNN, Card]:
    """Trains the digit classifier and measures it.

    Args:
        recipe: the settings.
        train: the training set; the book's held-out digits are left out of it here.
        held_out: the book's held-out digits.
        test: MNIST's own test set, for reporting.
        device: where to train.
        name: the checkpoint's name.

    Returns:
        The network with weights as they will be stored, rounded to half precision, and its card.
    """
    kept = without_held_out(train)
    # The initialisation draws from torch's global generator; the fork keeps the caller's own
    # untouched.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = DigitCNN(width=recipe.width)
    augment = partial(
        random_affine,
        degrees=recipe.degrees,
        scale=recipe.scale,
        shear=recipe.shear,
        shift=recipe.shift,
    )
    start, steps, loss = time.perf_counter(), 0, float("nan")
    progress = fit_classifier(
        model,
        kept.images,
        kept.labels,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        generator=torch.Generator().manual_seed(recipe.seed),
        augment=augment,
        bf16=recipe.bf16,
        device=device,
    )
    total = recipe.epochs * (len(kept) // recipe.batch_size)
    with tqdm(progress, total=total, desc=name, mininterval=5.0) as bar:
        for event in bar:
            steps = event.step
            loss = event.loss if steps == 1 else 0.98 * loss + 0.02 * event.loss
            if steps % 100 == 0:
                bar.set_postfix(loss=f"{loss:.4f}")
    seconds = time.perf_counter() - start
    model = model.cpu().eval()
    model.load_state_dict(half_precision(model))
    card = Card(
        name=name,
        model="companion.metrics.digit_cnn.DigitCNN",
        config={"width": recipe.width, "classes": 10},
        recipe={"name": "digit-cnn"} | asdict(recipe),
        data={
            "name": train.name,
            "split": train.split,
            "images": len(kept),
            "sha256": kept.sha256,
            "left out": len(train) - len(kept),
            "held out": f"{held_out.name}/{held_out.split}",
            "held out sha256": held_out.sha256,
        },
        steps=steps,
        seed=recipe.seed,
        seconds=round(seconds, 1),
        device=f"{device} ({platform.machine()}, {torch.get_num_threads()} threads)",
        metrics={
            "final training loss, nats": round(loss, 5),
            f"{held_out.name}/{held_out.split} accuracy": accuracy(
                model, held_out.images, held_out.labels
            ),
            f"{test.name}/{test.split} accuracy": accuracy(model, test.images, test.labels),
        },
    )
    return model, card


def digit_cnn(
    recipe: Annotated[DigitCNNRecipe, tyro.conf.arg(name="")] = DigitCNNRecipe(),
    data: Path | None = None,
    output: Path = SHIPPED,
    device: str = "cpu",
) -> None:
    """Trains the digit classifier and writes its checkpoint.

    Args:
        recipe: the settings.
        data: folder of downloaded data sets; by default the usual cache.
        output: folder for the checkpoint; by default the package's own.
        device: where to train.
    """
    model, card = train_digit_cnn(
        recipe,
        load("mnist", "train", root=data),
        load("digits", "test"),
        load("mnist", "test", root=data),
        device=device,
    )
    card = save_checkpoint(model, card, output)
    print(f"{card.name}: {card.metrics}")


def main(arguments: list[str] | None = None) -> None:
    """Runs a recipe from the command line; what the user can mend is said without a traceback, with exit code 1."""
    try:
        tyro.extras.subcommand_cli_from_dict({"digit-cnn": digit_cnn}, args=arguments)
    except (DataError, CheckpointError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
