"""From a recipe to a checkpoint, and back from a checkpoint to its recipe."""

import platform
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from companion.checkpoints import (
    SHIPPED,
    Card,
    load_card,
    load_checkpoint,
    load_parent,
    save_card,
    save_checkpoint,
    stored_state,
)
from companion.checkpoints.card import weights_path
from companion.devices import default_device
from companion.errors import unknown_name
from companion.evaluation import Evaluator
from companion.files import write_atomically
from companion.measurement import Measurement
from companion.recipes.base import Recipe, Root, Splits
from companion.recipes.registry import RECIPES
from companion.training import Outcome, Trainer, resolve_precision, run

# The role of the checkpoint whose weights a training began with.
INITIAL = "initial weights"


class Interrupted(Exception):
    """A training was stopped by a signal and has saved its state.

    Attributes:
        step: steps taken so far.
        signal: the signal's number.
    """

    def __init__(self, step: int, total: int, signal: int) -> None:
        super().__init__(f"Stopped at step {step:,} of {total:,}; the state is saved.")
        self.step, self.signal = step, signal


class Unmeasured(Exception):
    """A training is complete and its checkpoint written, but measuring it was stopped or failed.

    Attributes:
        path: of the checkpoint.
        stopped: whether Ctrl-C stopped it.
    """

    def __init__(self, path: Path, cause: BaseException) -> None:
        self.path, self.stopped = path, isinstance(cause, KeyboardInterrupt)
        what = "was stopped" if self.stopped else f"failed: {cause}".rstrip(".")
        super().__init__(
            f"the training is complete and {str(path)!r} is written, but measuring it {what}. Measure it with: "
            f"companion evaluate {path}"
        )


def make_checkpoint(
    recipe: Recipe,
    name: str,
    directory: str | PathLike[str],
    *,
    root: Root = None,
    fabric: Fabric | None = None,
    resume: bool = False,
    restarted: bool = False,
    init_from: str | PathLike[str] | None = None,
    samples: int = 1000,
    save_every: int = 1000,
    log_every: int = 50,
    sheet_every: int = 0,
    progress: bool = True,
    tensorboard: bool = False,
) -> Card:
    """Trains by a recipe, writes `NAME.safetensors` and its card, measures those weights and completes the card.

    What the arguments and the data do not allow is found before the first step. The checkpoint is on the disk before
    it is measured, with the weights rounded as they are stored.

    Args:
        recipe: what to train, on what, and how.
        name: of the checkpoint.
        directory: of the run: states, log, sample sheets, and in the end the checkpoint.
        root: folder of downloaded data sets, as for `companion.data.load`.
        fabric: the processes, as `launch` gives them; by default this one alone, on the default device.
        resume: go on with the run in that folder.
        restarted: the process was started again by torchrun: go on where there is a state, else begin.
        init_from: a checkpoint, by name or path, whose weights the training begins with.
        samples: images drawn to evaluate the network, if it is a generative one.
        save_every: steps between saved states.
        log_every: steps between lines of the log.
        sheet_every: steps between sample sheets; 0 makes none.
        progress: whether to show progress bars.
        tensorboard: whether to log for TensorBoard too.

    Returns:
        The checkpoint's card.

    Raises:
        Interrupted: if Ctrl-C or SIGTERM stopped the training; its state is saved.
        Unmeasured: if the training is complete, but the evaluation was stopped or failed; the checkpoint is written.
        DivergedError: if the loss became NaN or infinite.
        RunError, StateError, DiskFullError: as from `companion.training.run`.
        ValueError, OSError: if the data or the settings do not allow the training, or its evaluation.
    """
    evaluator = Evaluator(fabric, samples=samples, progress=progress and None)
    splits = Splits(recipe, root)
    recipe.check(splits, evaluator)
    device = fabric.device if fabric else default_device()
    parents: dict[str, str | PathLike[str]] = dict(recipe.parents())
    networks = {role: load_checkpoint(at, device) for role, at in parents.items()}
    objective = recipe.objective(splits.train, networks, device)
    start = None
    if init_from is not None:
        start = initial_weights(objective.network, init_from)
        parents[INITIAL] = init_from
    about = {
        "recipe": {"name": registered(recipe, name)} | recipe.settings(),
        "parents": {role: named(at) for role, at in parents.items()},
        "data": provenance(recipe, splits),
    }
    trainer = Trainer(objective, splits.train, recipe, fabric, start=start)
    fabric = trainer.fabric
    evaluator = Evaluator(fabric, samples=samples, progress=progress and None)
    outcome = run(
        trainer,
        Path(directory),
        resume=resume,
        restarted=restarted,
        save_every=save_every,
        log_every=log_every,
        sheet_every=sheet_every,
        progress=progress,
        tensorboard=tensorboard,
    )
    if outcome.interrupted:
        raise Interrupted(outcome.step, outcome.total, outcome.signal)
    network = trainer.network.eval()
    network.load_state_dict(stored_state(network))
    card = _card(recipe, name, fabric, outcome, evaluator, about)
    if fabric.global_rank == 0:
        for at in recipe.parents().values():
            put_beside(at, Path(directory))
        card = save_checkpoint(network, card, directory)
    fabric.barrier()
    whole = recipe.assemble(network, networks).eval()
    return _measured(recipe, card, whole, evaluator, splits, Path(directory))


