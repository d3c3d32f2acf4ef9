"""Trains chapter 6's four tasks from image to image by three losses and several seeds, and records what comes out.

    python book/tools/image_tasks.py                  book/measurements/image-tasks.json

Each training is the recipe `image-to-image` with the settings below, on the 4,000 embedded digits; the answers to 500
held-out digits are measured. The record is rewritten after each training; those that it holds already are not
repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import data
from companion.files import write_atomically
from companion.gan import TASKS
from companion.metrics import fid, psnr, sharpness
from companion.metrics.features import digit_features
from companion.recipes import RECIPES
from companion.training import Trainer

RECORD = Path(__file__).resolve().parents[1] / "measurements" / "image-tasks.json"
WAYS = {"error only": (1.0, 0.0), "judge only": (0.0, 1.0), "both": (1.0, 0.1)}
SEEDS = (0, 1, 2)
SETTINGS: dict[str, Any] = {
    "data": "digits",
    "generator_width": 8,
    "discriminator_width": 8,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "precision": "32-true",
    "steps": 200,
}


def pairs(task: str) -> tuple[Tensor, Tensor]:
    """Returns 500 held-out questions of a task, and the answers that are wanted."""
    held_out = data.load("digits", "test").floats()[::2]
    return TASKS[task](held_out, torch.Generator().manual_seed(90))


def measured(answer: Tensor, wanted: Tensor) -> dict[str, float]:
    """Returns PSNR in dB, the Fréchet distance and the sharpness as a share of the wanted images'."""
    return {
        "PSNR": round(float(psnr(answer, wanted, 2.0).mean()), 3),
        "FID": round(fid(digit_features(wanted), digit_features(answer)), 3),
        "sharpness": round(float(sharpness(answer).mean() / sharpness(wanted).mean()), 4),
    }


def trained(task: str, way: str, seed: int, **changes: Any) -> Tensor:
    """Trains one network and returns its answers to the held-out questions."""
    content, adversarial = WAYS[way]
    settings = SETTINGS | {"task": task, "content": content, "adversarial": adversarial}
    recipe = RECIPES["image-to-image"].replace(seed=seed, **(settings | changes))
    digits = data.load("digits", "train")
    trainer = Trainer(recipe.objective(digits), digits, recipe)
    for _ in trainer:
        pass
    network = trainer.network.eval()
    with torch.no_grad():
        return network(pairs(task)[0]).float().clamp(-1, 1)


def record(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the record so far, empty if it was made with other settings."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    same = found.get("settings") == settings
    return {"settings": settings, "trainings": found["trainings"] if same else []}


def measure(
    tasks: Iterable[str] = tuple(TASKS),
    seeds: Iterable[int] = SEEDS,
    path: Path = RECORD,
    **changes: Any,
) -> None:
    """Trains and records what is missing; the questions themselves are measured, too, as the way "nothing"."""
    settings = SETTINGS | changes
    for seed, task, way in product(seeds, tasks, ("nothing", *WAYS)):
        found = record(path, settings)
        of = {"task": task, "way": way, "seed": seed}
        if any(of.items() <= entry.items() for entry in found["trainings"]):
            continue
        begin = time.perf_counter()
        given, wanted = pairs(task)
        answer = given.clamp(-1, 1) if way == "nothing" else trained(task, way, seed, **changes)
        seconds = round(time.perf_counter() - begin, 1)
        found["trainings"].append(of | measured(answer, wanted) | {"seconds": seconds})
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        write_atomically(path, text.encode())


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=SETTINGS["steps"], help="of each training")
    measure(steps=parser.parse_args().steps)


if __name__ == "__main__":
    main()
