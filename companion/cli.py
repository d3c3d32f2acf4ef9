"""The command line: `companion train`, `sample`, `evaluate`, `list` and `fetch`.

What the user can mend is said in one line, without a traceback, and every ending has its own exit code, so that
scripts can tell them apart. Each command is a thin layer over functions that Python programs call as well.
"""

import contextlib
import difflib
import io
import json
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro
from torch import nn

from companion.checkpoints import (
    Card,
    CheckpointError,
    checkpoint_names,
    load_card,
    load_checkpoint,
)
from companion.data import DATASETS, DataError, load, to_uint8
from companion.data.downloads import SOURCES, cache_folder
from companion.errors import unknown_name
from companion.evaluation import Evaluator
from companion.files import write_atomically
from companion.recipes import RECIPES, Interrupted, Recipe, finite, make_checkpoint, recipe_of
from companion.training import DiskFullError, DivergedError, RunError, StateError, launch

DONE, FAILED, WRONG_USAGE, DIVERGED = 0, 1, 2, 3

EXIT_CODES = """exit codes:
  0    done
  1    something stands in the way that you can mend: missing data, a damaged file, a full disk, a folder in use
  2    wrong usage: an unknown command, name or flag, or a value that is not allowed
  3    the training diverged: its loss is NaN or infinite
  130  stopped by Ctrl-C; a training saved its state first
  143  stopped by SIGTERM; a training saved its state first

COMPANION_DATA names the folder of downloaded data sets. With COMPANION_TRACEBACK=1 errors show where they arose.
"""


class UsageError(ValueError):
    """The command line says something that is not allowed."""


# --- Options, typed; tyro makes flags and help of them ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Where to train, and what to write.

    Attributes:
        output: folder of the run; by default runs/RECIPE.
        resume: go on with the run in that folder, from its last saved state.
        devices: processes on each node: GPUs, or processes on the CPU.
        nodes: machines; under torchrun and SLURM taken from there.
        accelerator: "auto" takes CUDA where there is a GPU.
        save_every: steps between saved states; a training that is stopped loses no more than these.
        log_every: steps between the lines of log.csv.
        sample_every: steps between sheets of samples, for networks that can sample; 0 makes none.
        tensorboard: log for TensorBoard too; needs `pip install 'companion[tensorboard]'`.
        samples: images drawn to evaluate the finished network.
    """

    output: Path | None = None
    resume: bool = False
    devices: int = 1
    nodes: int = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    save_every: int = 1000
    log_every: int = 50
    sample_every: int = 0
    tensorboard: bool = False
    samples: int = 1000


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What to draw, and where.

    Attributes:
        n: number of images.
        out: a picture of all of them side by side (.png), or an array "n c h w" of bytes (.npy); by default
            CHECKPOINT.png.
        columns: images in a row of the picture.
        seed: of the samples; the same seed gives the same images.
        batch_size: images at a time.
        devices: processes that share the work; they do not change the images.
        accelerator: "auto" takes CUDA where there is a GPU. CUDA draws other random numbers than the CPU.
    """

    n: int = 64
    out: Path | None = None
    columns: int = 8
    seed: int = 0
    batch_size: int = 32
    devices: int = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure on, and where.

    Attributes:
        json: a file for the numbers; "-" prints JSON in place of the table.
        data: other data than the checkpoint's own: a data set's name, or a folder or zip of images.
        samples: images drawn from a network that can sample; FID and its like depend on their number.
        seed: of the samples.
        batch_size: images at a time.
        devices: processes that share the work; they do not change the numbers.
        accelerator: "auto" takes CUDA where there is a GPU.
    """

    json: str | None = None
    data: str | None = None
    samples: int = 1000
    seed: int = 0
    batch_size: int = 100
    devices: int = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """What to write.

    Attributes:
        json: a file for everything that is listed; "-" prints JSON in place of the tables.
    """

    json: str | None = None


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """There are none."""


T = TypeVar("T")


def parse(defaults: Sequence[Any], arguments: Sequence[str], prog: str, about: str) -> list[Any]:
    """Reads flags into dataclasses.

    Args:
        defaults: an instance of each dataclass; their fields become flags side by side.
        arguments: of the command line.
        prog: how the command is called, for its help.
        about: what `--help` says first.

    Returns:
        The dataclasses with what the command line changes.

    Raises:
        UsageError: if there is a flag that does not exist, or a value that is not allowed.
        SystemExit: after `--help`, with 0.
    """
    flags = {f"--{f.name.replace('_', '-')}": f for d in defaults for f in fields(d)}
    negated = {f"--no-{name[2:]}" for name, f in flags.items() if f.type is bool}
    known = [*flags, *negated, "--help", "-h"]
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        if argument.startswith("--") and name not in known:
            raise UsageError(_unknown_flag(argument.split("=")[0], known, prog))
    groups = make_dataclass(
        "Command",
        [
            (f"part{i}", Annotated[type(d), tyro.conf.arg(name="")], field(default=d))
            for i, d in enumerate(defaults)
        ],
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(groups, args=list(arguments), prog=prog, description=about)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(f"{_first_lines(complaint.getvalue())} See {prog} --help.") from None
    return [getattr(parsed, f.name) for f in fields(parsed)]


def _unknown_flag(name: str, known: Iterable[str], prog: str) -> str:
    near = difflib.get_close_matches(name.replace("_", "-"), list(known), n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"unknown flag {name}.{hint} All of them: {prog} --help."


def _first_lines(box: str) -> str:
    """Takes what matters out of the box that tyro draws around an error: what stands between its first two rules."""
    lines = []
    for line in box.splitlines()[1:]:  # the first is the box's title
        text = line.strip("│ ")
        if text and not text.strip("─-╰╯"):
            if lines:
                break
            continue
        lines.append(text)
    message = " ".join(lines).strip()
    for pattern, replacement in PLAINER.items():
        message = re.sub(pattern, replacement, message)
    return message if message.endswith(".") else f"{message}."


# What tyro says, and what we say.
PLAINER = {
    r"^Error parsing ": "",
    r"^Unrecognized options:": "unexpected:",
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is no whole number",
    r"could not convert string to float: (.*)": r"\1 is no number",
    r"no type matching \{None\}\|(\w+) could be instantiated from \[(.*?)\].*": r"\2 is neither None nor \1",
    r" Expected 1 values\.": "",
}


# --- Commands -----------------------------------------------------------------------------------------------------

# tyro keeps paragraphs but not lines, so in what it shows each line is a paragraph.

TRAIN = """Trains a network by a recipe, and writes its checkpoint.

