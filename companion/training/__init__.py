"""Loops that train networks; they import no model."""

from companion.data.batch import Batch
from companion.devices import resolve_precision
from companion.training.batches import BatchOrder
from companion.training.classifier import accuracy, random_affine
from companion.training.ema import EMA
from companion.training.launch import launch
from companion.training.optimiser import decayed, parameter_groups
from companion.training.processes import gather
from companion.training.run import Outcome, run
from companion.training.settings import TrainingSettings, learning_rate_factor
from companion.training.state import (
    DiskFullError,
    RunError,
    StateError,
    load_state,
    newest_state,
    save_state,
)
from companion.training.trainer import (
    DivergedError,
    Objective,
    Phase,
    Progress,
    Trainer,
    single_objective,
    train,
)

__all__ = [
    "EMA",
    "Batch",
    "BatchOrder",
    "DiskFullError",
    "DivergedError",
    "Objective",
    "Outcome",
    "Phase",
    "Progress",
    "RunError",
    "StateError",
    "Trainer",
    "TrainingSettings",
    "accuracy",
    "decayed",
    "gather",
    "launch",
    "learning_rate_factor",
    "load_state",
    "newest_state",
    "parameter_groups",
    "random_affine",
    "resolve_precision",
    "run",
    "save_state",
    "single_objective",
    "train",
]
