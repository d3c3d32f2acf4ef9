"""Measures shipped checkpoints again, by their recipes' own evaluation, and rewrites their cards; weights stay.

    python book/tools/remeasure.py                  all of them
    python book/tools/remeasure.py vae gan          these

On the CPU and in float32. With `--root` or $COMPANION_DATA naming a folder that has MNIST, its own test digits are measured
as well, as the shipped cards need; without MNIST nothing is measured.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from companion.checkpoints import (
    SHIPPED,
    Card,
    checkpoint_names,
    load_card,
    load_checkpoint,
    save_card,
)
from companion.data import DATASETS, load
from companion.evaluation import Evaluator
from companion.recipes import RECIPES, Splits, recipe_of
from companion.recipes.making import provenance, settings_of


def measured(card: Card, evaluator: Evaluator, root: Path | None) -> Card:
    """Returns a checkpoint's card with everything measured anew, and with its recipe's settings of today."""
    recipe = recipe_of(card)
    if recipe.data in DATASETS:
        recipe = recipe.replace(image_size=None, channels=None)  # which are for images of one's own
    if recipe.data == "mnist":
        load(
            "mnist", "test", root=root, download=False
        )  # else the card would lose what it says of them
    splits = Splits(recipe, root)
    network = load_checkpoint(card.name)
    found = recipe.evaluate(network, evaluator, splits)
    kept = tuple(m for m in card.measurements if m.name.startswith("training "))
    data = provenance(recipe, splits)
    if data["sha256"] != card.data["sha256"]:
        raise SystemExit(f"{card.name}: the training images are not those of the card")
    return replace(
        card,
        measurements=(*kept, *found),
        evaluation=settings_of(evaluator),
        recipe={"name": card.recipe["name"]} | recipe.settings(),
        data=data,
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--root", type=Path, help="folder of downloaded data sets")
    options = parser.parse_args()
    names = options.names or list(checkpoint_names())
    if unknown := set(names) - set(checkpoint_names()):
        parser.error(f"no checkpoint that ships is called {', '.join(sorted(unknown))}")
    for name in names:
        assert name in RECIPES
        card, begun = load_card(name), time.perf_counter()
        evaluator = Evaluator(samples=1000, progress=None)
        evaluator.device = torch.device("cpu")
        with torch.inference_mode():
            card = measured(card, evaluator, options.root)
        save_card(card, SHIPPED)
        print(f"{name}: {len(card.measurements)} numbers in {time.perf_counter() - begun:.0f} s")
        for m in card.measurements:
            print(
                f"  {m.label}: {m.value:.5g}" + ("" if m.spread is None else f" ± {m.spread:.2g}")
            )


if __name__ == "__main__":
    main()