usage: companion train RECIPE [FLAGS]
companion train RECIPE --help shows the flags, among them every setting of the recipe.

examples:
  companion train digit-cnn
  companion train digit-cnn --data digits --steps 300 --output /tmp/mine
  companion train digit-cnn --data ~/pictures --image-size 28 --output /tmp/mine
  companion train digit-cnn --output /tmp/mine --resume
  companion train digit-cnn --devices 2
  torchrun --nproc-per-node 8 -m companion train digit-cnn
  srun --nodes 2 --ntasks-per-node 8 companion train digit-cnn

recipes:
"""

TRAIN_ONE = """{about}

example: companion train {name} --data digits --steps 300 --output /tmp/mine

The first flags are the run's, those from --steps on the recipe's."""

SAMPLE = """Draws images from a checkpoint.

CHECKPOINT is the name of one that ships (companion list lists them), or the path of a .safetensors file with its card
beside it.

example: companion sample runs/vae/vae.safetensors --n 64 --out grid.png"""

EVALUATE = """Measures a checkpoint by all that applies to it, on images that it has not seen.

CHECKPOINT is the name of one that ships (companion list lists them), or the path of a .safetensors file with its card
beside it.

example: companion evaluate digit-cnn --json numbers.json"""

FETCH = """Downloads a data set, verifies it and keeps it for later, in the folder that COMPANION_DATA names or in the
user's cache folder.

example: companion fetch mnist

data sets: """ + ", ".join(DATASETS)

LIST = """Lists the recipes, the checkpoints that ship, with their numbers, and the data sets.