def put_beside(checkpoint: str | PathLike[str], directory: Path) -> None:
    """Copies a checkpoint into the folder of one that builds on it, so that the folder is complete in itself.

    What ships with the package is found everywhere and stays where it is.
    """
    weights = weights_path(checkpoint)
    if weights.parent in (SHIPPED, directory):
        return
    directory.mkdir(parents=True, exist_ok=True)
    for path in (weights, weights.with_suffix(".json")):
        write_atomically(directory / path.name, path.read_bytes())


def load_assembled(
    checkpoint: str | PathLike[str], device: str | torch.device = "cpu"
) -> nn.Module:
    """Loads a checkpoint as it is used: with those that it builds on, such as a prior with its decoder.

    Args:
        checkpoint: a name, path or folder, as for `companion.load_checkpoint`. What it builds on lies beside it or
            ships with the package.
        device: where the networks go.

    Returns:
        What its recipe makes of them, in evaluation mode; the network itself where it builds on nothing.

    Raises:
        ValueError, FileNotFoundError, CheckpointError: as from `companion.load_checkpoint`; also if something that it
            builds on is missing, or is not what it was trained with.
    """
    card, network = load_card(checkpoint), load_checkpoint(checkpoint, device)
    roles = [role for role in card.parents if role != INITIAL]
    if not roles:
        return network
    folder = weights_path(checkpoint).parent
    parents = {role: load_parent(card, role, folder, device) for role in roles}
    return recipe_of(card).assemble(network, parents).eval()


def initial_weights(
    network: nn.Module, checkpoint: str | PathLike[str]
) -> Mapping[str, torch.Tensor]:
    """Returns the weights of a checkpoint, for a training of a network to begin with.

    Raises:
        ValueError: if that is of another network; the message names the settings in which they differ.
        FileNotFoundError, CheckpointError: as from `companion.load_checkpoint`.
    """
    other = load_checkpoint(checkpoint)
    if type(other) is not type(network):
        raise ValueError(
            f"{str(checkpoint)!r} is a {type(other).__name__}, but the recipe trains a {type(network).__name__}; begin "
            "with a checkpoint of the same network."
        )
    mine, its = network.state_dict(), other.state_dict()
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in its.items()}:
        a, b = vars(network.config), vars(other.config)
        changed = ", ".join(f"{k} {b[k]!r} instead of {a[k]!r}" for k in a if a[k] != b[k])
        raise ValueError(
            f"the network of {str(checkpoint)!r} has other layers than the recipe's: {changed}. Give the recipe the "
            "settings of the checkpoint."
        )
    return its


