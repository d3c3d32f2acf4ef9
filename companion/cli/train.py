"""`companion train`."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from companion.cli import DONE
from companion.cli.flags import Flag, flags_of, read, subjects
from companion.cli.output import table
from companion.recipes.registry import RECIPES

if TYPE_CHECKING:
    from companion.recipes.base import Recipe


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Where to train, and what to write.

    Attributes:
        output: folder of the run; by default runs/RECIPE.
        resume: go on with the run in that folder, from its last saved state; with a larger --steps it gets longer.
        init_from: a checkpoint, by name or path, whose weights the training begins with.
        devices: processes on each node: GPUs, or processes on the CPU.
        nodes: machines; under torchrun and SLURM taken from there.
        accelerator: "auto" takes CUDA where there is a GPU.
        save_every: steps between saved states; a training that is stopped loses no more than these.
        log_every: steps between the lines of log.csv.
        sheet_every: steps between sheets of samples, for networks that can sample; 0 makes none.
        tensorboard: log for TensorBoard too; needs `pip install 'companion[tensorboard]'`.
        samples: images drawn to evaluate the finished network.
    """

    output: Path | None = None
    resume: bool = False
    init_from: str | None = None
    devices: int = 1
    nodes: int = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: int = 1000
    log_every: int = 50
    sheet_every: int = 0
    tensorboard: bool = False
    samples: int = 1000


# tyro keeps paragraphs but not lines, so in what it shows each line is a paragraph.

ABOUT = """Trains a network by a recipe, and writes its checkpoint.

usage: companion train RECIPE [FLAGS]
companion train RECIPE --help shows the flags, among them every setting of the recipe.

examples:
  companion train digit-cnn
  companion train digit-cnn --data digits --steps 300 --output /tmp/mine
  companion train vae --data ~/pictures --validation 0.1 --output /tmp/mine
  companion train digit-cnn --output /tmp/mine --resume
  companion train digit-cnn --devices 2
  torchrun --nproc-per-node 8 -m companion train digit-cnn
  srun --nodes 2 --ntasks-per-node 8 companion train digit-cnn

recipes:
"""

ABOUT_ONE = """{about}

example: companion train {name} --data digits --steps 300 --output /tmp/mine

The first flags are the run's, those from --steps on the recipe's and its network's. Images of your own keep their size \
and colour unless --image-size and --channels say otherwise. They have no test split: give --test-data or --validation, \
or the training images themselves are measured."""


def recipe_flags(recipe: "Recipe") -> list[Flag]:
    """Returns the flags of a recipe's settings, those of its network among them, except for what the data say."""
    from companion.recipes.base import FROM_DATA

    return flags_of(recipe, hidden=["network"]) + flags_of(recipe.network, hidden=FROM_DATA)


def settings(name: str, arguments: Sequence[str]) -> tuple[TrainOptions, "Recipe"]:
    """Reads the flags of a recipe."""
    recipe = RECIPES[name]
    mine = flags_of(TrainOptions())
    about = ABOUT_ONE.format(about=RECIPES.summary(name), name=name)
    found = read([*mine, *recipe_flags(recipe)], arguments, f"companion train {name}", about)
    own: dict[str, Any] = {flag.field: found.pop(flag.field) for flag in mine}
    return TrainOptions(**own), recipe.replace(**found)


def run(arguments: Sequence[str]) -> int:
    """Runs `companion train`."""
    if list(arguments[:1]) in (["-h"], ["--help"]):
        width = max(map(len, RECIPES))
        print(ABOUT + "\n".join(f"  {k:<{width}}  {RECIPES.summary(k)}" for k in RECIPES))
        return DONE
    (name,), rest = subjects(arguments, "companion train RECIPE")
    RECIPES.find(name, "companion list says more of each.")
    options, recipe = settings(name, rest)

    from companion.recipes.making import Interrupted, make_checkpoint
    from companion.training import launch

    # torchrun starts a process that died again with the command of its first start.
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    output = options.output or Path("runs") / name
    fabric = launch(options.devices, options.nodes, options.accelerator, recipe.precision)
    first = fabric.global_rank == 0
    try:
        card = make_checkpoint(
            recipe,
            name,
            output,
            fabric=fabric,
            resume=options.resume,
            restarted=restarted,
            init_from=options.init_from,
            samples=options.samples,
            save_every=options.save_every,
            log_every=options.log_every,
            sheet_every=options.sheet_every,
            tensorboard=options.tensorboard,
            progress=first,
        )
    except Interrupted as stop:
        if first:
            print(f"{stop} Go on with\n  {_again(arguments)}", file=sys.stderr)
        return 128 + stop.signal
    if first:
        print(table(card.measurements))
        print(f"{output / name}.safetensors: {card.parameters:,} parameters, {card.steps:,} steps")
    return DONE


def _again(arguments: Sequence[str]) -> str:
    """Returns the command that resumes a run."""
    words = ["companion", "train", *(a for a in arguments if a not in ("--resume", "--no-resume"))]
    return shlex.join([*words, "--resume"])
