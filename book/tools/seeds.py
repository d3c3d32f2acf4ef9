"""Trains a recipe with several seeds and records what each reaches, for statements about how stable a recipe is.

    python book/tools/seeds.py gan                      ten seeds, book/measurements/gan-seeds.json
    python book/tools/seeds.py gan --only 3 4 5         some of them, on another machine, say

Each training is `companion train NAME --seed …`, in a folder of its own under runs/seeds, and goes on where it was
stopped. The record is rewritten after each; seeds that it holds already, of the same recipe, are not trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from companion.checkpoints import Card
from companion.files import write_atomically
from companion.recipes import RECIPES, make_checkpoint

ROOT = Path(__file__).resolve().parents[2]
MEASUREMENTS = ROOT / "book" / "measurements"


def settings_of(recipe: dict[str, Any]) -> dict[str, Any]:
    """Returns a recipe's settings as JSON holds them, but for its seed and the precision, which the machine decides."""
    left_out = ("seed", "name", "precision")
    return {k: v for k, v in json.loads(json.dumps(recipe)).items() if k not in left_out}


def numbers_of(card: Card) -> dict[str, float | None]:
    """Returns what a card measures by name, with the data where a name alone could be two numbers."""
    names = [m.name for m in card.measurements]
    return {m.name if names.count(m.name) == 1 else m.label: m.value for m in card.measurements}


def record(path: Path, name: str) -> dict[str, Any]:
    """Returns the record so far, without seeds of another recipe than today's."""
    recipe = settings_of(RECIPES[name].settings())
    found = json.loads(path.read_text()) if path.is_file() else {}
    seeds = found.get("seeds", {}) if found.get("recipe") == recipe else {}
    return {"name": name, "recipe": recipe, "seeds": seeds}


def measure(name: str, seeds: Iterable[int], path: Path, runs: Path) -> None:
    """Trains and records the seeds that are missing."""
    for seed in seeds:
        if str(seed) in record(path, name)["seeds"]:
            continue
        recipe = RECIPES[name].replace(seed=seed)
        folder = runs / f"{name}-{seed}"
        card = make_checkpoint(recipe, name, folder, resume=folder.exists())
        found = record(path, name)  # read again: another process may have added to it
        found["seeds"][str(seed)] = {
            "metrics": numbers_of(card),
            "seconds": card.seconds,
            "device": card.device,
            "precision": card.precision,
            "data sha256": card.data["sha256"],
            "weights sha256": card.sha256,
        }
        found["seeds"] = dict(sorted(found["seeds"].items(), key=lambda item: int(item[0])))
        write_atomically(path, (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0")
    parser.add_argument("--only", type=int, nargs="+", help="these instead")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "seeds")
    options = parser.parse_args()
    path = MEASUREMENTS / f"{options.name}-seeds.json"
    path.parent.mkdir(exist_ok=True)
    measure(options.name, options.only or range(options.seeds), path, options.runs)


if __name__ == "__main__":
    main()