def _card(
    recipe: Recipe,
    name: str,
    fabric: Fabric,
    outcome: Outcome,
    evaluator: Evaluator,
    about: Mapping[str, Any],
) -> Card:
    """Returns the card of a network that is trained but not measured yet."""
    return Card(
        name=name,
        steps=outcome.step,
        seed=recipe.seed,
        seconds=round(outcome.seconds, 1),
        device=device_name(fabric),
        precision=resolve_precision(recipe.precision, fabric.device),
        measurements=losses_of(outcome),
        evaluation=settings_of(evaluator),
        **about,
    )


def _measured(
    recipe: Recipe,
    card: Card,
    network: nn.Module,
    evaluator: Evaluator,
    splits: Splits,
    directory: Path,
) -> Card:
    """Measures the network of a checkpoint that is written, and completes its card."""
    try:
        found = recipe.evaluate(network, evaluator, splits)
    except (Exception, KeyboardInterrupt) as error:
        raise Unmeasured(directory / f"{card.name}.safetensors", error) from error
    card = replace(card, measurements=(*card.measurements, *found))
    if evaluator.rank == 0:
        card = save_card(card, directory)
    return card


def recipe_of(card: Card) -> Recipe:
    """Returns the recipe that a checkpoint's card names, with the card's settings.

    Settings that the recipe has no more are left out: they tell how the network was trained then, not how it is
    measured now.

    Raises:
        ValueError: if the card names no recipe, or one that there is not.
    """
    name = card.recipe.get("name")
    if name is None:
        raise ValueError(
            f"the card of {card.name!r} names no recipe, and so does not say what to measure. Use the network from "
            "Python: companion.load_checkpoint, companion.evaluation and companion.metrics."
        )
    if name not in RECIPES:
        raise unknown_name("recipe", str(name), RECIPES, f"The card of {card.name!r} names it.")
    recipe = RECIPES[name]
    known = recipe.settings()
    settings = {k: v for k, v in card.recipe.items() if k in known}
    # JSON knows lists only.
    return recipe.replace(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    )


# --- What a card says ---------------------------------------------------------------------------------------------


def registered(recipe: Recipe, name: str) -> str:
    """Returns the name under which `RECIPES` holds recipes of this kind, the given one first."""
    if name in RECIPES and type(RECIPES[name]) is type(recipe):
        return name
    names = [known for known in RECIPES if type(RECIPES[known]) is type(recipe)]
    return names[0] if names else name


def named(checkpoint: str | PathLike[str]) -> dict[str, str]:
    """Returns by which a card knows another checkpoint: its name and the hash of its weights."""
    card = load_card(checkpoint)
    return {"name": card.name, "sha256": card.sha256}


def provenance(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """Returns what a card says about the data."""
    train, held_out = splits.train, splits.held_out
    about = {
        "name": train.name,
        "split": train.split,
        "images": len(train),
        "sha256": train.sha256,
        "kind": train.kind,
        "classes": list(train.classes),
    }
    if held_out is train:
        return about
    return about | {
        "held out": f"{held_out.name}/{held_out.split}",
        "held out sha256": held_out.sha256,
    }


def losses_of(outcome: Outcome) -> tuple[Measurement, ...]:
    """Returns what the losses were at the end of a training."""
    return tuple(
        Measurement(name=f"training {name}", value=value) for name, value in outcome.losses.items()
    )


def settings_of(evaluator: Evaluator) -> dict[str, int]:
    """Returns what a card says about an evaluation; FID and its like depend on it."""
    return {
        "samples": evaluator.samples,
        "seed": evaluator.seed,
        "batch_size": evaluator.batch_size,
    }


def device_name(fabric: Fabric) -> str:
    """Returns what a rerun would have to match: the kind of device, and how many processes."""
    if fabric.device.type == "cuda":
        kind = torch.cuda.get_device_name(fabric.device)
    else:
        kind = f"{platform.machine()}, {torch.get_num_threads()} threads"
    processes = f", {fabric.world_size} processes" if fabric.world_size > 1 else ""
    return f"{fabric.device.type} ({kind}{processes})"