example: companion list --json numbers.json"""


def _subject(arguments: Sequence[str], prog: str) -> str:
    """Returns the name that a command is about, which comes first.

    Raises:
        UsageError: if there is none.
    """
    command, what = prog.rsplit(" ", 1)
    if not arguments:
        raise UsageError(f"{what} is missing: {prog} [FLAGS]. See {command} --help.")
    if arguments[0].startswith("-"):
        raise UsageError(
            f"{what} comes before the flags: {prog} [FLAGS], got {arguments[0]!r}. See {command} --help."
        )
    return arguments[0]


def _parsed(arguments: Sequence[str], default: T, prog: str, about: str) -> tuple[str, T]:
    """Reads a command line of a name and flags; answers `--help` also where the name is missing."""
    if any(a in ("-h", "--help") for a in arguments):
        parse([default], ["--help"], prog, about)
    name = _subject(arguments, prog)
    (options,) = parse([default], arguments[1:], prog, about)
    return name, options


def _summary(recipe: Recipe) -> str:
    """Says what a recipe trains; of a variant, in what it differs from the recipe of its kind."""
    default = type(recipe)()
    named = [name for name, other in RECIPES.items() if other == default]
    if recipe == default or not named:
        return (type(recipe).__doc__ or "").strip().splitlines()[0]
    values = ((f.name.replace("_", " "), getattr(recipe, f.name), f) for f in fields(recipe))
    changed = [f"{name} {value}" for name, value, f in values if value != getattr(default, f.name)]
    return f"As {named[0]}, but {', '.join(changed)}."


def train(arguments: Sequence[str]) -> int:
    """Runs `companion train`."""
    width = max(map(len, RECIPES))
    about = TRAIN + "\n".join(f"  {k:<{width}}  {_summary(r)}" for k, r in RECIPES.items())
    if list(arguments[:1]) in (["-h"], ["--help"]):
        print(about)
        return DONE
    name = _subject(arguments, "companion train RECIPE")
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES, "companion list says more of each.")
    recipe = RECIPES[name]
    description = TRAIN_ONE.format(about=_summary(recipe), name=name)
    options, recipe = parse(
        [TrainOptions(), recipe], arguments[1:], f"companion train {name}", description
    )
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
            resume=options.resume or restarted,
            samples=options.samples,
            save_every=options.save_every,
            log_every=options.log_every,
            sample_every=options.sample_every,
            tensorboard=options.tensorboard,
            progress=first,
        )
    except Interrupted as stop:
        if first:
            print(f"{stop} Go on with\n  {_again(arguments)}", file=sys.stderr)
        return 128 + stop.signal
    if first:
        print(_table(card.metrics))
        print(f"{output / name}.safetensors: {card.parameters:,} parameters, {card.steps:,} steps")
    return DONE


def _again(arguments: Sequence[str]) -> str:
    """Returns the command that resumes a run."""
    words = ["companion", "train", *(a for a in arguments if a not in ("--resume", "--no-resume"))]
    return shlex.join([*words, "--resume"])


def sample(arguments: Sequence[str]) -> int:
    """Runs `companion sample`."""
    name, options = _parsed(arguments, SampleOptions(), "companion sample CHECKPOINT", SAMPLE)
    for flag in ("n", "columns", "batch_size", "devices"):
        if getattr(options, flag) < 1:
            raise UsageError(
                f"--{flag.replace('_', '-')} must be at least 1, got {getattr(options, flag)}."
            )
    card = load_card(name)
    out = options.out or Path(f"{card.name}.png")
    if out.suffix not in (".png", ".npy"):
        raise UsageError(f"--out must end in .png or .npy, got {str(out)!r}.")
    fabric = launch(options.devices, 1, options.accelerator, "32-true")
    network = load_checkpoint(name, fabric.device)
    if not hasattr(network, "sample"):
        raise UsageError(_cannot_sample(card))
    evaluator = Evaluator(
        fabric, samples=max(10, options.n), batch_size=options.batch_size, seed=options.seed
    )
    images = to_uint8(evaluator.draw(network.sample, options.n))
    if fabric.global_rank == 0:
        _write_images(images, out, options.columns)
        print(
            f"{out}: {len(images)} images of {_shape(images)} from {card.name}, seed {options.seed}"
        )
    return DONE


def _shape(images: torch.Tensor) -> str:
    return f"{images.shape[2]}×{images.shape[3]}"


def _network_class(card: Card) -> type[nn.Module] | None:
    """Returns the class that a card of this package names."""
    module, _, name = card.model.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _cannot_sample(card: Card) -> str:
    able = [n for n in checkpoint_names() if hasattr(_network_class(load_card(n)), "sample")]
    which = f"These can: {', '.join(able)}." if able else "None of the checkpoints that ship can."
    kind = card.model.rpartition(".")[2]
    return f"{card.name!r} (a network of the class {kind}) cannot draw images. {which}"


def _write_images(images: torch.Tensor, out: Path, columns: int) -> None:
    buffer = io.BytesIO()
    if out.suffix == ".npy":
        import numpy as np

        np.save(buffer, images.numpy())
    else:
        from companion.display.pictures import tile  # matplotlib takes a second to import

        tile(images, columns).save(buffer, format="PNG", optimize=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, buffer.getvalue())


def evaluate(arguments: Sequence[str]) -> int:
    """Runs `companion evaluate`."""
    name, options = _parsed(arguments, EvaluateOptions(), "companion evaluate CHECKPOINT", EVALUATE)
    if options.devices < 1:
        raise UsageError(f"--devices must be at least 1, got {options.devices}.")
    card = load_card(name)
    recipe = recipe_of(card)
    if options.data is not None:
        recipe = replace(recipe, data=options.data)
    fabric = launch(options.devices, 1, options.accelerator, "32-true")
    evaluator = Evaluator(
        fabric, samples=options.samples, batch_size=options.batch_size, seed=options.seed
    )
    network = load_checkpoint(name, fabric.device)
    if options.data is not None:
        _require_fitting(network, recipe.held_out().images, options.data)
    metrics = finite(recipe.evaluate(network, evaluator))
    if fabric.global_rank != 0:
        return DONE
    content = {
        "checkpoint": card.name,
        "model": card.model,
        "parameters": card.parameters,
        "sha256": card.sha256,
        "data": recipe.data,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "device": str(fabric.device),
        "metrics": metrics,
    }
    if options.json != "-":
        print(
            f"{card.name}: {card.parameters:,} parameters, {card.steps:,} steps on {card.data['name']}"
        )
        print(_table(metrics))
    if recipe.data == "mnist" and not downloaded("mnist"):
        # To the error stream, as what is printed may be JSON for a program.
        print(
            "MNIST's own test set is left out; get it with: companion fetch mnist", file=sys.stderr
        )
    _write_json(content, options.json)
    return DONE


def _require_fitting(network: nn.Module, images: torch.Tensor, data: str) -> None:
    """Raises `UsageError` if a network takes images of another shape."""
    channels, side = getattr(network, "channels", 1), getattr(network, "size", 28)
    if tuple(images.shape[1:]) != (channels, side, side):
        found = "×".join(str(n) for n in images.shape[1:])
        raise UsageError(
            f"the images of {data!r} are {found}, but this network takes {channels}×{side}×{side} (channels, rows, "
            "columns)."
        )


def _write_json(content: object, to: str | None) -> None:
    if to is None:
        return
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    if to == "-":
        print(text)
        return
    Path(to).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(to), (text + "\n").encode())


def _number(value: object) -> str:
    if value is None:
        return "not finite"
    if isinstance(value, float) and value != int(value):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)


def _table(metrics: dict[str, Any]) -> str:
    """Returns names and numbers in two columns."""
    if not metrics:
        return "  nothing to measure"
    width, numbers = max(map(len, metrics)), {k: _number(v) for k, v in metrics.items()}
    right = max(map(len, numbers.values()))
    return "\n".join(f"  {k:<{width}}  {v:>{right}}" for k, v in numbers.items())


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as aligned columns, the first of them a heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def downloaded(name: str) -> bool:
    """Says whether all files of a data set are in the data folder (not whether they are intact)."""
    folder = cache_folder() / name
    files = {r.file for split in SOURCES[name].splits.values() for r in split}
    return all((folder / f).is_file() or (folder / f.removesuffix(".gz")).is_file() for f in files)


def list_all(arguments: Sequence[str]) -> int:
    """Runs `companion list`."""
    (options,) = parse([ListOptions()], arguments, "companion list", LIST)
    cards = [load_card(name) for name in checkpoint_names()]
    content = {
        "recipes": {
            name: {
                "about": _summary(r),
                "data": r.data,
                "steps": r.steps,
                "batch_size": r.batch_size,
            }
            for name, r in RECIPES.items()
        },
        "checkpoints": {
            c.name: {
                "model": c.model,
                "parameters": c.parameters,
                "steps": c.steps,
                "data": c.data["name"],
                "images": c.data["images"],
                "metrics": c.metrics,
            }
            for c in cards
        },
        "data sets": {
            name: "embedded"
            if name not in SOURCES
            else "downloaded"
            if downloaded(name)
            else "not downloaded"
            for name in DATASETS
        },
        "data folder": str(cache_folder()),
    }
    if options.json != "-":
        print(_listing(content))
    _write_json(content, options.json)
    return DONE


def _listing(content: dict[str, Any]) -> str:
    recipes = [("name", "data", "steps", "batch", "what it trains")]
    for name, r in content["recipes"].items():
        recipes.append((name, r["data"], f"{r['steps']:,}", str(r["batch_size"]), r["about"]))
    parts = ["Recipes (companion train NAME):", _columns(recipes), ""]
    parts.append("Checkpoints that ship (companion evaluate NAME):")
    for name, c in content["checkpoints"].items():
        kind = c["model"].rpartition(".")[2]
        parts.append(
            f"  {name}: {kind}, {c['parameters']:,} parameters, {c['steps']:,} steps on {c['images']:,} images "
            f"of {c['data']}"
        )
        parts += ["  " + line for line in _table(c["metrics"]).splitlines()]
    parts += ["", f"Data sets (companion fetch NAME), in {content['data folder']}:"]
    parts.append(_columns([(k, v) for k, v in content["data sets"].items()]))
    return "\n".join(parts)


def fetch(arguments: Sequence[str]) -> int:
    """Runs `companion fetch`."""
    name, _ = _parsed(arguments, FetchOptions(), "companion fetch DATASET", FETCH)
    train_set, test_set = load(name, "train"), load(name, "test")
    where = cache_folder() / name if name in SOURCES else "the package itself; nothing to download"
    print(f"{name}: {len(train_set):,} training and {len(test_set):,} test images, from {where}")
    return DONE


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train a network by a recipe, and write its checkpoint"),
    "sample": (sample, "draw images from a checkpoint"),
    "evaluate": (evaluate, "measure a checkpoint: a table, and JSON"),
    "list": (list_all, "list recipes, checkpoints with their numbers, and data sets"),
    "fetch": (fetch, "download a data set"),
}

ABOUT = f"""Generative models: train, sample and measure them.

