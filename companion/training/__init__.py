"""Loops that train networks; they import no model."""

from companion.training.batches import BatchOrder
from companion.training.classifier import accuracy, random_affine
from companion.training.ema import EMA
from companion.training.settings import TrainingSettings, learning_rate_factor
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
    "DivergedError",
    "Objective",
    "Phase",
    "Progress",
    "Trainer",
    "TrainingSettings",
    "accuracy",
    "learning_rate_factor",
    "minimise",
    "random_affine",
    "train",
]
