"""Trains chapter 6's four tasks from image to image by three losses and several seeds, and records what comes out.

    python book/tools/image_tasks.py                  book/measurements/image-tasks.json

Each training is the recipe `image-to-image` with the settings below, on the 4,000 embedded digits; the answers to 500
held-out digits are measured, and eight of them kept as a picture where the chapter shows them. The record carries
the settings and a hash of the code that makes it, and is rewritten after each training; those that it holds already
are not repeated.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import inspect
import io
import json
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from dependencies import meaning_of
from PIL import Image
from torch import Tensor

from companion import data, gan
from companion.files import write_atomically
from companion.gan import TASKS
from companion.metrics import fid, psnr, sharpness
from companion.metrics.features import digit_features
from companion.recipes import RECIPES
from companion.training import Trainer

RECORD = Path(__file__).resolve().parents[1] / "measurements" / "image-tasks.json"
#: Beside the trainings: the questions themselves, and what a network without training answers.
UNTRAINED = ("nothing", "untrained")
#: Weights of the content loss and of the judge.
WAYS = {"error only": (1.0, 0.0), "judge only": (0.0, 1.0), "both": (1.0, 0.1)}
SEEDS = (0, 1, 2)
SHOWN = ("completion", 0)  # the task and the seed whose answers are kept as pictures
SHEET = slice(20, 260, 30)  # which of the 500
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


def sheet(answer: Tensor) -> str:
    """Returns eight of the answers side by side, as a PNG file of bytes in base64."""
    row = torch.cat([*data.to_uint8(answer[SHEET])[:, 0]], dim=1)
    file = io.BytesIO()
    Image.fromarray(row.numpy()).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def trained(task: str, way: str, seed: int, **changes: Any) -> Tensor:
    """Trains one network, unless the way is "untrained", and returns its answers to the held-out questions."""
    content, adversarial = WAYS.get(way, WAYS["both"])
    settings = SETTINGS | {"task": task, "content": content, "adversarial": adversarial}
    recipe = RECIPES["image-to-image"].replace(seed=seed, **(settings | changes))
    digits = data.load("digits", "train")
    objective = recipe.objective(digits)
    network = objective.network
    if way != "untrained":
        trainer = Trainer(objective, digits, recipe)
        for _ in trainer:
            pass
        network = trainer.network
    network.eval()
    with torch.no_grad():
        return network(pairs(task)[0]).float().clamp(-1, 1)


def code_hash() -> str:
    """Hashes what the functions that make the record do: no comments, no docstrings, no layout."""
    parts: tuple[Any, ...] = (pairs, measured, sheet, trained)
    parts += (gan.coarser, gan.bolder, gan.with_a_hole, gan.noisier)
    parts += (gan.UNetGenerator, gan.ImageToImage)
    code = [*map(inspect.getsource, parts), f"{WAYS}, {SHOWN}, {SHEET.indices(500)}"]
    return hashlib.sha256("\0".join(map(meaning_of, code)).encode()).hexdigest()


def record(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the record so far, empty if it was made with other settings or by other code than today's."""
    head = {"code sha256": code_hash(), "torch": torch.__version__, "settings": settings}
    found = json.loads(path.read_text()) if path.is_file() else {}
    same = all(found.get(key) == head[key] for key in ("code sha256", "settings"))
    return head | {"trainings": found["trainings"] if same else []}


def measure(
    tasks: Iterable[str] = tuple(TASKS),
    seeds: Iterable[int] = SEEDS,
    path: Path = RECORD,
    **changes: Any,
) -> None:
    """Trains and records what is missing, and beside it the ways "nothing" (the questions) and "untrained"."""
    settings = SETTINGS | changes
    for seed, task, way in product(seeds, tasks, (*UNTRAINED, *WAYS)):
        found = record(path, settings)
        of = {"task": task, "way": way, "seed": seed}
        if any(of.items() <= entry.items() for entry in found["trainings"]):
            continue
        begin = time.perf_counter()
        given, wanted = pairs(task)
        answer = given.clamp(-1, 1) if way == "nothing" else trained(task, way, seed, **changes)
        seconds = round(time.perf_counter() - begin, 1)
        entry = of | measured(answer, wanted) | {"seconds": seconds}
        if (task, seed) == SHOWN:
            entry["sheet"] = sheet(answer)
        found["trainings"].append(entry)
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        write_atomically(path, text.encode())


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=SETTINGS["steps"], help="of each training")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)  # such small networks are not worth more
    measure(steps=steps)


if __name__ == "__main__":
    main()
