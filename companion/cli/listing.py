"""`companion list`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from companion.checkpoints.card import checkpoint_names, load_card
from companion.cli import DONE
from companion.cli.flags import options, wants_help
from companion.cli.output import as_json, columns, require_free, table, write_json
from companion.data.downloads import cache_folder
from companion.data.sources import DATASETS, downloaded, embedded
from companion.measurement import Measurement
from companion.recipes.registry import RECIPES


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """What to write.

    Attributes:
        json: a file for everything that is listed; "-" prints JSON in place of the tables.
        overwrite: write over a file that is there already.
    """

    json: str | None = None
    overwrite: bool = False


ABOUT = """Lists the recipes, the checkpoints that ship, with their numbers, and the data sets.

example: companion list --json numbers.json"""


def run(arguments: Sequence[str]) -> int:
    """Runs `companion list`."""
    prog = "companion list"
    if wants_help(arguments):
        options(ListOptions(), ["--help"], prog, ABOUT)
    # The tables alone need no flags, and so not the library that reads them.
    asked = options(ListOptions(), arguments, prog, ABOUT) if arguments else ListOptions()
    require_free(asked.json, asked.overwrite)
    cards = [load_card(name) for name in checkpoint_names()]
    content = {
        "recipes": {name: {"about": RECIPES.summary(name)} for name in RECIPES},
        "checkpoints": {
            card.name: {
                "model": card.model,
                "parameters": card.parameters,
                "steps": card.steps,
                "data": card.data["name"],
                "images": card.data["images"],
                "measurements": as_json(card.measurements),
            }
            for card in cards
        },
        "data sets": {name: _state(name) for name in DATASETS},
        "data folder": str(cache_folder()),
    }
    if asked.json != "-":
        print(_listing(content))
    write_json(content, asked.json)
    return DONE


def _state(name: str) -> str:
    if embedded(name):
        return "embedded"
    return "downloaded" if downloaded(name) else "not downloaded"


def _listing(content: dict[str, Any]) -> str:
    recipes = [("name", "what it trains")]
    recipes += [(name, recipe["about"]) for name, recipe in content["recipes"].items()]
    parts = ["Recipes (companion train NAME):", columns(recipes), ""]
    parts.append("Checkpoints that ship (companion evaluate NAME):")
    for name, c in content["checkpoints"].items():
        kind = c["model"].rpartition(".")[2]
        parts.append(
            f"  {name}: {kind}, {c['parameters']:,} parameters, {c['steps']:,} steps on {c['images']:,} images "
            f"of {c['data']}"
        )
        found = [Measurement(**m) for m in c["measurements"]]
        parts += ["  " + line for line in table(found).splitlines()]
    parts += ["", f"Data sets (companion fetch NAME), in {content['data folder']}:"]
    parts.append(columns([(k, v) for k, v in content["data sets"].items()]))
    return "\n".join(parts)