usage: companion COMMAND [ARGUMENTS]

commands (companion COMMAND --help says more of each):
{chr(10).join(f"  {name:<9} {about}" for name, (_, about) in COMMANDS.items())}

examples:
  companion list
  companion train digit-cnn --data digits --steps 300 --output /tmp/mine
  companion evaluate digit-cnn --json numbers.json

{EXIT_CODES}"""


def _complaint(error: BaseException) -> tuple[int, str]:
    """Returns the exit code for an error, and what to say about it."""
    if isinstance(error, DivergedError):
        return DIVERGED, str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return FAILED, f"out of memory: lower --batch-size, or raise --accumulate. {error}"
    if isinstance(error, DiskFullError):
        return FAILED, error.strerror or str(error)
    if isinstance(error, RunError | StateError | CheckpointError | DataError):
        return FAILED, str(error)
    if isinstance(error, OSError):
        if not error.strerror:
            return FAILED, str(error)
        what = f"{str(error.filename)!r}: " if error.filename else ""
        return FAILED, f"{what}{error.strerror}. Give another path, or mend that one."
    return WRONG_USAGE, str(error)


def _speaks(error: BaseException) -> bool:
    """Says whether this process reports an error: of those on one machine, which all meet it, only the first."""
    place = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return place == "0" or isinstance(error, torch.OutOfMemoryError)


def _run(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(ABOUT.rstrip())
        return DONE if words else WRONG_USAGE
    if words[0] not in COMMANDS:
        raise unknown_name("command", words[0], COMMANDS, "companion --help says more.")
    return COMMANDS[words[0]][0](words[1:])


def _say_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after `companion`; by default those of the process.

    Returns:
        The exit code (`companion --help` lists them).
    """
    # Fabric announces precision and processes, which whoever asked for them knows.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say_warning
            return _run(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as stop:  # after --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, OSError, ArithmeticError, torch.OutOfMemoryError) as error:
        if os.environ.get("COMPANION_TRACEBACK"):
            raise
        code, message = _complaint(error)
        if _speaks(error):
            print(f"error: {message}", file=sys.stderr)
        return code
