"""Plays the games of chapter 6 in the plane for longer than a page can wait, and records how they end.

    python book/tools/toy_games.py                    all of them, book/measurements/toy-games.json
    python book/tools/toy_games.py --only ring        those on the ring

The code is the chapter's own: the cells tagged `recorded-game` are run from the notebook, so that the record cannot
be of another game than the one that the reader sees. The record carries a hash of these cells and of what is counted
here, and is rewritten after each game; games that it holds already, played by today's code, are not played again.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import nbformat
import torch
from dependencies import meaning_of
from torch import nn
from torch.nn import functional as F

from companion import data
from companion.files import write_atomically
from companion.gan import LOSSES

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = ROOT / "book" / "06-gan.ipynb"
RECORD = ROOT / "book" / "measurements" / "toy-games.json"
TAG = "recorded-game"
RIVALS = ("non-saturating", "non-saturating + R₁")
LOOKS = 7  # at which mode is the fullest: at the end, and six times before it
EVERY = 50  # steps from one such look to the next
PARTS = 8  # of a game, at the end of each of which the modes are counted


@dataclass(frozen=True, kw_only=True)
class Game:
    """The settings of ten games, one a seed.

    Attributes:
        target: "ring" or "grid".
        rule: one of the chapter's `RULES`.
        steps: of the discriminator.
        turns: steps of the generator for each of them.
        beta1: momentum of both optimisers.
    """

    target: str
    rule: str
    steps: int
    turns: int = 1
    beta1: float = 0.5


def plan() -> Iterator[Game]:
    """Yields what the chapter quotes: all losses, and the whole design of schedule, momentum and penalty."""
    for rule in chapter()["RULES"]:
        for target, steps in (("ring", 900), ("ring", 2000), ("grid", 2000)):
            yield Game(target=target, rule=rule, steps=steps)
    for rule, turns, beta1 in product(RIVALS, (5, 1), (0.9, 0.5)):
        if (turns, beta1) != (1, 0.5):  # that one is in the first list
            yield Game(target="ring", rule=rule, steps=2000, turns=turns, beta1=beta1)


def chapter_cells(path: Path = CHAPTER) -> list[str]:
    """Returns the source of the chapter's cells that define the games."""
    notebook = nbformat.read(path, as_version=4)
    return [cell.source for cell in notebook.cells if TAG in cell.metadata.get("tags", [])]


def code_hash(cells: Iterable[str]) -> str:
    """Hashes what the cells and `outcome` do: no comments, no docstrings, no layout."""
    code = [*cells, inspect.getsource(outcome), f"{LOOKS}, {EVERY}, {PARTS}"]
    return hashlib.sha256("\0".join(map(meaning_of, code)).encode()).hexdigest()


def chapter() -> dict[str, Any]:
    """Runs the chapter's cells that define the games and returns their names."""
    names: dict[str, Any] = {
        "math": math,
        "pairwise": pairwise,
        "torch": torch,
        "nn": nn,
        "F": F,
        "data": data,
        "LOSSES": LOSSES,
        "seed": lambda number: torch.Generator().manual_seed(number),
    }
    for cell in chapter_cells():
        exec(cell, names)
    return names


def outcome(game: Game, copies: int = 10) -> dict[str, Any]:
    """Plays a game with several seeds side by side and counts what they keep.

    Returns:
        Lists with an entry a seed: "kept" modes at the end, the share of samples "near" a mode, the share of the
        "fullest" mode, and "moves": how often another mode became the fullest between looks. "kept_at" has such a list
        of kept modes for each of eight steps, the last of which is the end. And "seconds".
    """
    names = chapter()
    target = names[{"ring": "ring", "grid": "square"}[game.target]]
    late = [*range(max(1, game.steps - (LOOKS - 1) * EVERY), game.steps, EVERY), game.steps]
    parts = sorted({max(1, game.steps * i // PARTS) for i in range(1, PARTS + 1)})
    begin = time.perf_counter()
    seen = names["play"](
        target,
        game.rule,
        game.steps,
        turns=game.turns,
        beta1=game.beta1,
        copies=copies,
        watch={*late, *parts},
    )
    seconds = time.perf_counter() - begin
    looks = [names["census"](seen[step], target) for step in late]
    drawn = seen[game.steps].shape[1]
    fullest, mode = (torch.stack([counts for counts, _ in looks]) / drawn).max(dim=2)
    near = looks[-1][1].sum(1) / drawn
    kept_at = {str(step): names["modes_kept"](seen[step], target).tolist() for step in parts}
    return {
        "kept": kept_at[str(game.steps)],
        "near": [round(v, 4) for v in near.tolist()],
        "fullest": [round(v, 4) for v in fullest[-1].tolist()],
        "moves": (mode[1:] != mode[:-1]).sum(0).tolist(),
        "kept_at": kept_at,
        "seconds": round(seconds, 1),
    }


def record(path: Path = RECORD) -> dict[str, Any]:
    """Returns the record so far, empty if it is of other code than today's."""
    today = code_hash(chapter_cells())
    found = json.loads(path.read_text()) if path.is_file() else {}
    games = found.get("games", []) if found.get("code sha256") == today else []
    return {"code sha256": today, "torch": torch.__version__, "games": games}


def measure(games: Iterable[Game], path: Path = RECORD, copies: int = 10) -> None:
    """Plays and records the games that are missing."""
    for game in games:
        found = record(path)
        if any(entry["game"] == asdict(game) for entry in found["games"]):
            continue
        found["games"].append({"game": asdict(game)} | outcome(game, copies))
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        write_atomically(path, text.encode())


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("ring", "grid"), help="one of the two targets")
    options = parser.parse_args()
    torch.set_num_threads(1)  # such small products are not worth more
    measure(game for game in plan() if options.only in (None, game.target))


if __name__ == "__main__":
    main()
