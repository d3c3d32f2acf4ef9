"""Loops that train networks; they import no model."""

from typing import TYPE_CHECKING

from companion.faces import make_lazy

if TYPE_CHECKING:
    from companion.training.batches import BatchOrder
    from companion.training.classifier import accuracy, random_affine
    from companion.training.ema import EMA
    from companion.training.launch import launch
    from companion.training.run import Outcome, RunError, run
    from companion.training.settings import TrainingSettings, learning_rate_factor
    from companion.training.state import (
        DiskFullError,
        StateError,
        load_state,
        newest_state,
        save_state,
    )
    from companion.training.trainer import (
        Batch,
        DivergedError,
        Objective,
        Phase,
        Progress,
        Trainer,
        minimise,
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
    "launch",
    "learning_rate_factor",
    "load_state",
    "minimise",
    "newest_state",
    "random_affine",
    "run",
    "save_state",
    "train",
]

make_lazy(__name__)
